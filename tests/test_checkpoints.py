"""Laws of checkpoints: a file is whole or an error, and a stop leaves one behind."""

import argparse
import errno
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from jepakit.checkpoints import StopRequest, check_can_save, load_checkpoint, save_checkpoint


def some_state(step: int = 3) -> dict[str, Any]:
    torch.manual_seed(step)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(8)).sum().backward()
    optimizer.step()
    half = torch.ones(3, dtype=torch.bfloat16)
    return {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "curves": {"loss": [(1, 0.5), (2, float("inf"))]},
        "more": [half, torch.tensor(True), None, "text"],
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    state = some_state()
    save_checkpoint(tmp_path / "a.pt", state)
    assert equal(load_checkpoint(tmp_path / "a.pt", keys=("step", "model")), state)
    assert equal(torch.load(tmp_path / "a.pt", weights_only=True), state), "torch alone reads it"
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    "content", [b"", b"text", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x93NUMPY\x01\x00"]
)
def test_other_files_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    """Trap: EOFError, UnpicklingError and the like, without the file's name."""
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path='.*a\.pt': must"):
        load_checkpoint(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.pt"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.pt"
    save_checkpoint(path, some_state())
    return path.read_bytes()


@given(data=st.data())
def test_a_truncated_file_is_refused(
    data: st.DataObject, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Trap: half of a file that a full disk or a lost connection left."""
    path = tmp_path_factory.mktemp("cut") / "a.pt"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ValueError, match=r"a\.pt"):
        load_checkpoint(path)


@given(data=st.data())
def test_a_flipped_bit_is_found_or_changes_nothing(
    data: st.DataObject, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Trap: torch.load compares no checksums, so a weight of 0.1 becomes 1e30 unnoticed."""
    path = tmp_path_factory.mktemp("flipped") / "a.pt"
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        loaded = load_checkpoint(path)
    except ValueError as error:
        loaded = str(error)
    # Equal if the bit was in the padding between records, or in a time stamp.
    assert "a.pt" in loaded if isinstance(loaded, str) else equal(loaded, some_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e5m2, torch.complex64])
def test_a_state_that_diverged_is_not_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    """Trap: the last good checkpoint is replaced by one full of NaN."""
    path, state = tmp_path / "a.pt", some_state()
    save_checkpoint(path, state)
    state["model"] = {"weight": torch.tensor([1.0, float("nan")]).to(dtype)}
    with pytest.raises(ValueError, match=r"model\.weight holds NaN"):
        save_checkpoint(path, state)
    assert equal(load_checkpoint(path), some_state())
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"a\.pt.*model\.weight holds NaN"):
        load_checkpoint(path)


@pytest.mark.parametrize("save", [save_checkpoint, check_can_save])
@pytest.mark.parametrize(
    "entry", [Path("x"), argparse.Namespace(a=1), np.float64(1), np.ones(2), defaultdict(int)]
)
def test_what_could_not_be_read_is_not_saved(save: Any, entry: Any, tmp_path: Path) -> None:
    """Trap: a run of days whose checkpoints no one can load."""
    with pytest.raises(TypeError, match=r"state: args\.out is a .*must be a tensor, a number"):
        save(tmp_path / "a.pt", {"args": {"out": entry}})
    assert not list(tmp_path.iterdir())


def test_infinity_is_no_divergence(tmp_path: Path) -> None:
    """A causal mask in a buffer is full of it."""
    save_checkpoint(tmp_path / "a.pt", {"mask": torch.full((2, 2), -torch.inf)})
    assert load_checkpoint(tmp_path / "a.pt")["mask"].isinf().all()


@pytest.mark.parametrize("save", [save_checkpoint, check_can_save])
def test_a_folder_is_no_file(save: Any, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder"):
        save(tmp_path, {"step": 1})
    assert not list(tmp_path.parent.glob("*.partial"))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {"step": 1})
    with pytest.raises(ValueError, match=r"must hold model, teacher, but has step"):
        load_checkpoint(tmp_path / "a.pt", keys=("step", "model", "teacher"))
    torch.save([1], tmp_path / "a.pt")
    with pytest.raises(ValueError, match="must hold a dict of names"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("save", [save_checkpoint, check_can_save])
def test_a_full_disk_leaves_the_last_checkpoint(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, some_state(1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, some_state(2))
    assert equal(load_checkpoint(path), some_state(1))
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"], "nothing is left behind"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_torchs_writer_on_a_full_disk_names_the_file(
    tmp_path: Path,
) -> None:
    """Trap: `RuntimeError: [enforce fail at inline_container.cc]`."""
    path = tmp_path / "a.pt"
    (tmp_path / "a.pt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"a\.pt\.partial"):
        save_checkpoint(path, {"weight": torch.zeros(100_000)})
    assert not path.exists()


def test_check_can_save_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    check_can_save(tmp_path / "a.pt", some_state())
    assert not list(tmp_path.iterdir())
    save_checkpoint(tmp_path / "a.pt", some_state(1))
    check_can_save(tmp_path / "a.pt", some_state(2))
    assert equal(load_checkpoint(tmp_path / "a.pt"), some_state(1))
    with pytest.raises(FileNotFoundError, match="absent"):
        check_can_save(tmp_path / "absent" / "a.pt", some_state())


SAVES_FOREVER = """
import sys, torch
from jepakit.checkpoints import save_checkpoint
step = 0
while True:
    step += 1
    save_checkpoint(sys.argv[1], {"step": step, "weight": torch.full((200_000,), float(step))})
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_holds_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for moment in range(5):
        process = subprocess.Popen([sys.executable, "-c", SAVES_FOREVER, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.003 * moment)
        process.kill()
        process.wait()
        state = load_checkpoint(path)
        assert torch.equal(state["weight"], torch.full((200_000,), float(state["step"])))
        path.unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request_and_the_second_one_acts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    received = []
    signal.signal(number, lambda *_: received.append("second"))
    try:
        with StopRequest() as stop:
            assert not stop and stop.exit_code == 0
            signal.raise_signal(number)
            assert stop and stop.signal == number and stop.exit_code == 128 + number
            assert not received
            signal.raise_signal(number)
            assert received == ["second"]
        signal.raise_signal(number)
        assert received == ["second"] * 2, "handlers are restored"
    finally:
        signal.signal(number, before)


def test_handlers_are_restored_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyError), StopRequest():
        raise KeyError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
