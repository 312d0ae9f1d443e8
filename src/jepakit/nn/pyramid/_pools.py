"""Pools of a pyramid, and the windows and fields that they are made of.

A field is flat over its grid, `[b N d]`. A window is two cells along each axis, cut off by the
border, and becomes one cell of the next coarser grid. Windows are views, sums and maxima axis by
axis: the same code for one, two and three axes, deterministic on every device.

A pool is called with the finest field, zeros where not valid; with `counts`, for each level the
number of valid finest cells under every cell, `[b M 1]` (or `[1 M 1]` where everything is valid);
and with the grids. It returns the fields of levels 1 and up. Cells with no valid finest cell under
them hold finite values that the caller drops. No pool changes a constant field.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepakit.tokens import TokenSet, put_tokens, take_tokens

Field = Float[Tensor, "b N d"]
Fields = list[Float[Tensor, "b _ d"]]
Counts = Sequence[Float[Tensor, "_ _ 1"]]
Grids = Sequence[tuple[int, ...]]
Pool = Callable[[Tensor, Sequence[Tensor], Grids], list[Tensor]]


def average(x: Field, counts: Counts, grids: Grids) -> Fields:
    """Mean over the valid finest cells of a window, not a mean of means."""
    fields = []
    for grid, count in zip(grids[: len(counts) - 1], counts[1:], strict=True):
        x = window_sum(x, grid)
        fields.append(x / count.clamp(min=1))
    return fields


def maximum(x: Field, counts: Counts, grids: Grids) -> Fields:
    """Maximum over the valid finest cells of a window, channel by channel."""
    fields = []
    if len(counts[0]) == len(x):  # else all cells are valid, and one sample's counts stand for all
        x = x.masked_fill(counts[0] == 0, -math.inf)
    for grid, count in zip(grids[: len(counts) - 1], counts[1:], strict=True):
        x = window_max(x, grid)
        fields.append(x.masked_fill(count == 0, 0))
    return fields


class WindowConvolution(nn.Module):
    r"""A convolution with stride 2 from each level to the next, over valid cells.

    $y = \bar z + \sum_k V_k (z_k - \bar z)$ over the valid cells $z_k$ of a window of the next
    finer level, where $\bar z = \sum_k w_k z_k$ is their mean over valid finest cells. The kernel,
    $w_k I + V_k - w_k \sum_j V_j$, sums to the identity whichever cells are missing, so a constant
    is preserved. (Scaling up the cells that are there, as partial convolutions do, preserves no
    constant unless a kernel is the same at all places.) Starts, with $V = 0$, as the mean.
    """

    def __init__(self, dim: int, axes: int, num_levels: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.zeros(dim, 2**axes * dim)) for _ in range(num_levels - 1)
        )

    def forward(self, x: Field, counts: Counts, grids: Grids) -> Fields:
        fields = []
        for level, weight in enumerate(self.weights):
            grid, count, coarse_count = grids[level], counts[level], counts[level + 1]
            mean = window_sum(x * count, grid) / coarse_count.clamp(min=1)
            deviation = window_cells(x, grid) - mean.unsqueeze(2)
            deviation = deviation.masked_fill(window_cells(count, grid) == 0, 0)
            x = mean + F.linear(deviation.flatten(2).to(weight.dtype), weight).to(mean.dtype)
            fields.append(x)
        return fields


class WindowAttention(nn.Module):
    r"""A mean over the valid finest cells of a window, weighted by a learned query of the level.

    $y = \sum_p a_p x_p$ with $a = \mathrm{softmax}_p(q_l \cdot x_p / \sqrt d)$. Values are the
    cells themselves; starts, with $q = 0$, as the plain mean.
    """

    def __init__(self, dim: int, num_levels: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(num_levels - 1, dim))

    def forward(self, x: Field, counts: Counts, grids: Grids) -> Fields:
        scores = F.linear(x.to(self.queries.dtype), self.queries).to(x.dtype)
        scores = scores / math.sqrt(x.shape[-1])  # [b N num_levels-1]
        absent = counts[0] == 0
        largest = scores.detach().masked_fill(absent, -math.inf)
        fields = []
        for level in range(1, len(counts)):
            # A softmax within each window: sum_p exp(s_p - m) x_p / sum_p exp(s_p - m), where the
            # maximum m of the window cancels and keeps exp from overflowing. A window with scores
            # 1, 3 and an absent cell has m = 3 and the weights exp(-2), 1 and 0, so it becomes
            # (0.135 x_1 + x_2) / 1.135.
            largest = window_max(largest, grids[level - 1])
            shift = largest[..., level - 1 : level]
            for grid in reversed(grids[:level]):
                shift = spread(shift, grid)
            # Masked before `exp`: an infinity that is masked afterwards has a NaN as gradient.
            weight = scores[..., level - 1 : level] - shift
            weight = weight.masked_fill(absent, -math.inf).exp()
            numerator, denominator = x * weight, weight
            for grid in grids[:level]:
                numerator, denominator = window_sum(numerator, grid), window_sum(denominator, grid)
            fields.append(numerator / denominator.masked_fill(counts[level] == 0, 1))
        return fields


# Windows


def window_sum(x: Float[Tensor, "b N d"], grid_size: tuple[int, ...]) -> Float[Tensor, "b M d"]:
    """Sum over every window."""
    cells = split_axis(x, 1, grid_size)
    for axis in range(1, len(grid_size) + 1):
        cells = _in_pairs(cells, axis, 0.0).sum(dim=axis + 1)
    return cells.flatten(1, -2)


def window_max(x: Float[Tensor, "b N d"], grid_size: tuple[int, ...]) -> Float[Tensor, "b M d"]:
    """Maximum over every window."""
    cells = split_axis(x, 1, grid_size)
    for axis in range(1, len(grid_size) + 1):
        # The gradient of `amax` is ten times slower.
        first, second = _in_pairs(cells, axis, -math.inf).unbind(axis + 1)
        cells = torch.maximum(first, second)
    return cells.flatten(1, -2)


def window_cells(x: Float[Tensor, "b N d"], grid_size: tuple[int, ...]) -> Float[Tensor, "b M k d"]:
    """The `k = 2**axes` cells of every window, row-major; zeros beyond the border."""
    cells = split_axis(x, 1, grid_size)
    axes = len(grid_size)
    windows, places = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    for axis in windows:
        cells = _in_pairs(cells, axis, 0.0)
    # For two axes [b, H, 2, W, 2, d]: windows are the odd axes, places within them the even ones.
    return cells.permute(0, *windows, *places, 2 * axes + 1).flatten(1, axes).flatten(2, -2)


def spread(y: Float[Tensor, "b M d"], grid_size: tuple[int, ...]) -> Float[Tensor, "b N d"]:
    """Copy every coarse cell to the cells of `grid_size` that lie in it."""
    cells = split_axis(y, 1, halved(grid_size))
    for axis, side in enumerate(grid_size, start=1):
        pairs = cells.unsqueeze(axis + 1)
        pairs = pairs.expand(*cells.shape[: axis + 1], 2, *cells.shape[axis + 1 :])
        cells = pairs.flatten(axis, axis + 1).narrow(axis, 0, side)
    return cells.flatten(1, -2)


def halved(grid_size: tuple[int, ...]) -> tuple[int, ...]:
    """The next coarser grid: sides halved, upwards."""
    return tuple(-(-side // 2) for side in grid_size)


def split_axis(x: Tensor, axis: int, sides: tuple[int, ...]) -> Tensor:
    """Split one axis of a tensor into several."""
    return x.reshape(*x.shape[:axis], *sides, *x.shape[axis + 1 :])


def _in_pairs(cells: Tensor, axis: int, fill: float) -> Tensor:
    """Split an axis into windows of two, the last one filled up where the side is odd."""
    if cells.shape[axis] % 2:
        cells = F.pad(cells, [0, 0] * (cells.dim() - axis - 1) + [0, 1], value=fill)
    return split_axis(cells, axis, (cells.shape[axis] // 2, 2))


# Between the features of token sets and fields


def is_whole(tokens: TokenSet) -> bool:
    """True if every position is valid in every sample, judged by `padded` and shapes alone."""
    return not tokens.padded and tokens.shape[-1] == tokens.num_positions


def to_field(features: Float[Tensor, "b n d"], tokens: TokenSet) -> Float[Tensor, "b N d"]:
    """Features at their positions, zeros elsewhere."""
    return features if is_whole(tokens) else put_tokens(features, tokens)


def from_field(field: Float[Tensor, "b N d"], tokens: TokenSet) -> Float[Tensor, "b n d"]:
    """Features of a field at the positions of a set, zeros at padding."""
    return field if is_whole(tokens) else take_tokens(field, tokens)
