"""`RandomMask`: one target set and the rest, all subsets equally likely, on grids of any rank."""

import dataclasses
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit import InfeasibleMaskError, RandomMask, TokenSet
from jepakit.testing.strategies import grid_sizes

ratios = st.floats(0.01, 0.99)


@given(
    grid=grid_sizes(max_side=6).filter(lambda grid: math.prod(grid) > 1),
    ratio=ratios,
    batch=st.integers(1, 5),
    part=st.floats(0, 1),
    whole=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_target_and_rest(grid, ratio, batch, part, whole, seed):
    """Law 1 for this sampler: sizes as given, disjoint, nothing padded."""
    size = math.prod(grid)
    targets = min(max(1, math.floor(ratio * size + 0.5)), size - 1)
    rest = size - targets
    length = "pad" if whole else max(1, round(part * rest))
    sampler = RandomMask(grid, target_ratio=ratio, context_length=length)
    assert sampler.num_target_tokens == targets
    masks = sampler(batch, generator=torch.Generator().manual_seed(seed))
    for tokens in (masks.context, masks.targets):
        assert not tokens.padded and tokens.grid_size == grid
        TokenSet(tokens.idx, tokens.valid, grid, tokens.padded)  # values are checked
    context, target = masks.context.to_mask(), masks.targets.to_mask().squeeze(1)
    assert (target.sum(1) == targets).all()
    assert (context.sum(1) == (rest if whole else length)).all()
    assert not (context & target).any()
    if whole:
        assert (context ^ target).all()


@pytest.mark.parametrize("grid", [(20,), (4, 5), (2, 2, 5)])
@pytest.mark.parametrize("length", ["pad", 6])
def test_every_position_is_as_likely(grid, length):
    n = 4000
    masks = RandomMask(grid, target_ratio=0.6, context_length=length)(
        n, generator=torch.Generator().manual_seed(0)
    )
    for tokens, count in ((masks.targets[:, 0], 12), (masks.context, masks.context.shape[1])):
        chance = count / 20
        members = tokens.to_mask().double()
        error = math.sqrt(chance * (1 - chance) / n)
        assert (members.mean(0) - chance).abs().max() < 5 * error
        # Two positions are members together as often as in a draw without replacement.
        pairs = members.T @ members / n
        both = chance * (count - 1) / 19
        off = ~torch.eye(20, dtype=torch.bool)
        assert (pairs[off] - both).abs().max() < 5 * math.sqrt(both * (1 - both) / n)


CHANGES = {"grid_size": (5, 4), "target_ratio": 0.5, "context_length": 3}


@pytest.mark.parametrize("name", CHANGES)
def test_every_argument_matters(name):
    base = {"grid_size": (4, 5)}
    one, other = (
        RandomMask(**arguments)(8, generator=torch.Generator().manual_seed(0))
        for arguments in (base, base | {name: CHANGES[name]})
    )
    if name == "grid_size":
        assert one.context.grid_size != other.context.grid_size
    else:
        assert one.context.shape != other.context.shape
    assert set(CHANGES) == {field.name for field in dataclasses.fields(RandomMask)} - {"_"}


def raises(error: type[Exception], text: str) -> pytest.RaisesExc:
    return pytest.raises(error, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"grid_size": (4, 0)}, ValueError, "grid_size=(4, 0): every side must be at least 1"),
        ({"target_ratio": 0.0}, ValueError, "target_ratio=0: must lie in (0, 1)"),
        ({"target_ratio": -0.5}, ValueError, "target_ratio=-0.5: must lie in (0, 1)"),
        ({"target_ratio": float("nan")}, ValueError, "target_ratio=nan: must lie in (0, 1)"),
        ({"target_ratio": 1.0}, ValueError, "target_ratio=1: must lie in (0, 1)"),
        (
            {"grid_size": (1, 1)},
            InfeasibleMaskError,
            "grid_size=(1, 1): one position cannot be both context and target. "
            "Change: grid_size to at least 2 positions",
        ),
        (
            {"context_length": 5},
            InfeasibleMaskError,
            "context_length=5: exceeds the 4 positions that target_ratio=0.75 leaves of 16. "
            "Change one of: context_length=4; target_ratio=0.6875",
        ),
        ({"context_length": 0}, ValueError, "context_length=0: must be at least 1"),
    ],
)
def test_errors(arguments, error, text):
    with raises(error, text):
        RandomMask(**{"grid_size": (4, 4)} | arguments)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"grid_size": 16},
            TypeError,
            "grid_size=16: must be a sequence of ints, such as (14, 14), got int",
        ),
        ({"target_ratio": "a"}, TypeError, "target_ratio='a': must be a number, got str"),
        (
            {"context_length": "trim"},
            ValueError,
            "context_length='trim': must be 'pad' or an int; contexts have one length already",
        ),
        (
            {"context_length": 2.0},
            TypeError,
            "context_length=2.0: must be 'pad' or an int of at least 1",
        ),
    ],
)
def test_kinds(arguments, error, text):
    with raises(error, text):
        RandomMask(**{"grid_size": (4, 4)} | arguments)


@given(size=st.integers(2, 200), ratio=ratios, over=st.integers(1, 200))
def test_every_suggestion_works(size, ratio, over):
    rest = size - RandomMask((size,), target_ratio=ratio).num_target_tokens
    arguments = {"target_ratio": ratio, "context_length": rest + over}
    with pytest.raises(InfeasibleMaskError) as caught:
        RandomMask((size,), **arguments)
    for change in str(caught.value).split("Change one of: ")[1].split("; "):
        masks = RandomMask((size,), **arguments | eval(f"dict({change})"))(2)
        assert masks.context.shape[1] in (rest, rest + over)


@pytest.mark.parametrize("shape", [(0, 16), (2, 15)])
def test_tables_of_uniforms(shape):
    text = f"uniforms {shape}: must be [batch, 16], with a batch of at least 1"
    with raises(ValueError, text):
        RandomMask((4, 4)).from_uniforms(torch.rand(shape))
