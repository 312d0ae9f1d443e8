"""Checkpoints of a training loop: files that are whole, and a stop that leaves one behind."""

import errno
import os
import signal
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from jepakit._checks import type_name
from jepakit._saved_file import read_saved

__all__ = ["StopRequest", "check_can_save", "load_checkpoint", "save_checkpoint"]

_Path = str | os.PathLike[str]


def save_checkpoint(path: _Path, state: Mapping[str, Any]) -> None:
    """Save a training state so that `path` always holds a whole checkpoint, the old or the new.

    The state is written to a file beside `path`, flushed to the disk, and renamed. A process that
    is killed or a disk that is full leaves the last checkpoint as it was. The format is that of
    `torch.save`, with a checksum of every tensor: `torch.load(path, weights_only=True)` reads it.

    Args:
        path: The file, in a folder that exists.
        state: Names with tensors, numbers, texts, None, and dicts, lists and tuples of these, such
            as state dicts. Nothing else is loaded, since it could run code.

    Raises:
        TypeError: The state holds something else, such as a `Path` or a NumPy number.
        ValueError: A tensor of the state holds NaN. A run that has diverged must not replace the
            checkpoint that it could continue from.
        OSError: The file cannot be written; `path` is as it was.

    Example:
        >>> import tempfile
        >>> model = torch.nn.Linear(2, 2)
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
        >>> save_checkpoint(path, {"step": 10, "model": model.state_dict()})
        >>> load_checkpoint(path, keys=("step", "model"))["step"]
        10
    """
    path = Path(path)
    partial = _write_beside(path, state)
    partial.replace(path)
    with suppress(OSError):  # systems where a folder cannot be opened keep renames anyway
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename, too, survives a loss of power
        finally:
            os.close(folder)


def check_can_save(path: _Path, state: Mapping[str, Any]) -> None:
    """Raise, before training, what `save_checkpoint` would raise after it; `path` stays as it is.

    A whole state is written beside `path` and removed: an absent folder, one that is read-only and
    a disk without room for one more checkpoint are found.

    Args:
        path: The file that checkpoints will be saved to.
        state: A state like those to be saved.

    Raises:
        TypeError, ValueError: As in `save_checkpoint`.
        OSError: The file cannot be written.

    Example:
        >>> check_can_save("absent/checkpoint.pt", {"step": 0})
        Traceback (most recent call last):
        ...
        FileNotFoundError: [Errno 2] No such file or directory: 'absent/checkpoint.pt.partial'
    """
    _write_beside(Path(path), state).unlink()


def load_checkpoint(
    path: _Path,
    *,
    keys: Collection[str] = (),
    map_location: torch.device | str | None = None,
) -> dict[str, Any]:
    """Load a state that `save_checkpoint` saved, or say what is wrong with the file.

    No code of the file runs. Checksums are compared, which `torch.load` does not do.

    Args:
        path: The file.
        keys: Names that the state must hold.
        map_location: Device for the tensors, as in `torch.load`; None for those they were saved
            from.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, truncated, damaged or of another kind, lacks one of `keys`,
            or holds a tensor with NaN.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
        >>> _ = path.write_text("not a checkpoint")
        >>> load_checkpoint(path)
        Traceback (most recent call last):
        ...
        ValueError: path='...checkpoint.pt': must be a whole file of torch.save with nothing but...
    """
    path = os.fspath(path)
    state = read_saved("path", path, map_location=map_location)
    if not isinstance(state, dict):
        raise ValueError(f"path={path!r}: must hold a dict of names, got {type_name(state)}")
    if missing := [name for name in keys if name not in state]:
        held = ", ".join(map(str, list(state)[:5])) or "nothing"
        raise ValueError(
            f"path={path!r}: must hold {', '.join(missing)}, but has {held}; it is of another "
            "version or another script, so start a new run"
        )
    _check_no_nan(f"path={path!r}", state)
    return state


class StopRequest:
    """Ctrl-C and SIGTERM as a request that the loop answers between two steps.

    Within the context the first signal sets `signal` and does nothing else, so that the step ends
    and the loop can save. A second one acts as usual. Handlers are restored at the end.

    Example:
        >>> with StopRequest() as stop:
        ...     for step in range(1000):
        ...         if step == 3:
        ...             signal.raise_signal(signal.SIGTERM)  # as a cluster's scheduler does
        ...         if stop:
        ...             break
        >>> step, stop.signal.name, stop.exit_code
        (3, 'SIGTERM', 143)
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """Exit code of a process that a signal ended, 128 and its number; 0 without a request."""
        return 0 if self.signal is None else 128 + self.signal

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())


def _write_beside(path: Path, state: Mapping[str, Any]) -> Path:
    """Write a state to the disk under another name in the same folder, or leave nothing."""
    state = dict(state)
    _check_entries(state)
    _check_no_nan(f"state for {path}", state)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file for a checkpoint", str(path))
    partial = path.with_name(f"{path.name}.partial")
    try:
        # Opened here: errors of torch's own writer name neither the cause nor the file.
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(partial)  # of a disk that is full, which names no file
        raise
    return partial


# What `torch.load` reads without running code; subclasses, such as NumPy's float64, it does not.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def _check_entries(state: Mapping[str, Any]) -> None:
    for name, value in _entries(state):
        if not isinstance(value, Tensor) and type(value) not in _PLAIN:
            raise TypeError(
                f"state: {name} is a {type_name(value)}: must be a tensor, a number, a text or a "
                "plain dict, list or tuple of these; reading anything else could run code"
            )


def _check_no_nan(what: str, state: Mapping[str, Any]) -> None:
    for name, value in _entries(state):
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            continue
        eight_bits = value.is_floating_point() and value.element_size() == 1  # have no `isnan`
        if (value.float() if eight_bits else value).isnan().any():
            raise ValueError(
                f"{what}: {name} holds NaN; continue from an earlier checkpoint, with a lower "
                "learning rate"
            )


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All entries of nested containers, with the names that lead to them."""
    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            yield from _entries(inner, f"{name}.{key}" if name else str(key))
    elif type(value) in (list, tuple, set):
        for index, inner in enumerate(value):
            yield from _entries(inner, f"{name}[{index}]")
    else:
        yield name, value
