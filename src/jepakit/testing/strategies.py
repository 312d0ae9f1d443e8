"""Hypothesis strategies for grids, masks and token sets.

Needs hypothesis: `pip install "jepakit[testing]"`. `jepakit.testing` itself does not import it.
"""

import functools
import math
import operator
import random
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from jepakit._checks import as_grid_size, as_int, as_ints
from jepakit.tokens import TokenSet

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        'jepakit.testing.strategies needs hypothesis: pip install "jepakit[testing]"'
    ) from error

__all__ = ["flat_masks", "grid_sizes", "token_sets"]

P = ParamSpec("P")
R = TypeVar("R")


def _keeps_random_state(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to restore the state of Python's global generator.

    Under JEPAKIT_TYPECHECK=1 beartype checks a random item of a tuple or a sequence, and hypothesis
    forbids draws from `random` in a strategy.
    """

    @functools.wraps(function)
    def decorated(*args: P.args, **kwargs: P.kwargs) -> R:
        state = random.getstate()
        try:
            return function(*args, **kwargs)
        finally:
            random.setstate(state)

    return decorated


@_keeps_random_state
def grid_sizes(
    *, num_axes: Sequence[int] = (1, 2, 3), max_side: int = 5, min_positions: int = 1
) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw grids `(L,)`, `(H, W)` and `(T, H, W)`.

    Args:
        num_axes: Numbers of axes of the grid to draw from.
        max_side: Largest side in patches.
        min_positions: Smallest number of positions of a grid.

    Example:
        >>> from hypothesis import given, settings
        >>> from jepakit.testing.strategies import grid_sizes
        >>> @settings(max_examples=10, deadline=None)
        ... @given(grid_sizes(num_axes=(2,), max_side=8))
        ... def check(grid_size):
        ...     height, width = grid_size
        ...     assert 1 <= height * width <= 64
        >>> check()
    """
    allowed = as_ints("num_axes", num_axes, minimum=1)
    max_side = as_int("max_side", max_side, minimum=1)
    min_positions = as_int("min_positions", min_positions)
    grids = st.sampled_from(allowed).flatmap(
        lambda ndim: st.tuples(*[st.integers(1, max_side)] * ndim)
    )
    return grids.filter(lambda grid: math.prod(grid) >= min_positions)


@_keeps_random_state
def flat_masks(
    *, grid_size: Sequence[int] | None = None, num_batch_axes: int | None = None
) -> st.SearchStrategy[tuple[Bool[Tensor, "*batch N"], tuple[int, ...]]]:
    """Draw masks `[*batch, N]` with their grid, empty and full ones included.

    Args:
        grid_size: The grid in patches; any if None.
        num_batch_axes: Number of batch axes; 0 to 2 if None.

    Example:
        >>> from hypothesis import given, settings
        >>> from jepakit.testing.strategies import flat_masks
        >>> @settings(max_examples=10, deadline=None)
        ... @given(flat_masks(num_batch_axes=1))
        ... def check(case):
        ...     mask, grid_size = case
        ...     assert mask.dim() == 2
        >>> check()
    """
    if grid_size is not None:
        grid_size = as_grid_size("grid_size", grid_size)
    if num_batch_axes is not None:
        num_batch_axes = as_int("num_batch_axes", num_batch_axes, minimum=0)
    return _flat_masks(grid_size, num_batch_axes)


@_keeps_random_state
def token_sets(
    *, grid_size: Sequence[int] | None = None, num_batch_axes: int | None = None
) -> st.SearchStrategy[TokenSet]:
    """Draw ragged token sets, empty and full ones included.

    Args:
        grid_size: The grid in patches; any if None.
        num_batch_axes: Number of batch axes; 0 to 2 if None.

    Example:
        >>> import torch
        >>> from hypothesis import given, settings
        >>> from jepakit import TokenSet
        >>> from jepakit.testing.strategies import token_sets
        >>> @settings(max_examples=10, deadline=None)
        ... @given(token_sets(grid_size=(4, 4), num_batch_axes=1))
        ... def check(tokens):
        ...     twice = tokens.complement().complement()
        ...     assert torch.equal(twice.to_mask(), tokens.to_mask())
        >>> check()
    """
    masks = flat_masks(grid_size=grid_size, num_batch_axes=num_batch_axes)
    return masks.map(_keeps_random_state(lambda case: TokenSet.from_mask(*case)))


@st.composite
@_keeps_random_state
def _flat_masks(draw: Any, grid_size: Any, num_batch_axes: Any) -> Any:
    grid = draw(grid_sizes()) if grid_size is None else grid_size
    axes = draw(st.integers(0, 2)) if num_batch_axes is None else num_batch_axes
    batch = tuple(draw(st.integers(0 if axis else 1, 4)) for axis in range(axes))
    # Bits and not a seed, so that a failing example shrinks to few positions and small sets.
    everything = 2 ** math.prod(grid) - 1
    half = st.integers(0, everything)
    sparse, dense = st.builds(operator.and_, half, half), st.builds(operator.or_, half, half)
    bits = half | sparse | dense | st.sampled_from([0, everything])
    sets = draw(st.lists(bits, min_size=math.prod(batch), max_size=math.prod(batch)))
    members = [[bool(number >> k & 1) for k in range(math.prod(grid))] for number in sets]
    return torch.tensor(members, dtype=torch.bool).view(*batch, math.prod(grid)), grid
