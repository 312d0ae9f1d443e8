"""Flat masks over a grid, and the coarser grids of a pyramid."""

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jepakit._checks import as_int, check_on_grid, check_tensor


def mask_of_indices(
    name: str, idx: Int[Tensor, "*batch n"], grid_size: tuple[int, ...]
) -> Bool[Tensor, "*batch N"]:
    """Flat masks of the positions that are listed; raise unless they are on the grid."""
    check_tensor(name, idx)
    if idx.dtype in (torch.bool, torch.uint8) or idx.is_floating_point() or idx.is_complex():
        raise TypeError(
            f"{name}: must be positions, as signed integers, got {idx.dtype}; for a mask, True "
            "at members, use TokenSet.from_mask"
        )
    if idx.dim() < 1:
        raise ValueError(f"{name} (): must be [*batch, n]")
    check_on_grid(name, idx, grid_size)
    mask = torch.zeros(*idx.shape[:-1], math.prod(grid_size), dtype=torch.bool, device=idx.device)
    return mask.scatter_(-1, idx.long(), True)


def member_positions(
    mask: Bool[Tensor, "*batch N"], rank: Int[Tensor, "*batch N"], length: int
) -> Int[Tensor, "*batch length"]:
    """Positions of the members of a mask, ascending; `rank` is the mask's cumulative sum.

    For the mask 0 1 0 1 with ranks 0 1 1 2 and length 2: position 1 goes to slot 1, position 3 to
    slot 2, and positions 0 and 2, which are no members, to slot 0. Dropping slot 0 leaves (1, 3).
    """
    position = torch.arange(mask.shape[-1], device=mask.device).expand_as(rank)
    slots = rank.new_zeros((*mask.shape[:-1], length + 1))
    return slots.scatter_(-1, rank.masked_fill(~mask, 0), position)[..., 1:].contiguous()


def coarsen_mask(
    mask: Bool[Tensor, "*batch N"], grid_size: tuple[int, ...], window: int
) -> tuple[Bool[Tensor, "*batch M"], tuple[int, ...]]:
    """True for windows with a member, and the grid of windows; the last ones may be partial."""
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


def max_halvings(grid_size: tuple[int, ...]) -> int:
    """Number of halvings, upwards, after which a grid is a single cell."""
    return max(side - 1 for side in grid_size).bit_length()


def level_grids(grid_size: tuple[int, ...], num_levels: object) -> tuple[tuple[int, ...], ...]:
    """Grids of a pyramid from the finest up; raise where there are not that many levels.

    Sides are halved upwards: 14 x 14, 7 x 7, 4 x 4, 2 x 2, 1 x 1.
    """
    levels = as_int("num_levels", num_levels, minimum=1)
    most = max_halvings(grid_size)
    if levels - 1 > most:
        raise ValueError(
            f"num_levels={levels}: the grid {grid_size} is a single cell on level {most}, so "
            f"it has {most + 1} levels"
        )
    return tuple(tuple(-(-side // 2**level) for side in grid_size) for level in range(levels))
