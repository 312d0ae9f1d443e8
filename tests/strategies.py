"""Hypothesis strategies that only jepakit's own tests need; the others are `jepakit.testing`'s.

`from tests.strategies import ...`: pytest's importlib mode makes the folder a package.
"""

import random
from typing import Any

from hypothesis import strategies as st

from jepakit.testing.random_samplers import multiblock_arguments, random_grid
from jepakit.testing.strategies import _random_kept


@st.composite
@_random_kept
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
