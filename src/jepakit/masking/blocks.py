"""Rectangular blocks on a grid: which sizes a range of scales gives, and where blocks fit.

Everything is done for a whole batch at once. A size is a pair of tensors `(height, width)` with
either one entry for the batch or one for each sample.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__: list[str] = []

# Relative slack for sizes on the border of a range, where rounding could go either way.
_SLACK = 1e-12


def nearest(value: float) -> int:
    """The nearest integer, halves upwards."""
    return math.floor(value + 0.5)


def reachable_sizes(
    grid_size: tuple[int, int], scale: tuple[float, float], aspect_ratio: tuple[float, float]
) -> list[tuple[int, int]]:
    """Every size (height, width) that a scale and an aspect ratio from the ranges round to.

    In logarithms, with area $s N$, a size (h, w) is the image of the ratios and scales with
    $\\log(sNa) \\in [a_0, a_1]$ and $\\log(sN/a) \\in [b_0, b_1]$; such a rectangle, turned by 45
    degrees, meets that of the ranges where every pair of its four borders leaves room.
    """
    height, width = grid_size
    area = height * width
    s0, s1 = math.log(scale[0] * area), math.log(scale[1] * area)
    r0, r1 = math.log(aspect_ratio[0]), math.log(aspect_ratio[1])
    sizes = []
    for h in range(1, height + 1):
        a0, a1 = _log_square_interval(h, height)
        for w in range(1, width + 1):
            b0, b1 = _log_square_interval(w, width)
            low = max(s0, r0 + b0, a0 - r1, (a0 + b0) / 2)
            high = min(s1, a1 - r0, r1 + b1, (a1 + b1) / 2)
            if low <= high + _SLACK:
                sizes.append((h, w))
    return sizes


def _log_square_interval(side: int, limit: int) -> tuple[float, float]:
    """Logarithms of the squares that round to `side`, where sides are clipped to `[1, limit]`."""
    low = 2 * math.log(side - 0.5) if side > 1 else -math.inf
    return low, 2 * math.log(side + 0.5) if side < limit else math.inf


def draw_sizes(
    grid_size: tuple[int, int],
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    uniforms: Float[Tensor, "k 2"],
    *,
    largest: int,
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Sizes with uniform scale and, independently, log-uniform aspect ratio (height / width)."""
    height, width = grid_size
    u = uniforms.double()
    area = (scale[0] + (scale[1] - scale[0]) * u[:, 0]) * (height * width)
    low, high = math.log(aspect_ratio[0]), math.log(aspect_ratio[1])
    aspect = torch.exp(low + (high - low) * u[:, 1])
    h = torch.floor((area * aspect).sqrt() + 0.5).long().clamp(1, height)
    w = torch.floor((area / aspect).sqrt() + 0.5).long().clamp(1, width)
    # The last bit of a root must not make a block larger than what feasibility was checked for.
    return h, torch.minimum(w, largest // h)


@dataclass(frozen=True)
class ScaledSizes:
    """The sizes that a uniform scale gives a block with the grid's own aspect, with probabilities."""

    heights: Int[Tensor, " k"]
    widths: Int[Tensor, " k"]
    cumulative: Float[Tensor, " k"]
    largest: int

    @classmethod
    def from_range(
        cls, grid_size: tuple[int, int], scale: tuple[float, float], *, smallest: int
    ) -> "ScaledSizes":
        """Sizes for scales in the range whose low end is raised until the area is `smallest`."""
        height, width = grid_size
        # A side changes where its root crosses a half: between those scales the size is constant.
        borders = {((k + 0.5) / side) ** 2 for side in grid_size for k in range(1, side)}
        inner = sorted(border for border in borders if scale[0] < border < scale[1])
        edges = [scale[0], *inner, scale[1]]
        sizes: dict[tuple[int, int], float] = {}
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            root = math.sqrt((low + high) / 2)
            size = max(1, nearest(height * root)), max(1, nearest(width * root))
            # A point range has one size, certain; its length of 0 must not divide by 0.
            weight = high - low if scale[0] < scale[1] else 1.0
            sizes[size] = sizes.get(size, 0.0) + weight
        largest = max(h * w for h, w in sizes)
        kept = {size: weight for size, weight in sizes.items() if size[0] * size[1] >= smallest}
        weights = torch.tensor(list(kept.values()), dtype=torch.float64)
        return cls(
            torch.tensor([h for h, _ in kept], dtype=torch.int64),
            torch.tensor([w for _, w in kept], dtype=torch.int64),
            weights.cumsum(0) / weights.sum(),
            largest,
        )

    def draw(self, uniforms: Float[Tensor, " k"]) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        """One size for each number in [0, 1)."""
        at = torch.searchsorted(self.cumulative, uniforms.double(), right=True)
        at = at.clamp_max(len(self.heights) - 1)
        return self.heights[at], self.widths[at]


def box_sums(
    field: Bool[Tensor, "b H W"], h: Int[Tensor, " k"], w: Int[Tensor, " k"]
) -> Int[Tensor, "b H W"]:
    """How many cells are True under a block with its first corner at each position.

    Blocks that would stick out are clipped; see `legal_corners`.
    """
    batch, height, width = field.shape
    table = F.pad(field.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32), (1, 0, 1, 0))
    below = (torch.arange(height, device=field.device) + h[:, None]).clamp_max(height)
    right = (torch.arange(width, device=field.device) + w[:, None]).clamp_max(width)
    if len(h) == 1:  # one size for the batch: the same lookup for all, and faster
        bands = table.index_select(1, below[0]) - table[:, :height]
        return bands.index_select(2, right[0]) - bands[:, :, :width]
    bands = table.gather(1, below[:, :, None].expand(-1, -1, width + 1)) - table[:, :height]
    return bands.gather(2, right[:, None].expand(-1, height, -1)) - bands[:, :, :width]


def legal_corners(
    grid_size: tuple[int, int], h: Int[Tensor, " k"], w: Int[Tensor, " k"]
) -> Bool[Tensor, "k H W"]:
    """Positions at which the first corner of a block leaves it whole on the grid."""
    height, width = grid_size
    rows = torch.arange(height, device=h.device) <= height - h[:, None]
    cols = torch.arange(width, device=h.device) <= width - w[:, None]
    return rows[:, :, None] & cols[:, None]


def choose_corner(
    allowed: Bool[Tensor, "b H W"], uniforms: Float[Tensor, " b"]
) -> tuple[Int[Tensor, " b"], Bool[Tensor, " b"]]:
    """One allowed position for each sample, all equally likely, and whether there was any.

    The position is flat (row-major), and 0 where nothing is allowed.
    """
    order = allowed.flatten(1).cumsum(1, dtype=torch.int32)
    total = order[:, -1]
    chosen = torch.minimum((uniforms * total).int(), total - 1)
    return torch.searchsorted(order, chosen[:, None] + 1).squeeze(1), total > 0


def block_cells(
    grid_size: tuple[int, int],
    corner: Int[Tensor, "b *m"],
    h: Int[Tensor, " k"],
    w: Int[Tensor, " k"],
    *,
    length: int,
) -> tuple[Int[Tensor, "b *m n"], Bool[Tensor, "k n"]]:
    """Flat positions of the cells of blocks, ascending, and which of `length` entries exist.

    Entries past a block's area repeat its first corner, so writing one value to all is safe.
    """
    entry = torch.arange(length, device=corner.device)
    valid = entry < (h * w)[:, None]
    offset = entry // w[:, None] * grid_size[1] + entry % w[:, None]
    offset = offset.masked_fill(~valid, 0)
    return corner[..., None] + offset.view(-1, *[1] * (corner.dim() - 1), length), valid


def paint(
    field: Bool[Tensor, "b H W"], cells: Int[Tensor, "b *m n"], value: bool
) -> Bool[Tensor, "b H W"]:
    """The field with `value` at the given flat positions."""
    return field.flatten(1).scatter(1, cells.flatten(1), value).view_as(field)
