"""Flat masks over a grid: their members as a list, and what they are on a coarser grid."""

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jepakit._checks import check_grid_size, check_tensor

__all__: list[str] = []


def check_mask(mask: Tensor, grid_size: tuple[int, ...]) -> None:
    """Raise unless a mask is bool and flat over the grid."""
    check_grid_size("grid_size", grid_size)
    check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: must be bool (True marks a member), got {mask.dtype}")
    size = math.prod(grid_size)
    if mask.dim() < 1 or mask.shape[-1] != size:
        raise ValueError(
            f"mask {tuple(mask.shape)}: must be flat over the grid {grid_size}, "
            f"[*batch, {size}]; flatten the grid's axes first"
        )


def list_members(
    mask: Bool[Tensor, "*batch N"], rank: Int[Tensor, "*batch N"], length: int
) -> Int[Tensor, "*batch length"]:
    """Positions of the members, ascending; `rank` is the mask's cumulative sum."""
    # A member goes to the slot of its rank from 1; all others share slot 0, which is dropped.
    position = torch.arange(mask.shape[-1], device=mask.device).expand_as(rank)
    slots = rank.new_zeros((*mask.shape[:-1], length + 1))
    return slots.scatter_(-1, rank.masked_fill(~mask, 0), position)[..., 1:].contiguous()


def coarsen(
    mask: Bool[Tensor, "*batch N"], grid_size: tuple[int, ...], window: int
) -> tuple[Bool[Tensor, "*batch M"], tuple[int, ...]]:
    """Which windows of the grid hold a member, and the grid of windows; the last may be partial."""
    batch = mask.shape[:-1]
    cells = mask.reshape(math.prod(batch), *grid_size)
    for axis, side in enumerate(grid_size, start=1):
        count = -(-side // window)
        before, after = cells.shape[:axis], cells.shape[axis + 1 :]
        missing = cells.new_zeros([*before, count * window - side, *after])
        whole = torch.cat([cells, missing], dim=axis)
        cells = whole.view(*before, count, window, *after).any(dim=axis + 1)
    coarse = tuple(cells.shape[1:])
    return cells.reshape(*batch, math.prod(coarse)), coarse
