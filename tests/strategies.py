"""Hypothesis strategies that only jepakit's own tests need; the others are `jepakit.testing`'s.

`from tests.strategies import ...`: pytest's importlib mode makes the folder a package.
"""

import random
from typing import Any

from hypothesis import strategies as st

from jepakit.testing.arguments import multiblock_arguments


@st.composite
def multiblock_cases(
    draw: st.DrawFn, *, max_side: int = 32
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Arguments of a `MultiBlockMask`, infeasible ones among them."""
    return multiblock_arguments(
        lambda low, high: draw(st.integers(low, high)),
        lambda low, high: draw(st.floats(low, high)),
        lambda options: draw(st.sampled_from(options)),
        max_side=max_side,
    )


def random_multiblock_case(rng: random.Random) -> tuple[tuple[int, int], dict[str, Any]]:
    return multiblock_arguments(rng.randint, rng.uniform, rng.choice)
