"""Sizes of blocks: which a range of scales can give, and draws of them.

A block on `(T, H, W)` is a rectangle in space, by scale and aspect ratio, over a stretch of time,
by a scale of its own; on `(L,)` it is a stretch alone.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__: list[str] = []

# Relative slack for sizes on the border of a range, where rounding could go either way.
_SLACK = 1e-12


def nearest(value: float) -> int:
    """The nearest integer, halves upwards."""
    return math.floor(value + 0.5)


def reachable_sizes(
    grid_size: tuple[int, ...],
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    temporal_scale: tuple[float, float],
) -> list[tuple[int, ...]]:
    """Every size that scales and an aspect ratio from the ranges round to."""
    if len(grid_size) == 1:
        return [(length,) for length in reachable_lengths(grid_size[0], scale)]
    *time, height, width = grid_size
    planes = reachable_rectangles((height, width), scale, aspect_ratio)
    if not time:
        return list(planes)
    return [(t, h, w) for t in reachable_lengths(time[0], temporal_scale) for h, w in planes]


def reachable_lengths(side: int, scale: tuple[float, float]) -> range:
    """Every length that a scale from the range rounds to."""
    first, last = (min(max(1, nearest(end * side)), side) for end in scale)
    return range(first, last + 1)


def reachable_rectangles(
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
    columns = [(w, *_log_square_interval(w, width)) for w in range(1, width + 1)]
    sizes = []
    for h in range(1, height + 1):
        a0, a1 = _log_square_interval(h, height)
        for w, b0, b1 in columns:
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
    grid_size: tuple[int, ...],
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    temporal_scale: tuple[float, float],
    uniforms: Float[Tensor, "k 3"],
    *,
    largest_plane: int,
) -> Int[Tensor, "k axes"]:
    """Sizes with uniform scales and, independently, log-uniform aspect ratio (height / width)."""
    u_scale, u_aspect, u_temporal = uniforms.double().unbind(1)
    if len(grid_size) == 1:
        return _draw_lengths(grid_size[0], scale, u_scale)[:, None]
    *time, height, width = grid_size
    area = (scale[0] + (scale[1] - scale[0]) * u_scale) * (height * width)
    low, high = math.log(aspect_ratio[0]), math.log(aspect_ratio[1])
    aspect = torch.exp(low + (high - low) * u_aspect)
    h = torch.floor((area * aspect).sqrt() + 0.5).long().clamp(1, height)
    w = torch.floor((area / aspect).sqrt() + 0.5).long().clamp(1, width)
    # The last bit of a root must not make a block larger than what feasibility was checked for.
    plane = [h, torch.minimum(w, largest_plane // h)]
    stretch = [_draw_lengths(side, temporal_scale, u_temporal) for side in time]
    return torch.stack([*stretch, *plane], dim=1)


def _draw_lengths(
    side: int, scale: tuple[float, float], uniforms: Float[Tensor, " k"]
) -> Int[Tensor, " k"]:
    lengths = torch.floor((scale[0] + (scale[1] - scale[0]) * uniforms) * side + 0.5).long()
    reachable = reachable_lengths(side, scale)
    return lengths.clamp(reachable[0], reachable[-1])


@dataclass(frozen=True)
class ScaledSizes:
    """The sizes, and their chances, of a block with the grid's own aspect and a uniform scale.

    On `(T, H, W)` the scale is of space, and the block spans the first `frames`.
    """

    sizes: Int[Tensor, "k axes"]
    cumulative: Float[Tensor, " k"]
    largest: int

    @classmethod
    def from_range(
        cls, grid_size: tuple[int, ...], scale: tuple[float, float], *, frames: int, smallest: int
    ) -> "ScaledSizes":
        """Sizes for scales in the range whose low end is raised until the volume is `smallest`."""
        space = grid_size[-2:]
        power = 1 / len(space)
        # A side changes where its root crosses a half: between those scales the size is constant.
        borders = {((k + 0.5) / side) ** len(space) for side in space for k in range(1, side)}
        inner = sorted(border for border in borders if scale[0] < border < scale[1])
        edges = [scale[0], *inner, scale[1]]
        sizes: dict[tuple[int, ...], float] = {}
        for low, high in pairwise(edges):
            root = ((low + high) / 2) ** power
            size = tuple(max(1, nearest(side * root)) for side in space)
            if len(grid_size) == 3:
                size = (frames, *size)
            # A point range has one size, certain; its length of 0 must not divide by 0.
            weight = high - low if scale[0] < scale[1] else 1.0
            sizes[size] = sizes.get(size, 0.0) + weight
        largest = max(math.prod(size) for size in sizes)
        kept = {size: weight for size, weight in sizes.items() if math.prod(size) >= smallest}
        weights = torch.tensor(list(kept.values()), dtype=torch.float64, device="cpu")
        return cls(
            torch.tensor(list(kept), dtype=torch.int64, device="cpu"),
            weights.cumsum(0) / weights.sum(),
            largest,
        )

    def draw(self, uniforms: Float[Tensor, " k"]) -> Int[Tensor, "k axes"]:
        """One size for each number in [0, 1)."""
        at = torch.searchsorted(self.cumulative, uniforms.double(), right=True)
        return self.sizes[at.clamp_max(len(self.sizes) - 1)]
