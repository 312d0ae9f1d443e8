"""Hypothesis strategies that only jepakit's own tests need; the others are `jepakit.testing`'s.

`from tests.strategies import ...`: pytest's importlib mode makes the folder a package.
"""

import random
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from tests.masking.random_samplers import (
    KINDS,
    SMALL,
    multiblock_arguments,
    random_grid,
    random_sampler,
)

from jepakit.testing.strategies import _keeps_random_state


@st.composite
@_keeps_random_state
def samplers(
    draw: st.DrawFn, kind: str | None = None, *, largest: Mapping[int, tuple[int, ...]] = SMALL
) -> Any:
    """Feasible samplers of every class and option, on grids of one to three axes.

    `kind` is the name of a class, `largest` the largest sides of a grid by its number of axes.
    `ReferenceMultiBlockMask` is left out: it reproduces a sampler that violates law 1, whose
    contexts may overlap targets and, cut to the shortest, be of any length.
    """
    rng = draw(st.randoms(use_true_random=False))
    return random_sampler(kind or rng.choice(list(KINDS)), rng, dict(largest))


@st.composite
@_keeps_random_state
def multiblock_cases(
    draw: st.DrawFn, *, max_side: int = 32
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Arguments of a `MultiBlockMask` of images, infeasible ones among them."""
    rng = draw(st.randoms(use_true_random=False))
    return random_multiblock_case(rng, max_side=max_side)


def random_multiblock_case(
    rng: random.Random, *, max_side: int = 32
) -> tuple[tuple[int, int], dict[str, Any]]:
    grid = random_grid(rng, 2, {2: (max_side, max_side)})
    return grid, multiblock_arguments(rng, grid)
