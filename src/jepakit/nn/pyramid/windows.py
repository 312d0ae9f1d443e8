"""A grid and the next coarser one: windows of two cells along each axis, cut off by the border.

Fields are flat, `[b N d]`. Everything is made of views, sums and maxima axis by axis: it is the
same for one, two or three axes, and deterministic on every device.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__: list[str] = []


def halved(grid_size: tuple[int, ...]) -> tuple[int, ...]:
    """Sides of the next coarser grid: half, upwards."""
    return tuple(-(-side // 2) for side in grid_size)


def window_sum(x: Float[Tensor, "b N d"], grid_size: tuple[int, ...]) -> Float[Tensor, "b M d"]:
    """Sum over every window; a partial one sums what is there."""
    cells = _split(x, 1, grid_size)
    for axis in range(1, len(grid_size) + 1):
        cells = _in_pairs(cells, axis, 0.0).sum(dim=axis + 1)
    return cells.flatten(1, -2)


def window_max(x: Float[Tensor, "b N d"], grid_size: tuple[int, ...]) -> Float[Tensor, "b M d"]:
    """Maximum over every window; a partial one takes that of what is there."""
    cells = _split(x, 1, grid_size)
    for axis in range(1, len(grid_size) + 1):
        # `amax` would do, but its gradient is ten times slower.
        first, second = _in_pairs(cells, axis, -math.inf).unbind(axis + 1)
        cells = torch.maximum(first, second)
    return cells.flatten(1, -2)


def window_cells(x: Float[Tensor, "b N d"], grid_size: tuple[int, ...]) -> Float[Tensor, "b M k d"]:
    """The `k = 2**axes` cells of every window, row-major; zeros beyond the border."""
    cells = _split(x, 1, grid_size)
    axes = len(grid_size)
    for axis in range(axes):
        # One axis after another turns into (window, place).
        cells = _in_pairs(cells, 1 + 2 * axis, 0.0)
    windows = range(1, 2 * axes, 2)
    places = range(2, 2 * axes + 1, 2)
    cells = cells.permute(0, *windows, *places, 2 * axes + 1)
    return cells.flatten(1, axes).flatten(2, -2)


def spread(y: Float[Tensor, "b M d"], grid_size: tuple[int, ...]) -> Float[Tensor, "b N d"]:
    """Every cell of `grid_size` takes the value of the coarser cell that it lies in."""
    cells = _split(y, 1, halved(grid_size))
    for axis, side in enumerate(grid_size, start=1):
        pairs = cells.unsqueeze(axis + 1)
        pairs = pairs.expand(*cells.shape[: axis + 1], 2, *cells.shape[axis + 1 :])
        cells = pairs.flatten(axis, axis + 1).narrow(axis, 0, side)
    return cells.flatten(1, -2)


def interpolate(y: Float[Tensor, "b M d"], grid_size: tuple[int, ...]) -> Float[Tensor, "b N d"]:
    """Linear interpolation between the centres of coarser cells along each axis.

    A cell lies a quarter of a coarse cell off the centre of its own, so it takes 3/4 of that one
    and 1/4 of the neighbour on its side. Centres are those of whole windows, also at the border: to
    stretch 4 cells over 7, as resizing an image would, puts values where they do not belong.
    """
    cells = _split(y, 1, halved(grid_size))
    for axis, side in enumerate(grid_size, start=1):
        count = cells.shape[axis]
        first, last = cells.narrow(axis, 0, 1), cells.narrow(axis, count - 1, 1)
        before = torch.cat([first, cells.narrow(axis, 0, count - 1)], dim=axis)
        after = torch.cat([cells.narrow(axis, 1, count - 1), last], dim=axis)
        own = 0.75 * cells
        pairs = torch.stack([own + 0.25 * before, own + 0.25 * after], dim=axis + 1)
        cells = pairs.flatten(axis, axis + 1).narrow(axis, 0, side)
    return cells.flatten(1, -2)


def _in_pairs(cells: Tensor, axis: int, fill: float) -> Tensor:
    """Split an axis into windows of two, the last filled up where the side is odd."""
    side = cells.shape[axis]
    if side % 2:
        later = cells.dim() - axis - 1
        cells = F.pad(cells, [0, 0] * later + [0, 1], value=fill)
    return _split(cells, axis, (-(-side // 2), 2))


def _split(x: Tensor, axis: int, sides: tuple[int, ...]) -> Tensor:
    return x.reshape(*x.shape[:axis], *sides, *x.shape[axis + 1 :])
