"""Every example can be stopped at any moment, and goes on as if it had not been."""

import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jepakit.checkpoints import load_checkpoint
from jepakit.data import textured_shapes

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGES, CLIPS = "a few images", "a few clips"  # stand for files
TINY = {
    "ijepa": ["--data", IMAGES, "--eval-images", "100", "--batch-size", "8", "--knn-every", "1000"],
    "hjepa": ["--data", IMAGES, "--eval-images", "100", "--batch-size", "8"],
    "lejepa": ["--data", IMAGES, "--eval-images", "100", "--batch-size", "8"],
    "vjepa": [
        *("--data", CLIPS, "--eval-clips", "60", "--batch-size", "8", "--probe-epochs", "1"),
        *("--width", "32", "--depth", "2", "--predictor-width", "32", "--knn-every", "1000"),
    ],
    "arc_jepa": ["--puzzles", "40", "--candidates", "40", "--batch-size", "8"],
    "world_model": [
        *("--trajectories", "600", "--batch-size", "8", "--tasks", "8", "--max-steps", "12"),
        *("--candidates", "12", "--elites", "4", "--decoder-steps", "10"),
    ],
}

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", TINY)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small files, since most of a short run would be spent on making the default data."""
    images, clips = {}, {}
    numbers = np.random.default_rng(0)
    for part, textures in zip(("train", "test"), textured_shapes(600, 150), strict=True):
        images[f"x_{part}"], images[f"y_{part}"] = (x.numpy() for x in textures.tensors)
        images[f"x_{part}"] = images[f"x_{part}"].transpose(0, 2, 3, 1)
        clips[f"x_{part}"] = numbers.integers(0, 256, (80, 8, 32, 32), dtype=np.uint8)
        clips[f"y_{part}"] = np.arange(80) % 4
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "images.npz", **images)
    np.savez(folder / "clips.npz", **clips)
    return {IMAGES: str(folder / "images.npz"), CLIPS: str(folder / "clips.npz")}


def start(name: str, data: dict[str, str], out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--out", str(out), "--steps", "60"]
    command += [data.get(word, word) for word in TINY[name]]
    # As a user runs it, and on one thread, so that sums have one order.
    settings = {"JEPAKIT_TYPECHECK": "0", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    return subprocess.Popen(
        [*command, "--device", "cpu", "--save-every", "2", *options],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checkpoint_appears(process: subprocess.Popen[str], out: Path, *, after: float = 0.0) -> None:
    """Wait for a checkpoint later than a time, or for the end of the run."""
    path = out / "checkpoint.pt"
    while process.poll() is None and not (path.exists() and path.stat().st_mtime > after):
        time.sleep(0.005)


@pytest.fixture(scope="module")
def straight(
    data: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a run of an example that nothing stopped."""

    @functools.cache
    def run(name: str) -> Path:
        out = tmp_path_factory.mktemp(name)
        printed, errors = start(name, data, out, "--resume").communicate()
        assert "--resume: there is no" in printed and "begins at step 0" in printed, errors
        assert "Traceback" not in errors, printed + errors
        return out

    return run


def assert_same(one: Any, other: Any, name: str = "state") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one.keys() - {"args"}:
            assert_same(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), name
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{name}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), name
    else:
        assert one == other, name


def test_ten_kills_change_nothing(
    name: str, data: dict[str, str], tmp_path: Path, straight: Callable[[str], Path]
) -> None:
    """Traps: masks, batches, crops or schedules drawn anew; statistics that are not saved."""
    moments = random.Random(name)
    last = 0.0
    for _ in range(10):
        process = start(name, data, tmp_path, "--resume")
        checkpoint_appears(process, tmp_path, after=last)
        time.sleep(0.05 * moments.random())
        process.kill()
        process.communicate()
        last = (tmp_path / "checkpoint.pt").stat().st_mtime
    killed_at = load_checkpoint(tmp_path / "checkpoint.pt")["step"]
    assert 10 <= killed_at < 60, "each run went on, and none came to its end"
    printed, errors = start(name, data, tmp_path, "--resume").communicate()
    assert f"resuming at step {killed_at}" in printed, printed + errors
    expected = load_checkpoint(straight(name) / "checkpoint.pt")
    assert_same(load_checkpoint(tmp_path / "checkpoint.pt"), expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_so_in_one_line(
    number: signal.Signals, name: str, data: dict[str, str], tmp_path: Path
) -> None:
    """Trap: a traceback of forty lines, and the steps since the last checkpoint lost."""
    process = start(name, data, tmp_path, "--steps", "100000")
    checkpoint_appears(process, tmp_path)
    process.send_signal(number)
    printed, errors = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in printed + errors
    step = load_checkpoint(tmp_path / "checkpoint.pt")["step"]
    assert f"stopped after step {step} of 100000; continue with --resume" in printed


def test_damaged_checkpoints_are_refused_by_name(
    name: str, data: dict[str, str], tmp_path: Path
) -> None:
    """Traps: an error without the file's name; a damaged state that is trained on."""
    path = tmp_path / "checkpoint.pt"
    process = start(name, data, tmp_path, "--steps", "100000")
    checkpoint_appears(process, tmp_path)
    process.kill()
    process.communicate()
    state, whole = load_checkpoint(path), path.read_bytes()
    part = next(key for key in state if isinstance(state[key], dict) and key != "args")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1

    def saved(changed: dict[str, Any]) -> bytes:
        torch.save(changed, path)
        return path.read_bytes()

    contents = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "flipped": bytes(flipped),
        "foreign": saved({"state_dict": {}}),
        "older": saved({key: value for key, value in state.items() if key != part}),
        "NaN": saved({**state, part: {"weight": torch.tensor([float("nan")])}}),
    }
    runs = {}
    for kind, content in contents.items():
        path.write_bytes(content)
        process = start(name, data, tmp_path, "--resume", "--steps", "100000")
        runs[kind] = process.communicate()[1]
        assert process.returncode != 0, kind
        assert path.read_bytes() == content, f"{kind}: nothing is changed"
    for kind, errors in runs.items():
        assert "Traceback" not in errors, kind
        assert "--resume: path=" in errors and "checkpoint.pt" in errors, (kind, errors)
        assert "or train anew without --resume" in errors, kind


def test_other_settings_are_refused(
    name: str, data: dict[str, str], straight: Callable[[str], Path]
) -> None:
    printed, errors = start(name, data, straight(name), "--resume", "--lr", "0.5").communicate()
    assert "lr=0.002, now it is 0.5" in errors, printed


def test_a_folder_that_takes_no_files_is_found_before_training(
    name: str, data: dict[str, str], tmp_path: Path
) -> None:
    """Trap: an hour of training, then an error at the first checkpoint."""
    (tmp_path / "checkpoint.pt.partial").mkdir()
    printed, errors = start(name, data, tmp_path).communicate()
    assert "checkpoint.pt.partial" in errors
    assert "step 2/" not in printed and "loss" not in printed
