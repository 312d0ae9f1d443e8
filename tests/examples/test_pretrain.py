"""examples/pretrain.py: killed at any moment, resumed on any number of ranks, DDP or FSDP2."""

import importlib.util
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.examples.pretrain_ranks import EXAMPLE, run, start
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from jepakit.data import textured_shapes

STEPS = 60
TINY = [
    "--model", "test_vit", "--patch-size", "8", "--predictor-width", "16", "--predictor-heads", "2",
    "--predictor-depth", "1", "--num-targets", "2", "--batch-size", "8", "--steps", str(STEPS),
    "--device", "cpu", "--knn-images", "40", "20", "--log-every", "20",
]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream, "record_event"),
        reason="FSDP2 of this torch has no forward on the CPU",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """As a user runs it, and on one thread, so that sums have one order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JEPAKIT_TYPECHECK", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> str:
    arrays = {}
    for part, images in zip(("train", "test"), textured_shapes(200, 60), strict=True):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = (x.numpy() for x in images.tensors)
        arrays[f"x_{part}"] = arrays[f"x_{part}"].transpose(0, 2, 3, 1)
    path = tmp_path_factory.mktemp("textures") / "textures.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def reference(textures: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on two ranks."""
    out = tmp_path_factory.mktemp("reference")
    run(2, out / "log", "--data", textures, "--out", str(out), *TINY)
    return out


def checkpoints(out: Path) -> list[Path]:
    return sorted(path for path in (out / "checkpoints").glob("step-*") if not path.suffix)


def final_state(out: Path) -> dict[str, Any]:
    """Student, teacher and optimiser of the last checkpoint."""
    last = checkpoints(out)[-1]
    assert int(last.name.removeprefix("step-")) == STEPS
    dcp_to_torch_save(last, out / "whole.pt")
    state = torch.load(out / "whole.pt", weights_only=False)
    for group in state["optimizer"]["param_groups"]:
        group["params"] = len(group["params"])  # of their names
    return state


def wait_for_new_checkpoint(out: Path, last: list[Path], ranks: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while checkpoints(out)[-1:] == last and not ranks.ended and time.monotonic() < end:
        time.sleep(0.005)


def assert_equal(ours: Any, theirs: Any, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_killed_at_any_moment_and_resumed(textures: str, reference: Path, tmp_path: Path) -> None:
    """Traps: half a checkpoint that is read; the last complete one deleted before the next is; a
    schedule, batches, crops or masks that begin anew; the optimiser's state lost."""
    expected, moments = final_state(reference), random.Random(0)
    options = "--data", textures, *TINY, "--save-every", "2", "--workers", "1", "--resume"
    killed, half = tmp_path / "killed", tmp_path / "half"
    killed.mkdir(), half.mkdir()
    for number in range(10):
        saved = checkpoints(killed)[-1:]
        ranks = start(2, killed / "log", *options, "--out", str(killed))
        wait_for_new_checkpoint(killed, saved, ranks, seconds=60)
        # At any moment until the next one is complete: in a step, or while it is written.
        saved = checkpoints(killed)[-1:]
        wait_for_new_checkpoint(killed, saved, ranks, seconds=moments.uniform(0, 0.7))
        assert not ranks.ended, "the run ended before it could be killed"
        ranks.kill()
        if number == 5:
            shutil.copytree(killed / "checkpoints", half / "checkpoints")
    printed = run(2, killed / "log", *options, "--out", str(killed))
    assert printed.count("step 0 of") == 1, "all starts but the first resume"
    assert_equal(final_state(killed), expected, 0)
    assert not list((killed / "checkpoints").glob("*.tmp"))

    run(1, half / "log", *options, "--out", str(half))
    assert_equal(final_state(half), expected, 1e-5)


def test_sharded_accumulated_and_checkpointed_is_the_same(
    textures: str, reference: Path, tmp_path: Path
) -> None:
    """FSDP2 is DDP, and loads its checkpoint. Trap: the last micro-batch alone is learned from."""
    options = ["--data", textures, *TINY, "--out", str(tmp_path), "--resume"]
    started = start(2, tmp_path / "log", *options, "--save-every", "20")
    wait_for_new_checkpoint(tmp_path, [], started, seconds=60)
    started.kill()
    printed = run(2, tmp_path / "log", *options, "--shard", "--accumulate", "2", "--checkpointing")
    assert "step 20 of" in printed and "FSDP2-wrapped" not in printed
    assert_equal(final_state(tmp_path), final_state(reference), 1e-5)


def command(launcher: list[str], out: Path, *options: str) -> list[str]:
    return [sys.executable, *launcher, str(EXAMPLE), "--out", str(out), *TINY, *options]


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_torchrun_stops_at_a_signal(textures: str, tmp_path: Path) -> None:
    """A scheduler's SIGTERM: one line and a checkpoint, at the same step of both ranks."""
    options = ("--data", textures, "--steps", "100000", "--workers", "1", "--log-every", "2")
    process = subprocess.Popen(
        command(TORCHRUN, tmp_path, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 4"):
            process.send_signal(signal.SIGTERM)
            break
    printed = "".join(lines) + process.communicate(timeout=60)[0]
    stopped = [line for line in printed.splitlines() if line.startswith("stopped by SIGTERM")]
    assert len(stopped) == 1 and "--resume" in stopped[0], printed
    assert 'pretrain.py"' not in printed, "no traceback of the example"
    (checkpoint,) = checkpoints(tmp_path)
    step = int(checkpoint.name.removeprefix("step-"))
    assert f"after step {step};" in stopped[0]


@pytest.fixture(scope="module")
def interrupted(textures: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Ctrl-C in a process without torchrun."""
    out = tmp_path_factory.mktemp("interrupted")
    process = subprocess.Popen(
        command([], out, "--data", textures, "--workers", "1", "--log-every", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 4"):
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the loader's workers too
            break
    printed = "".join(lines) + process.communicate(timeout=60)[0]
    assert process.returncode == 130, printed
    return out, printed


def test_an_interrupted_run_prints_one_line(interrupted: tuple[Path, str]) -> None:
    out, printed = interrupted
    assert "Traceback" not in printed and "Error" not in printed
    last = printed.splitlines()[-1]
    assert last.startswith("stopped by SIGINT after step") and "--resume" in last
    assert len(checkpoints(out)) == 1 and not (out / "teacher.safetensors").exists()


def test_a_new_run_does_not_overwrite_another(
    interrupted: tuple[Path, str], textures: str, tmp_path: Path
) -> None:
    options = ["--data", textures, *TINY, "--out", str(interrupted[0])]
    printed = start(2, tmp_path / "log", *options).wait(code=1)
    assert printed.count("has checkpoints; add --resume") == 1 and "Traceback" not in printed


def test_resume_with_other_settings_is_refused(
    interrupted: tuple[Path, str], textures: str, tmp_path: Path
) -> None:
    options = ["--data", textures, *TINY, "--out", str(interrupted[0]), "--resume", "--lr", "0.5"]
    printed = start(2, tmp_path / "log", *options).wait(code=1)
    assert printed.count("has lr=0.001, now it is 0.5") == 1 and "Traceback" not in printed


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_file_of_tensors_is_named(
    interrupted: tuple[Path, str], textures: str, tmp_path: Path, damage: str
) -> None:
    """Trap: torch.distributed.checkpoint keeps no checksums, so a flipped bit is trained on."""
    out = tmp_path / "copy"
    shutil.copytree(interrupted[0] / "checkpoints", out / "checkpoints")
    file = next(checkpoints(out)[0].glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    if damage == "flipped":
        file.write_bytes(content)
    options = ["--data", textures, *TINY, "--out", str(out), "--resume"]
    printed = start(2, tmp_path / "log", *options).wait(code=1)
    assert printed.count(f"{file} is missing, damaged or of") == 1 and "Traceback" not in printed


def test_a_batch_is_divided_evenly(textures: str, tmp_path: Path) -> None:
    options = ["--data", textures, *TINY, "--out", str(tmp_path), "--accumulate", "3"]
    printed = start(2, tmp_path / "log", *options).wait(code=1)
    assert "--batch-size 8: must be a multiple of 2 processes times --accumulate 3" in printed


def test_the_teacher_is_a_plain_timm_checkpoint(reference: Path) -> None:
    printed = (reference / "log").read_text()
    call = next(line for line in printed.splitlines() if line.startswith("timm.create_model"))
    loaded = eval(call, {"timm": timm}).state_dict()
    saved = load_file(reference / "teacher.safetensors")
    teacher = final_state(reference)["teacher"]
    assert saved.keys() == loaded.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, teacher[f"module.backbone.{name}"]), name
    assert "kNN" in printed and "untrained" in printed


def test_heads_are_frozen_and_labels_are_not_needed(tmp_path: Path) -> None:
    """Traps: DDP stops at the attention pooling, which patch features do not pass; a folder of
    images alone has no classes for kNN."""
    folder, random_numbers = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(20):
        pixels = random_numbers.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    options = ["--data", str(folder), "--image-size", "48", "--out", str(tmp_path / "out"), *TINY]
    options += ["--model", "test_vit3", "--steps", "3", "--recipe", "paper", "--flip"]
    printed = run(1, tmp_path / "log", *options, "--log-every", "1", "--peak-tflops", "0.1")
    assert "kNN" not in printed
    assert "images/s" in printed and "share of peak" in printed


def test_shards(tmp_path: Path) -> None:
    """Traps: ranks or workers that read the same shards; a second pass with the same masks."""
    pytest.importorskip("webdataset")
    random_numbers = np.random.default_rng(0)
    for shard in range(4):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(8):
                file = tmp_path / f"{shard}-{number}.png"
                pixels = random_numbers.integers(0, 255, (40, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file)
                tar.add(file, file.name)
    options = ["--data", str(tmp_path / "{0..3}.tar"), "--image-size", "48", *TINY, "--steps", "7"]
    printed = run(2, tmp_path / "log", *options, "--workers", "2", "--out", str(tmp_path / "out"))
    assert "drawn twice" not in printed and "step 7" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--log wandb", "wandb is not installed"),
        ("--log tensorboard", "tensorboard is not installed"),
        ("--data shards/{0..3}.tar", "webdataset is not installed"),
        ("--data a --steps 0", "--steps 0: must be at least 1"),
    ],
)
def test_bad_options(
    options: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parse_args = runpy.run_path(str(EXAMPLE))["parse_args"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--data", "a", *options.split()])
    with pytest.raises(SystemExit):
        parse_args()
    assert message in capsys.readouterr().err
