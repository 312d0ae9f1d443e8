"""Files of a folder as a training and a test set, whose classes are the names of subfolders."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, Subset

from jepakit.data._split import Split

_TEST_FOLDERS = ("val", "validation", "test")
_TEST_FRACTION = 5  # of a folder without a test part, one file in so many is for test


class FileKind(NamedTuple):
    """Kind of the files in a folder, such as `"images"`, and the endings of their names."""

    noun: str
    extensions: tuple[str, ...]


# Makes a dataset of paths, and of their labels if the folder has classes.
Read = Callable[[list[str], list[int] | None], Dataset[Any]]


def load_folder(root: Path, kind: FileKind, read: Read) -> Split:
    """The files below `train` and a test folder, or of one folder, of which a part is held out."""
    if not (root / "train").is_dir():
        files = _shuffled(root, _find_classes(root, kind), kind, read)
        if len(files) < 2:
            rule = f"must hold at least 2 {kind.noun}, of which one is held out for test, holds 1"
            raise ValueError(f"source={str(root)!r}: {rule}")
        num_test = max(1, len(files) // _TEST_FRACTION)
        return Split(Subset(files, range(num_test, len(files))), Subset(files, range(num_test)))
    test_root = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if test_root is None:
        rule = f"has a folder train, must have one of {_TEST_FOLDERS} too"
        raise ValueError(f"source={str(root)!r}: {rule}")
    classes, test_classes = (_find_classes(each, kind) for each in (root / "train", test_root))
    if classes != test_classes:
        raise ValueError(
            f"source={str(root)!r}: train and {test_root.name} must have folders for the same "
            f"classes, {sorted(set(classes) ^ set(test_classes))} are in one of them only"
        )
    return Split(
        _shuffled(root / "train", classes, kind, read),
        _shuffled(test_root, classes, kind, read, empty_classes=True),
    )


def _shuffled(
    root: Path, classes: list[str], kind: FileKind, read: Read, *, empty_classes: bool = False
) -> Subset[Any]:
    """The files of a folder in a fixed random order: by name they are sorted by class."""
    paths, labels = _list_files(root, classes, kind)
    present = set(labels or ())
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty and not empty_classes:
        rule = f"must hold {kind.noun} of every class, {empty} hold none; remove these folders"
        raise ValueError(f"source={str(root)!r}: {rule}")
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(paths), generator=generator, device="cpu")
    return Subset(read(paths, labels), order.tolist())


def _list_files(
    root: Path, classes: Sequence[str], kind: FileKind
) -> tuple[list[str], list[int] | None]:
    """Return the files of a folder, class after class, and their labels if it has classes."""
    if not classes:
        return _files_below(root, kind), None
    paths = [_files_below(root / name, kind) for name in classes]
    labels = [label for label, members in enumerate(paths) for _ in members]
    return [path for members in paths for path in members], labels


def _find_classes(root: Path, kind: FileKind) -> list[str]:
    """Return the subfolders of a folder; raise if it holds no files, or such beside subfolders."""
    classes = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not _is_hidden(entry.name)
    )
    files = sorted(entry.name for entry in root.iterdir() if _is_of_kind(entry.name, kind))
    if classes and files:
        held = f"holds {files[0]!r} beside {classes[0]!r}"
        rule = f"must hold {kind.noun} or a subfolder for each class, {held}"
        raise ValueError(f"source={str(root)!r}: {rule}")
    if not any(_files_below(root / name, kind) for name in classes or ["."]):
        raise ValueError(
            f"source={str(root)!r}: must hold {kind.noun} ({', '.join(kind.extensions)}), "
            "holds none"
        )
    return classes


def _files_below(root: Path, kind: FileKind) -> list[str]:
    return [
        os.path.join(folder, name)
        for folder, _, names in sorted(os.walk(root, followlinks=True))
        if not any(map(_is_hidden, Path(folder).relative_to(root).parts))
        for name in sorted(names)
        if _is_of_kind(name, kind)
    ]


def _is_of_kind(name: str, kind: FileKind) -> bool:
    return name.lower().endswith(kind.extensions) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    # macOS writes ._1.jpg beside 1.jpg, which is no image, and Jupyter copies into a hidden folder.
    return name.startswith(".")
