"""examples/ijepa.py does what its docstring says; each run is a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from jepakit.data import PixelStatistics, load_images

ROOT = Path(__file__).parents[2]
TINY = ["--steps", "40", "--save-every", "4", "--eval-images", "200", "--batch-size", "8"]

pytestmark = pytest.mark.slow


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "examples/ijepa.py"), "--out", str(out), *TINY, *options]


def environment() -> dict[str, str]:
    # The example runs as a user runs it, and on one thread, so that sums have one order.
    return {**os.environ, "JEPAKIT_TYPECHECK": "0", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def run(out: Path, *options: str) -> str:
    done = subprocess.run(
        command(out, *options), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("finished")
    return out, run(out)


def test_prints_the_table_and_saves_pictures(finished: tuple[Path, str]) -> None:
    out, printed = finished
    for row in ("raw pixels", "untrained encoder", "trained teacher", "linear probe", "kNN-20"):
        assert row in printed
    for picture in ("masks", "curves", "pca", "neighbours", "retrieval"):
        assert (out / f"{picture}.png").stat().st_size > 5_000
    assert "chance 0.4%" in printed  # of 256 images


def test_the_teacher_is_a_plain_timm_checkpoint(finished: tuple[Path, str]) -> None:
    """The call that the example prints loads it, and no name is lost on the way."""
    out, printed = finished
    call = next(line for line in printed.splitlines() if line.startswith("timm.create_model"))
    model = eval(call, {"timm": timm})
    saved = torch.load(out / "teacher.pth", weights_only=True)
    loaded = model.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_runs_on_arrays_and_on_an_image_folder(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.integers(0, 256, (60, 24, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(60) % 3
    np.savez(tmp_path / "images.npz", **arrays)
    few = (
        "--steps",
        "2",
        "--recipe",
        "paper",
        "--patch-size",
        "4",
        "--flip",
        "--crop-scale",
        "0.5",
        "1",
        "--amp",
    )
    assert "trained teacher" in run(
        tmp_path / "a", "--data", str(tmp_path / "images.npz"), "--image-size", "32", *few,
        "--positions", "timm", "--standardise", "dataset",
    )  # fmt: skip
    # Users of the teacher need the statistics that its images were standardised with.
    saved = json.loads((tmp_path / "a" / "result.json").read_text())
    pixels = PixelStatistics(*map(tuple, saved["pixels"]))
    train, _ = load_images(tmp_path / "images.npz", image_size=32)
    assert pixels == PixelStatistics.from_dataset(train)
    for number, array in enumerate(arrays["x_train"]):
        folder = tmp_path / "folder" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{number}.png")
    assert "trained teacher" in run(
        tmp_path / "b", "--data", str(tmp_path / "folder"), "--image-size", "32",
        "--neighbours", "5", "--loss", "cosine", "--vicreg-weight", "0.01", *few,
    )  # fmt: skip
    largest = {
        name: torch.load(tmp_path / name / "teacher.pth", weights_only=True)["pos_embed"]
        .abs()
        .max()
        for name in "ab"
    }
    assert largest["a"] < 0.5, "as timm draws them"
    assert largest["b"] > 0.9, "sines and cosines"


def test_the_result_can_be_traced(finished: tuple[Path, str]) -> None:
    """Trap: a table whose settings are unknown."""
    saved = json.loads((finished[0] / "result.json").read_text())
    settings = saved["settings"]
    assert settings["recipe"] == "short" and saved["versions"]["torch"]
    assert (settings["loss"], settings["target_norm"]) == ("mse", "whiten")
    assert saved["steps"] == 40 and saved["images"] == 40 * 8
    assert saved["pixels"] is None, "each image was standardised on its own"
    assert set(saved["rows"]) == {"raw pixels", "untrained encoder", "trained teacher"}


def test_vicreg_is_added(tmp_path: Path) -> None:
    """Traps: a weight that is accepted and read nowhere; a term that reaches the teacher alone."""
    losses, taught = [], []
    for weight in ("0", "0.5"):
        run(tmp_path / weight, "--steps", "2", "--momentum", "0", "0", "--vicreg-weight", weight)
        saved = json.loads((tmp_path / weight / "result.json").read_text())
        losses.append(saved["curves"]["loss"][0][1])
        taught.append(torch.load(tmp_path / weight / "teacher.pth", weights_only=True))
    assert losses[1] > losses[0] + 0.5, "half of 25 times what the deviations lack"
    # With a momentum of 0 this is the student.
    name = "blocks.0.attn.qkv.weight"
    assert (taught[0][name] - taught[1][name]).abs().max() > 1e-5


def test_the_teacher_is_what_is_judged(tmp_path: Path) -> None:
    """Trap: scores of the student. A teacher that never moves is the untrained encoder."""
    run(tmp_path, "--steps", "3", "--momentum", "1", "1")
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert rows["trained teacher"] == rows["untrained encoder"]


def test_the_teacher_follows_the_step(tmp_path: Path) -> None:
    """Trap: an update before the optimiser's step. Without momentum it is the student."""
    run(tmp_path, "--steps", "4", "--momentum", "0", "0", "--recipe", "code")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for name, value in state["teacher"].items():
        if name.startswith("module."):
            own = state["student"][name.replace("module.", "encoder.", 1)]
            torch.testing.assert_close(value, own, rtol=0, atol=0, check_dtype=False)
    settings = json.loads((tmp_path / "result.json").read_text())["settings"]
    assert (settings["loss"], settings["target_norm"]) == ("smooth_l1", "layer"), (
        "what the code does"
    )
