"""examples/vjepa.py does what its docstring says; each run is a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jepakit.nn import TokenViT, Tubelets

ROOT = Path(__file__).parents[2]
TINY = ["--steps", "24", "--save-every", "4", "--eval-clips", "60", "--batch-size", "4"]
TINY += ["--probe-epochs", "1", "--width", "32", "--depth", "2", "--knn-every", "1000"]
TINY += ["--predictor-width", "32"]
ROWS = ("one frame", "raw clip", "untrained encoder", "trained teacher")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A few random clips as arrays; the generated set takes seconds."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.integers(0, 256, (80, 8, 32, 32), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(80) % 4
    path = tmp_path_factory.mktemp("data") / "clips.npz"
    np.savez(path, **arrays)
    return str(path)


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "examples/vjepa.py"), "--out", str(out), *TINY, *options]


def environment() -> dict[str, str]:
    # The example runs as a user runs it, and on one thread, so that sums have one order.
    return {**os.environ, "JEPAKIT_TYPECHECK": "0", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def run(out: Path, *options: str) -> str:
    done = subprocess.run(
        command(out, *options), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def result(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: str) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("finished")
    return out, run(out, "--data", data)


def test_prints_the_table_and_saves_pictures(finished: tuple[Path, str]) -> None:
    out, printed = finished
    for row in (*ROWS, "attentive probe", "kNN-20", "clips/s"):
        assert row in printed
    for picture in ("masks0", "curves", "pca"):
        assert (out / f"{picture}.png").stat().st_size > 5_000


def test_the_call_that_is_printed_takes_the_weights(finished: tuple[Path, str]) -> None:
    out, printed = finished
    call = next(line for line in printed.splitlines() if line.startswith("TokenViT("))
    encoder = eval(call, {"TokenViT": TokenViT, "Tubelets": Tubelets})
    encoder.load_state_dict(torch.load(out / "teacher.pth", weights_only=True))


def test_the_result_can_be_traced(finished: tuple[Path, str]) -> None:
    """Trap: a table whose settings are unknown."""
    saved = result(finished[0])
    assert saved["settings"]["sampler"] == "random" and saved["versions"]["torch"]
    assert saved["steps"] == 24 and saved["images"] == 24 * 4
    assert saved["image_shape"] == [1, 8, 32, 32]
    assert tuple(saved["rows"]) == ROWS


def test_deep_targets(data: str, tmp_path: Path) -> None:
    """Several layers are predicted at once; a layer that is listed alone is another target."""
    losses = {}
    for name, layers in (("last", ["1"]), ("first", ["0"]), ("both", ["0", "1"])):
        run(tmp_path / name, "--data", data, "--steps", "2", "--target-layers", *layers)
        losses[name] = result(tmp_path / name)["curves"]["loss"][0][1]
        state = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        assert state["student"]["predictor.proj.weight"].shape[0] == 32 * len(layers)
        assert len([key for key in state["centres"] if key.endswith("sums")]) == len(layers)
    assert len(set(losses.values())) == 3


def test_other_options_run(data: str, tmp_path: Path) -> None:
    few = ("--data", data, "--steps", "2")
    printed = run(
        tmp_path / "a", *few, "--target-ratio", "0.5", "--positions", "learned",
        "--target-norm", "layer", "--loss", "l1", "--amp", "--num-frames", "4",
    )  # fmt: skip
    assert "grid (2, 4, 4)" in printed
    assert not (tmp_path / "a" / "masks1.png").exists(), "one set of masks"
    run(tmp_path / "b", *few, "--sampler", "vjepa", "--context-length", "trim",
        "--target-norm", "centre", "--coverage", "0.2", "0.05")  # fmt: skip
    assert (tmp_path / "b" / "masks1.png").exists(), "two sets"
    rows = [result(tmp_path / name)["rows"]["trained teacher"]["rank"] for name in "ab"]
    assert rows[0] != rows[1]


def test_the_teacher_is_what_is_judged(data: str, tmp_path: Path) -> None:
    """Trap: scores of the student. A teacher that never moves is the untrained encoder."""
    run(tmp_path, "--data", data, "--steps", "3", "--momentum", "1", "1")
    rows = result(tmp_path)["rows"]
    assert rows["trained teacher"] == rows["untrained encoder"]


def test_the_teacher_follows_the_step(data: str, tmp_path: Path) -> None:
    """Trap: an update before the optimiser's step. Without momentum it is the student."""
    run(tmp_path, "--data", data, "--steps", "4", "--momentum", "0", "0")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for name, value in state["teacher"].items():
        if name.startswith("module."):
            own = state["student"][name.replace("module.", "encoder.", 1)]
            torch.testing.assert_close(value, own, rtol=0, atol=0, check_dtype=False)


def test_a_layer_that_is_not_there_is_refused(data: str, tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, "--data", data, "--target-layers", "2"),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "must be different blocks of 0 to 1" in done.stderr
