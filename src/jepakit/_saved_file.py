"""Files of `torch.save`, read without running code, with a clear error for each kind of damage."""

import zipfile
from typing import Any

import torch


def read_saved(
    name: str, path: str, *, map_location: torch.device | str | None, mmap: bool = False
) -> Any:
    """Content of a file of `torch.save`, whose checksums are compared; `name` is for errors."""
    with open(path, "rb"):  # a file that is missing or must not be read has a clear error already
        pass
    try:
        # The older format of torch.save is no zip file and has no checksums.
        is_zip = zipfile.is_zipfile(path)
        damaged = _damaged_record(path) if is_zip else None
        loaded = torch.load(
            path, map_location=map_location, weights_only=True, mmap=mmap and is_zip
        )
    except Exception as error:  # of a broken file: OSError, KeyError, EOFError, UnicodeDecodeError
        raise ValueError(
            f"{name}={path!r}: must be a whole file of torch.save with nothing but tensors and "
            "plain containers in it, since anything else could run code; copy or download it again"
        ) from error
    if damaged is not None:
        rule = f"is damaged, the checksum of {damaged!r} differs; copy or download it again"
        raise ValueError(f"{name}={path!r}: {rule}")
    return loaded


def _damaged_record(path: str) -> str | None:
    """Name of the first record whose checksum differs, which `torch.load` does not look at."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()
