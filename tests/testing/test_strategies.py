"""Strategies keep to their arguments, and the error without hypothesis names the extra."""

import math
import random
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.masking.random_samplers import KINDS, SMALL, random_sampler
from tests.strategies import samplers

import jepakit
import jepakit.masking
from jepakit import Masks
from jepakit.masking.base import UniformSampler
from jepakit.testing.strategies import (
    flat_masks,
    grid_sizes,
    token_sets,
)


@given(data=st.data(), num_axes=st.sets(st.integers(1, 3), min_size=1), side=st.integers(2, 9))
def test_grid_sizes(data, num_axes, side):
    grid = data.draw(grid_sizes(num_axes=sorted(num_axes), max_side=side, min_positions=2))
    assert len(grid) in num_axes and max(grid) <= side and math.prod(grid) >= 2


@given(data=st.data(), axes=st.none() | st.integers(0, 2), grid=st.none() | grid_sizes())
def test_masks_and_token_sets(data, axes, grid):
    mask, on = data.draw(flat_masks(grid_size=grid, num_batch_axes=axes))
    tokens = data.draw(token_sets(grid_size=grid, num_batch_axes=axes))
    assert mask.dtype == torch.bool and mask.shape[-1] == math.prod(on)
    if grid is not None:
        assert on == tokens.grid_size == grid
    if axes is not None:
        assert mask.dim() == tokens.idx.dim() == axes + 1


def test_what_is_hard_is_among_them():
    """Sets of nothing, of everything, and both in one batch."""
    for condition in (
        lambda tokens: tokens.shape == (2, 0),
        lambda tokens: not tokens.padded and tokens.shape == (2, 4),
        lambda tokens: {0, 4} <= set(tokens.counts().tolist()),
    ):
        drawn = token_sets(grid_size=(2, 2), num_batch_axes=1)
        long = settings(database=None, max_examples=1000)
        tokens = hypothesis.find(drawn, condition, settings=long)
        assert condition(tokens)


@pytest.mark.parametrize("count", [1, 3])
def test_failing_examples_shrink(count: int) -> None:
    """Trap: masks from a drawn seed, of which the smallest failing one is as large as any."""
    long = settings(database=None, max_examples=1000)
    mask, grid = hypothesis.find(flat_masks(), lambda case: case[0].sum() >= count, settings=long)
    assert mask.sum() == count and mask.shape == grid and grid <= (2 * count,)
    tokens = hypothesis.find(
        token_sets(grid_size=(4, 4), num_batch_axes=1),
        lambda tokens: tokens.padded and len(tokens.idx) > 1 and tokens.counts().max() >= count,
        settings=long,
    )
    assert sorted(tokens.counts().tolist()) == [0, count], "nothing but what the condition asks"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(data=st.data())
def test_samplers(kind, data):
    sampler = data.draw(samplers(kind, largest={1: (6,), 2: (4, 5), 3: (2, 3, 4)}))
    assert type(sampler).__name__ == kind and math.prod(sampler.grid_size) <= 24
    masks = sampler(2)
    assert isinstance(masks, list if kind == "MultiContextMask" else Masks)


@pytest.mark.parametrize("kind", KINDS)
def test_sides_of_one_are_among_them(kind):
    rng = random.Random(0)
    grids = [random_sampler(kind, rng, SMALL).grid_size for _ in range(200)]
    assert all(math.prod(grid) > 1 for grid in grids)
    wide = [grid for grid in grids if len(grid) > 1]
    assert all(any(len(grid) > k and grid[k] == 1 for grid in wide) for k in range(2))


def test_every_sampler_has_its_strategy():
    found = {
        name
        for name in jepakit.masking.__all__
        if isinstance(thing := getattr(jepakit.masking, name), type)
        and issubclass(thing, UniformSampler)
    }
    # The published sampler violates law 1 on purpose.
    assert found - {"ReferenceMultiBlockMask"} == set(KINDS)


def test_without_hypothesis():
    """The contracts work, and the strategies say what to install."""
    code = """
import sys
sys.modules["hypothesis"] = None
import jepakit
from jepakit.testing import assert_loss_contract
assert_loss_contract(jepakit.masked_mse)
try:
    import jepakit.testing.strategies
except ImportError as error:
    print(error)
"""
    source = str(Path(jepakit.__file__).parents[1])
    env = {"PATH": "", "PYTHONPATH": source, "JEPAKIT_TYPECHECK": "0"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout == (
        'jepakit.testing.strategies needs hypothesis: pip install "jepakit[testing]"\n'
    ), out.stderr
