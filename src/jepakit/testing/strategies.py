"""Hypothesis strategies for grids, masks, token sets and samplers.

Needs hypothesis: `pip install "jepakit[testing]"`. `jepakit.testing` itself does not import it.
"""

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from jepakit._checks import check_choice
from jepakit.testing.random_samplers import KINDS, SMALL, random_sampler
from jepakit.tokens import TokenSet

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        'jepakit.testing.strategies needs hypothesis: pip install "jepakit[testing]"'
    ) from error

__all__ = [
    "flat_masks",
    "grid_sizes",
    "samplers",
    "token_sets",
]

P = ParamSpec("P")
R = TypeVar("R")


def _random_kept(function: Callable[P, R]) -> Callable[P, R]:
    """Leave Python's global generator as it was.

    Under JEPAKIT_TYPECHECK=1 beartype looks at a random item of a tuple or a sequence, and
    hypothesis forbids `random` in a strategy.
    """

    @functools.wraps(function)
    def kept(*args: P.args, **kwargs: P.kwargs) -> R:
        state = random.getstate()
        try:
            return function(*args, **kwargs)
        finally:
            random.setstate(state)

    return kept


@_random_kept
def grid_sizes(
    *, ndims: Sequence[int] = (1, 2, 3), max_side: int = 5, min_positions: int = 1
) -> st.SearchStrategy[tuple[int, ...]]:
    """Grids `(L,)`, `(H, W)` and `(T, H, W)`.

    Args:
        ndims: Numbers of axes to draw from.
        max_side: Largest side in patches.
        min_positions: Positions that a grid has at least.

    Example:
        >>> from hypothesis import given, settings
        >>> from jepakit.testing.strategies import grid_sizes
        >>> @settings(max_examples=10, deadline=None)
        ... @given(grid_sizes(ndims=(2,), max_side=8))
        ... def check(grid_size):
        ...     height, width = grid_size
        ...     assert 1 <= height * width <= 64
        >>> check()

    Source:
        jepakit's own.
    """
    grids = st.sampled_from(list(ndims)).flatmap(
        lambda ndim: st.tuples(*[st.integers(1, max_side)] * ndim)
    )
    return grids.filter(lambda grid: math.prod(grid) >= min_positions)


@_random_kept
def flat_masks(
    *, grid_size: tuple[int, ...] | None = None, num_axes: int | None = None
) -> st.SearchStrategy[tuple[Bool[Tensor, "*batch N"], tuple[int, ...]]]:
    """Masks `[*batch, N]` with their grid; empty and full sets are among them.

    Args:
        grid_size: The grid in patches; any if None.
        num_axes: Number of batch axes; 0 to 2 if None.

    Example:
        >>> from hypothesis import given, settings
        >>> from jepakit.testing.strategies import flat_masks
        >>> @settings(max_examples=10, deadline=None)
        ... @given(flat_masks(num_axes=1))
        ... def check(case):
        ...     mask, grid_size = case
        ...     assert mask.dim() == 2
        >>> check()

    Source:
        jepakit's own.
    """
    return _flat_masks(grid_size, num_axes)


@_random_kept
def token_sets(
    *, grid_size: tuple[int, ...] | None = None, num_axes: int | None = None
) -> st.SearchStrategy[TokenSet]:
    """Ragged token sets; empty and full sets are among them.

    Args:
        grid_size: The grid in patches; any if None.
        num_axes: Number of batch axes; 0 to 2 if None.

    Example:
        >>> import torch
        >>> from hypothesis import given, settings
        >>> from jepakit import TokenSet
        >>> from jepakit.testing.strategies import token_sets
        >>> @settings(max_examples=10, deadline=None)
        ... @given(token_sets(grid_size=(4, 4), num_axes=1))
        ... def check(tokens):
        ...     twice = tokens.complement().complement()
        ...     assert torch.equal(twice.to_mask(), tokens.to_mask())
        >>> check()

    Source:
        jepakit's own.
    """
    return _token_sets(grid_size, num_axes)


@_random_kept
def samplers(
    kind: str | None = None, *, largest: Mapping[int, tuple[int, ...]] = SMALL
) -> st.SearchStrategy[Any]:
    """Feasible samplers of every kind and option, on grids of one to three axes.

    `ReferenceMultiBlockMask` is left out: it reproduces a sampler that breaks law 1, whose contexts
    may hold targets and, cut to the shortest, be of any length.

    Args:
        kind: Name of a class, such as `"MultiBlockMask"`; any other of `jepakit.masking` if None.
        largest: Largest sides of a grid, by its number of axes.

    Raises:
        ValueError: If `kind` is not the name of a sampler.

    Example:
        >>> from hypothesis import given, settings
        >>> from jepakit.testing import assert_sampler_contract
        >>> from jepakit.testing.strategies import samplers
        >>> @settings(max_examples=5, deadline=None)
        ... @given(samplers())
        ... def check(sampler):
        ...     assert_sampler_contract(sampler, varies=False)
        >>> check()

    Source:
        jepakit's own.
    """
    if kind is not None:
        check_choice("kind", kind, tuple(KINDS))
    return _samplers(kind, dict(largest))


@st.composite
@_random_kept
def _flat_masks(draw: Any, grid_size: Any, num_axes: Any) -> Any:
    grid = draw(grid_sizes()) if grid_size is None else grid_size
    axes = draw(st.integers(0, 2)) if num_axes is None else num_axes
    batch = tuple(draw(st.integers(0 if axis else 1, 4)) for axis in range(axes))
    density = draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    # A density for every set, so that counts differ and a set may be empty beside a full one.
    level = torch.rand(*batch, 1, generator=generator) if draw(st.booleans()) else density
    return torch.rand(*batch, math.prod(grid), generator=generator) < level, grid


@st.composite
@_random_kept
def _token_sets(draw: Any, grid_size: Any, num_axes: Any) -> Any:
    mask, grid = draw(_flat_masks(grid_size, num_axes))
    return TokenSet.from_mask(mask, grid)


@st.composite
@_random_kept
def _samplers(draw: Any, kind: Any, largest: Any) -> Any:
    rng = draw(st.randoms(use_true_random=False))
    return random_sampler(kind or rng.choice(list(KINDS)), rng, largest)
