"""examples/hjepa.py does what its docstring says, as a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
TINY = ["--steps", "12", "--eval-images", "200", "--batch-size", "8", "--predictor-depth", "1"]

pytestmark = pytest.mark.slow


def run(out: Path, *options: str, fails: bool = False) -> tuple[str, dict]:
    environment = {**os.environ, "JEPAKIT_TYPECHECK": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/hjepa.py"), "--out", str(out), *TINY, *options],
        env={**environment, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    if fails:
        assert done.returncode == 2, done.stdout + done.stderr
        return done.stderr, {}
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((out / "result.json").read_text())


def test_every_level_is_compared_with_the_untrained_one(tmp_path: Path) -> None:
    printed, result = run(
        tmp_path, "--levels", "3", "--fusion", "fpn-add", "--weights", "learned",
        "--positions", "timm", "--patch-size", "4",
    )  # fmt: skip
    for word in ("raw pixels", "untrained", "trained", "linear probe", "effective rank"):
        assert word in printed
    assert [len(result["rows"][row]) for row in ("raw pixels", "untrained", "trained")] == [1, 3, 3]
    assert set(result["losses"]) == {"loss", "level_0", "level_1", "level_2"}
    accuracies = [tuple(level[:2]) for level in result["rows"]["trained"]]
    assert len(set(accuracies)) == 3, "each level is judged by its own cells"
    # Trap: learned weights that no optimiser was given.
    assert max(abs(weight - 1) for weight in result["level_weights"]) > 1e-4
    for picture in ("levels.png", "curves.png"):
        assert (tmp_path / picture).stat().st_size > 5_000
    saved = torch.load(tmp_path / "teacher.pth", weights_only=True)
    assert any(name.startswith("pyramid.") for name in saved)
    assert float(saved["encoder.backbone.pos_embed"].abs().max()) < 0.5  # as timm draws them
    assert len(result["curves"]["rank"]) == len(result["curves"]["loss"])


def test_one_level_is_ijepa(tmp_path: Path) -> None:
    options = ("--levels", "1", "--compare-levels", "3")
    printed, result = run(tmp_path, *options)
    assert "2 (averaged)" in printed
    accuracies = [tuple(level[:2]) for level in result["rows"]["trained"]]
    assert len(set(accuracies)) == 3, "averages of tokens are judged by their cells"
    assert set(result["losses"]) == {"loss", "level_0"}
    assert result["losses"]["loss"] == result["losses"]["level_0"]
    saved = torch.load(tmp_path / "teacher.pth", weights_only=True)
    assert all(name.startswith("encoder.") for name in saved)
    assert float(saved["encoder.backbone.pos_embed"].abs().max()) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--steps 0", "--steps 0: must be at least 1"),
        ("--levels 1 --weights fine", "--weights: has no effect with --levels 1"),
        ("--levels 1 --shared-predictor", "--shared-predictor: has no effect with --levels 1"),
        ("--mask-levels 1", "--mask-levels 1: must be at least --levels"),
        ("--compare-levels 1", "--compare-levels 1: must be at least --levels"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: str, message: str) -> None:
    printed, _ = run(tmp_path / "out", *options.split(), fails=True)
    assert message in printed and not (tmp_path / "out").exists()


def test_the_teacher_is_what_is_judged(tmp_path: Path) -> None:
    """Trap: scores of the student. A teacher that never moves is the untrained one."""
    _, result = run(tmp_path, "--steps", "3", "--momentum", "1", "1", "--pool", "conv")
    assert result["rows"]["trained"] == result["rows"]["untrained"]


def test_the_teacher_follows_the_step(tmp_path: Path) -> None:
    """Trap: an update before the optimiser's step. Without momentum one step moves the teacher."""
    _, result = run(tmp_path, "--steps", "1", "--momentum", "0", "0")
    assert result["rows"]["trained"] != result["rows"]["untrained"]


def test_on_arrays_that_no_level_divides(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.integers(0, 256, (60, 28, 36, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(60) % 3
    np.savez(tmp_path / "images.npz", **arrays)
    printed, _ = run(
        tmp_path, "--data", str(tmp_path / "images.npz"), "--flip", "--crop-scale", "0.5", "1",
        "--patch-size", "4", "--amp", "--weights", "softmax", "--pool", "conv", "--projection",
        "--shared-predictor",
    )  # fmt: skip
    assert "levels ((7, 9), (4, 5))" in printed
