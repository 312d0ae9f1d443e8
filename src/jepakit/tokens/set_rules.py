"""What the parts of a `TokenSet` must be: kinds always, values where they are at hand."""

import math

import torch
from torch import Tensor

from jepakit._checks import check_bool, check_grid_size, check_tensor, values_readable

__all__ = ["check_set"]


def check_set(idx: Tensor, valid: Tensor, grid_size: tuple[int, ...], padded: bool) -> None:
    """Raise unless the parts make a set; values are looked at on the CPU only."""
    check_grid_size("grid_size", grid_size)
    check_tensor("idx", idx, torch.int64)
    check_tensor("valid", valid, torch.bool)
    check_bool("padded", padded)
    if idx.shape != valid.shape or idx.dim() < 1:
        raise ValueError(
            f"idx {tuple(idx.shape)} and valid {tuple(valid.shape)}: "
            "must have one shape, [*batch, n]"
        )
    if idx.device != valid.device:
        raise ValueError(f"idx is on {idx.device}, valid on {valid.device}: must be on one device")
    if values_readable(idx, valid):
        _check_values(idx, valid, grid_size, padded)


def _check_values(idx: Tensor, valid: Tensor, grid_size: tuple[int, ...], padded: bool) -> None:
    if idx.numel() == 0:
        return
    if not padded and not valid.all():
        raise ValueError("padded=False: promises that every entry is valid, but some are not")
    size = math.prod(grid_size)
    low, high = int(idx.min()), int(idx.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"idx: must lie on the grid {grid_size}, in [0, {size - 1}], "
            f"got values from {low} to {high}"
        )
    both = valid[..., 1:]
    if (both & ~valid[..., :-1]).any():
        raise ValueError("valid: valid entries must come first in every set")
    if ((idx[..., 1:] <= idx[..., :-1]) & both).any():
        raise ValueError("idx: must ascend within every set, without repeats")
    if padded and idx.masked_fill(valid, 0).any():
        raise ValueError("idx: must be 0 where not valid")
