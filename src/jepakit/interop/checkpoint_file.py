"""Reading a checkpoint: a mapping as it is, a file without running anything in it."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jepakit._checks import type_name

__all__: list[str] = []


def read(checkpoint: Mapping[str, Any] | str | os.PathLike[str]) -> Mapping[str, Any]:
    """The checkpoint's mapping; tensors of a file are on the CPU and read when they are used."""
    if isinstance(checkpoint, Mapping):
        return checkpoint
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(f"checkpoint: must be a mapping or a path, got {type_name(checkpoint)}")
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint={str(path)!r}: must be a file, and there is none")
    try:
        # Most of a published file is the optimiser's, which nobody asks for; the older format of
        # torch.save cannot be mapped.
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint={str(path)!r}: must be a file of torch.save with nothing but tensors and "
            "plain containers in it, since anything else could run code. Where you trust it, load "
            "it with torch.load(..., weights_only=False) and pass what that gives; for .safetensors"
            " pass what safetensors.torch.load_file gives"
        ) from error
    if not isinstance(loaded, Mapping):
        raise TypeError(
            f"checkpoint={str(path)!r}: must hold a dict of names, got {type_name(loaded)}"
        )
    return loaded


def part_of(checkpoint: Mapping[str, Any], key: str) -> Any:
    """One of the state dicts of a published checkpoint, without the prefix of DDP."""
    if key not in checkpoint:
        names = sorted(map(str, checkpoint))
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ValueError(
            f"checkpoint: must hold {key!r}, but has {shown or 'nothing'}. A plain state dict of a "
            "timm model is loaded by encoder.backbone.load_state_dict, Hugging Face's by "
            "load_hf_ijepa"
        )
    state = checkpoint[key]
    if isinstance(state, Mapping) and all(str(name).startswith("module.") for name in state):
        return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    return state
