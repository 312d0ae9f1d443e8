"""Hypothesis strategies that several parts share: grids, flat masks, token sets, sampler arguments.

`from tests.strategies import ...`: pytest's importlib mode makes the folder a package.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from jepakit import TokenSet


@st.composite
def grid_sizes(
    draw: st.DrawFn, *, ndims: Sequence[int] = (1, 2, 3), max_side: int = 5
) -> tuple[int, ...]:
    ndim = draw(st.sampled_from(ndims))
    return tuple(draw(st.integers(1, max_side)) for _ in range(ndim))


@st.composite
def flat_masks(
    draw: st.DrawFn, *, grid_size: tuple[int, ...] | None = None, num_axes: int | None = None
) -> tuple[Tensor, tuple[int, ...]]:
    """Masks `[*batch, N]` with their grid; empty sets, full sets and empty batches among them."""
    grid = draw(grid_sizes()) if grid_size is None else grid_size
    axes = draw(st.integers(0, 2)) if num_axes is None else num_axes
    batch = tuple(draw(st.integers(0 if axis else 1, 4)) for axis in range(axes))
    density = draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    # A density for every set, so that counts differ and a set may be empty beside a full one.
    level = torch.rand(*batch, 1, generator=generator) if draw(st.booleans()) else density
    return torch.rand(*batch, math.prod(grid), generator=generator) < level, grid


@st.composite
def token_sets(
    draw: st.DrawFn, *, grid_size: tuple[int, ...] | None = None, num_axes: int | None = None
) -> TokenSet:
    mask, grid = draw(flat_masks(grid_size=grid_size, num_axes=num_axes))
    # beartype looks at a random item of a tuple, and hypothesis forbids `random` in a strategy.
    state = random.getstate()
    tokens = TokenSet.from_mask(mask, grid)
    random.setstate(state)
    return tokens


def multiblock_arguments(
    integer: Callable[[int, int], int],
    fraction: Callable[[float, float], float],
    choose: Callable[[Sequence[Any]], Any],
    *,
    max_side: int = 32,
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Arguments of a `MultiBlockMask`, from whatever draws numbers; most of them feasible."""
    grid = (integer(2, max_side), integer(2, max_side))
    size = math.prod(grid)
    num_targets = integer(1, 8)
    overlap = choose([True, True, False])
    # Small blocks for many disjoint targets, up to half of the grid otherwise.
    most = 0.5 if overlap else 0.4 / num_targets
    high = math.exp(fraction(math.log(0.004), math.log(most)))
    low = high * choose([1.0, fraction(0.2, 1.0)])
    a0 = math.exp(fraction(-1.2, 0.8))
    a1 = a0 * math.exp(fraction(0.0, 1.0)) if choose([True, True, False]) else a0
    c1 = choose([1.0, fraction(0.3, 1.0)])
    c0 = c1 * choose([1.0, fraction(0.3, 1.0)])
    room = max(0.0, c1 - high * (1 if overlap else num_targets))
    coverage = choose([0.0, room, room * fraction(0.0, 1.0), room * fraction(0.0, 1.0)])
    need = max(1, math.floor(coverage * size))
    length = choose(["pad", "trim", "int"])
    return grid, {
        "num_targets": num_targets,
        "target_scale": (low, high),
        "target_aspect_ratio": (a0, a1),
        "context_scale": (c0, c1),
        "min_context_coverage": coverage,
        "allow_target_overlap": overlap,
        "block_size": choose(["batch", "sample"]),
        "context_length": integer(1, need) if length == "int" else length,
    }


@st.composite
def multiblock_cases(
    draw: st.DrawFn, *, max_side: int = 32
) -> tuple[tuple[int, int], dict[str, Any]]:
    return multiblock_arguments(
        lambda low, high: draw(st.integers(low, high)),
        lambda low, high: draw(st.floats(low, high)),
        lambda options: draw(st.sampled_from(options)),
        max_side=max_side,
    )


def random_multiblock_case(rng: random.Random) -> tuple[tuple[int, int], dict[str, Any]]:
    return multiblock_arguments(rng.randint, rng.uniform, rng.choice)
