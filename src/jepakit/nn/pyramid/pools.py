"""How a coarse cell comes from the fine cells under it; every way leaves a constant field alone.

A pool is called with the finest field `[b N d]`, zeros where not valid; with `counts`, for each
level the number of valid finest cells under every cell, `[b M 1]` (or `[1 M 1]` where everything is
valid); and with the grids. It returns the fields of levels 1 and up. What it leaves in a cell
without a valid one under it is finite and read by nobody.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepakit.nn.pyramid.windows import spread, window_cells, window_max, window_sum

__all__: list[str] = []

Field = Float[Tensor, "b N d"]
Fields = list[Float[Tensor, "b _ d"]]
Counts = Sequence[Float[Tensor, "_ _ 1"]]
Grids = Sequence[tuple[int, ...]]
Pool = Callable[[Tensor, Sequence[Tensor], Sequence[tuple[int, ...]]], list[Tensor]]


def average(x: Field, counts: Counts, grids: Grids) -> Fields:
    """Mean over the valid finest cells of a window, not a mean of means."""
    fields = []
    for grid, count in zip(grids, counts[1:], strict=False):
        x = window_sum(x, grid)
        fields.append(x / count.clamp(min=1))
    return fields


def maximum(x: Field, counts: Counts, grids: Grids) -> Fields:
    """Largest value among the valid finest cells of a window, channel by channel."""
    fields = []
    if len(counts[0]) == len(x):  # one sample's counts stand for all where everything is valid
        x = x.masked_fill(counts[0] == 0, -math.inf)
    for grid, count in zip(grids, counts[1:], strict=False):
        x = window_max(x, grid)
        fields.append(x.masked_fill(count == 0, 0))
    return fields


class Convolution(nn.Module):
    r"""A strided convolution that knows which cells are there.

    $y = \bar z + \sum_k V_k (z_k - \bar z)$ over the valid cells $z_k$ of a window of the next
    finer level, where $\bar z = \sum_k w_k z_k$ is their mean over valid finest cells. The kernel,
    $w_k I + V_k - w_k \sum_j V_j$, sums to the identity whatever is missing, so a constant stays
    what it is. (Scaling up what is there, as partial convolutions do, keeps no constant unless all
    of a kernel's places are alike.) Starts, with $V = 0$, as the mean.
    """

    def __init__(self, dim: int, axes: int, num_levels: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.zeros(dim, 2**axes * dim)) for _ in range(num_levels - 1)
        )

    def forward(self, x: Field, counts: Counts, grids: Grids) -> Fields:
        fields = []
        for level, weight in enumerate(self.weights):
            grid, finer, count = grids[level], counts[level], counts[level + 1]
            mean = window_sum(x * finer, grid) / count.clamp(min=1)
            apart = window_cells(x, grid) - mean.unsqueeze(2)
            apart = apart.masked_fill(window_cells(finer, grid) == 0, 0)
            x = mean + F.linear(apart.flatten(2).to(weight.dtype), weight).to(mean.dtype)
            fields.append(x)
        return fields


class Attention(nn.Module):
    r"""A learned query for each level over the valid finest cells of a window.

    $y = \sum_p a_p x_p$ with $a = \mathrm{softmax}_p(q_l \cdot x_p / \sqrt d)$. Values are the
    cells themselves, so the result is a mean of them; starts, with $q = 0$, as the plain one.
    """

    def __init__(self, dim: int, num_levels: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(num_levels - 1, dim))

    def forward(self, x: Field, counts: Counts, grids: Grids) -> Fields:
        scores = F.linear(x.to(self.queries.dtype), self.queries).to(x.dtype)
        scores = scores / math.sqrt(x.shape[-1])
        absent = counts[0] == 0
        largest = scores.detach().masked_fill(absent, -math.inf)
        fields = []
        for level in range(1, len(counts)):
            largest = window_max(largest, grids[level - 1])
            shift = largest[..., level - 1 : level]
            for grid in reversed(grids[:level]):
                shift = spread(shift, grid)
            # Filled before `exp`: an infinite value that is dropped would leave a NaN as gradient.
            weight = scores[..., level - 1 : level] - shift
            weight = weight.masked_fill(absent, -math.inf).exp()
            above, below = x * weight, weight
            for grid in grids[:level]:
                above, below = window_sum(above, grid), window_sum(below, grid)
            fields.append(above / below.masked_fill(counts[level] == 0, 1))
        return fields
