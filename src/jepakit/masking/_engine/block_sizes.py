"""Sizes of blocks: those that a range of scales can give, and random draws of them.

A block on `(T, H, W)` is a rectangle in space, from a scale and an aspect ratio, times a number of
frames, from a scale of its own. On `(L,)` it is a length alone.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Relative slack for sizes on the border of a range, where rounding could go either way.
_SLACK = 1e-12


def round_half_up(value: float) -> int:
    return math.floor(value + 0.5)


def reachable_sizes(
    grid_size: tuple[int, ...],
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    temporal_scale: tuple[float, float],
) -> list[tuple[int, ...]]:
    """Every block size that scales and an aspect ratio from the ranges round to."""
    if len(grid_size) == 1:
        return [(length,) for length in reachable_lengths(grid_size[0], scale)]
    *time, height, width = grid_size
    rectangles = reachable_rectangles((height, width), scale, aspect_ratio)
    if not time:
        return list(rectangles)
    return [(t, h, w) for t in reachable_lengths(time[0], temporal_scale) for h, w in rectangles]


def reachable_lengths(side: int, scale: tuple[float, float]) -> range:
    """Every length that a scale from the range rounds to."""
    shortest, longest = (min(max(1, round_half_up(end * side)), side) for end in scale)
    return range(shortest, longest + 1)


def reachable_rectangles(
    grid_size: tuple[int, int], scale: tuple[float, float], aspect_ratio: tuple[float, float]
) -> list[tuple[int, int]]:
    """Every (height, width) that a scale and an aspect ratio from the ranges round to.

    Before rounding, a block of area $A = sN$ and aspect ratio $r$ has the height $\\sqrt{Ar}$ and
    the width $\\sqrt{A/r}$. With $a = \\log A$ and $\\rho = \\log r$ it rounds to (h, w) if

    $$a + \\rho \\in [2\\log(h - 0.5),\\; 2\\log(h + 0.5)], \\quad
      a - \\rho \\in [2\\log(w - 0.5),\\; 2\\log(w + 0.5)]$$

    so (h, w) is reachable if some $(a, \\rho)$ in the ranges fulfils both. Eliminating $\\rho$
    leaves four lower and four upper bounds of $a$, and no lower one may exceed an upper one.
    """
    height, width = grid_size
    area = height * width
    a_low, a_high = (math.log(end * area) for end in scale)
    rho_low, rho_high = (math.log(end) for end in aspect_ratio)
    widths = [(w, *_log_square_interval(w, width)) for w in range(1, width + 1)]
    sizes = []
    for h in range(1, height + 1):
        h_low, h_high = _log_square_interval(h, height)
        for w, w_low, w_high in widths:
            low = max(a_low, w_low + rho_low, h_low - rho_high, (h_low + w_low) / 2)
            high = min(a_high, h_high - rho_low, w_high + rho_high, (h_high + w_high) / 2)
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
    largest_rectangle: int,
    extents: Int[Tensor, "_ axes"] | None = None,
    num_cells: Int[Tensor, " _"] | None = None,
) -> Int[Tensor, "_ axes"]:
    """Sizes with uniform scales and, independently, log-uniform aspect ratio (height / width).

    Scales are fractions of the grid or, where samples hold a part of it, of their `num_cells`
    within a box of `extents`.
    """
    if extents is None or num_cells is None:
        extents = torch.tensor([grid_size], device=uniforms.device)
        num_cells = extents.prod(dim=1)
    u_scale, u_aspect, u_temporal = uniforms.double().unbind(1)
    if len(grid_size) == 1:
        return _draw_lengths(scale, u_scale, num_cells).minimum(extents[:, 0])[:, None]
    *time, height, width = extents.unbind(1)
    area = (scale[0] + (scale[1] - scale[0]) * u_scale) * num_cells
    if time:
        area = area / time[0]
    low, high = math.log(aspect_ratio[0]), math.log(aspect_ratio[1])
    aspect = torch.exp(low + (high - low) * u_aspect)
    h = torch.floor((area * aspect).sqrt() + 0.5).long().clamp_min(1).minimum(height)
    w = torch.floor((area / aspect).sqrt() + 0.5).long().clamp_min(1).minimum(width)
    # The last bit of a root must not make a block larger than what feasibility was checked for.
    w = torch.minimum(w, largest_rectangle // h)
    frames = [_draw_lengths(temporal_scale, u_temporal, side) for side in time]
    return torch.stack([*frames, h, w], dim=1)


def _draw_lengths(
    scale: tuple[float, float], uniforms: Float[Tensor, " _"], side: Int[Tensor, " _"]
) -> Int[Tensor, " _"]:
    lengths = torch.floor((scale[0] + (scale[1] - scale[0]) * uniforms) * side + 0.5)
    # Nor must that of a product; see `reachable_lengths`.
    longest = torch.floor(scale[1] * side.double() + 0.5)
    return lengths.minimum(longest).long().clamp_min(1).minimum(side)


@dataclass(frozen=True)
class ContextBlockSizes:
    """Sizes of a block with the grid's own aspect and a uniform scale, with their probabilities.

    On `(T, H, W)` the scale is one of space, and the block has the first `frames` frames.
    """

    sizes: Int[Tensor, "k axes"]
    cumulative_probability: Float[Tensor, " k"]
    largest_volume: int

    @classmethod
    def from_range(
        cls, grid_size: tuple[int, ...], scale: tuple[float, float], *, frames: int, min_volume: int
    ) -> "ContextBlockSizes":
        """Sizes for scales in the range, whose low end is raised to the first of `min_volume`.

        `largest_volume` is that of the whole range, also where no size is as large as `min_volume`.
        """
        space = grid_size[-2:]
        # A side changes where side * scale^(1/axes) crosses a half; between two such scales the
        # size is constant. On 4 x 4 the borders are (1.5/4)^2 = 0.14, (2.5/4)^2 = 0.39 and
        # (3.5/4)^2 = 0.77, so scales in (0.3, 1.0) give 2 x 2, 3 x 3 and 4 x 4 with the
        # probabilities 0.09 / 0.7, 0.38 / 0.7 and 0.23 / 0.7.
        borders = {((k + 0.5) / side) ** len(space) for side in space for k in range(1, side)}
        inner = sorted(border for border in borders if scale[0] < border < scale[1])
        weights: dict[tuple[int, ...], float] = {}
        for low, high in pairwise([scale[0], *inner, scale[1]]):
            root = ((low + high) / 2) ** (1 / len(space))
            size = tuple(max(1, round_half_up(side * root)) for side in space)
            if len(grid_size) == 3:
                size = (frames, *size)
            # A range of a single scale has one size, of weight 1 instead of its length 0.
            weight = high - low if scale[0] < scale[1] else 1.0
            weights[size] = weights.get(size, 0.0) + weight
        kept = {size: w for size, w in weights.items() if math.prod(size) >= min_volume}
        kept_weights = torch.tensor(list(kept.values()), dtype=torch.float64, device="cpu")
        return cls(
            torch.tensor(list(kept), dtype=torch.int64, device="cpu"),
            kept_weights.cumsum(0) / kept_weights.sum(),
            max(math.prod(size) for size in weights),
        )

    def draw(self, uniforms: Float[Tensor, " k"]) -> Int[Tensor, "k axes"]:
        number = torch.searchsorted(self.cumulative_probability, uniforms.double(), right=True)
        return self.sizes[number.clamp_max(len(self.sizes) - 1)]
