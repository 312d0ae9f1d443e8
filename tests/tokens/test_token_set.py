"""`TokenSet`: masks and index lists say the same, and the set survives every way of moving it."""

import copy
import math
import pickle
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from jepakit import TokenSet
from jepakit.testing.strategies import flat_masks, grid_sizes, token_sets


def same(one: TokenSet, other: TokenSet) -> bool:
    return (
        torch.equal(one.idx, other.idx)
        and torch.equal(one.valid, other.valid)
        and one.grid_size == other.grid_size
        and one.padded == other.padded
    )


@given(case=flat_masks())
def test_masks_go_through_unchanged(case):
    """Trap: padding with index 0 marks position 0, or erases it."""
    mask, grid = case
    assert torch.equal(TokenSet.from_mask(mask, grid).to_mask(), mask)


@given(case=flat_masks())
def test_entries_are_the_masks_positions_in_order(case):
    mask, grid = case
    tokens = TokenSet.from_mask(mask, grid)
    sets = zip(
        tokens.idx.flatten(0, -2) if mask.dim() > 1 else [tokens.idx],
        tokens.valid.flatten(0, -2) if mask.dim() > 1 else [tokens.valid],
        mask.flatten(0, -2) if mask.dim() > 1 else [mask],
        strict=True,
    )
    longest = int(mask.sum(-1).max()) if mask.shape[:-1].numel() else 0
    assert tokens.shape == (*mask.shape[:-1], longest)
    for idx, valid, members in sets:
        count = int(members.sum())
        assert valid.tolist() == [True] * count + [False] * (longest - count)
        assert idx.tolist() == members.nonzero().flatten().tolist() + [0] * (longest - count)


@given(case=flat_masks())
def test_padded_says_whether_any_entry_is_not_valid(case):
    mask, grid = case
    tokens = TokenSet.from_mask(mask, grid)
    assert tokens.padded == (not bool(tokens.valid.all()))


@given(case=flat_masks())
def test_counts_and_coverage(case):
    mask, grid = case
    tokens = TokenSet.from_mask(mask, grid)
    assert torch.equal(tokens.counts(), mask.sum(-1))
    torch.testing.assert_close(tokens.coverage(), mask.float().mean(-1))
    assert tokens.num_positions == math.prod(grid)


@given(case=flat_masks())
def test_complement(case):
    mask, grid = case
    tokens = TokenSet.from_mask(mask, grid)
    rest = tokens.complement()
    assert torch.equal(rest.to_mask(), ~mask)
    assert torch.equal(rest.complement().to_mask(), mask)
    assert torch.equal(
        tokens.counts() + rest.counts(), torch.full_like(tokens.counts(), mask.shape[-1])
    )


@given(case=flat_masks(), seed=st.integers(0, 2**31))
def test_complement_exchanges_union_and_intersection(case, seed):
    one, grid = case
    other = torch.rand(one.shape, generator=torch.Generator().manual_seed(seed)) < 0.5

    def complement(mask: torch.Tensor) -> torch.Tensor:
        return TokenSet.from_mask(mask, grid).complement().to_mask()

    assert torch.equal(complement(one | other), complement(one) & complement(other))
    assert torch.equal(complement(one & other), complement(one) | complement(other))


@given(case=flat_masks(), data=st.data())
def test_coarsen_is_any_member_of_a_cell(case, data):
    """Trap: cells of the border left out, or counted from its end; the first axis only."""
    mask, grid = case
    num_halvings = data.draw(st.integers(0, max(side - 1 for side in grid).bit_length()))
    window = 2**num_halvings
    coarse = TokenSet.from_mask(mask, grid).coarsen(num_halvings)
    assert coarse.grid_size == tuple(-(-side // window) for side in grid)
    expected = torch.zeros(*mask.shape[:-1], *coarse.grid_size, dtype=torch.bool)
    for place in product(*map(range, grid)):
        cell = tuple(k // window for k in place)
        expected[(..., *cell)] |= mask.unflatten(-1, grid)[(..., *place)]
    assert same(coarse, TokenSet.from_mask(expected.flatten(mask.dim() - 1), coarse.grid_size))


@given(case=flat_masks(), seed=st.integers(0, 2**31), data=st.data())
def test_coarsen_by_its_set_laws(case, seed, data):
    """It keeps unions and order, and halvings add up."""
    one, grid = case
    other = torch.rand(one.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    most = max(side - 1 for side in grid).bit_length()
    num_halvings = data.draw(st.integers(0, most))
    first = data.draw(st.integers(0, num_halvings))

    def coarse(mask: torch.Tensor, times: int = num_halvings) -> TokenSet:
        return TokenSet.from_mask(mask, grid).coarsen(times)

    both = coarse(one).to_mask() | coarse(other).to_mask()
    assert torch.equal(coarse(one | other).to_mask(), both)
    shared = coarse(one & other).to_mask()
    assert not (shared & ~(coarse(one).to_mask() & coarse(other).to_mask())).any()
    assert same(coarse(one, first).coarsen(num_halvings - first), coarse(one))
    assert same(coarse(one, 0), TokenSet.from_mask(one, grid))
    assert bool(coarse(torch.ones_like(one)).to_mask().all())
    assert not coarse(torch.zeros_like(one)).to_mask().any()


@given(grid=grid_sizes(), batch=st.lists(st.integers(0, 3), max_size=2))
def test_full(grid, batch):
    tokens = TokenSet.full(grid, batch)
    assert tokens.shape == (*batch, math.prod(grid))
    assert tokens.to_mask().all() and not tokens.padded
    assert tokens.complement().shape == (*batch, 0)


def test_positions_are_row_major():
    """Trap: (x, y) taken for (row, column) on a grid that is not square."""
    field = torch.zeros(2, 3, dtype=torch.bool)
    field[1, 0] = field[0, 2] = True
    assert TokenSet.from_mask(field.flatten(), (2, 3)).idx.tolist() == [2, 3]


@given(tokens=token_sets())
def test_a_rebuilt_set_passes_its_own_checks(tokens):
    assert same(TokenSet(tokens.idx, tokens.valid, tokens.grid_size, tokens.padded), tokens)


def test_one_token_is_still_a_set():
    """Trap: `len()` of a squeezed one-token context."""
    tokens = TokenSet.from_mask(torch.tensor([[False, True, False, False]]), (2, 2))
    assert tokens.shape == (1, 1)
    assert tokens.counts().tolist() == [1]
    assert tokens[0].shape == (1,)
    assert tokens[0].counts().item() == 1
    assert tokens.complement().shape == (1, 3)
    assert len(tokens) == 1
    with pytest.raises(TypeError, match="no batch axis, so no length"):
        len(tokens[0])


@given(tokens=token_sets(num_batch_axes=2))
def test_indexing_runs_over_the_batch(tokens):
    """Trap: a slice that cuts sets to a raster-order prefix."""
    mask = tokens.to_mask()
    batch, sets = mask.shape[:2]
    for index in [slice(None, 1), ..., torch.arange(batch), (slice(None), slice(1, None)), None]:
        part = tokens[index]
        assert torch.equal(part.to_mask(), mask[index])
        assert part.shape[-1] == tokens.shape[-1]
        assert part.grid_size == tokens.grid_size
    if batch and sets:
        assert torch.equal(tokens[-1, 0].to_mask(), mask[-1, 0])
        chosen = torch.rand(batch, sets) < 0.5
        assert torch.equal(tokens[chosen].to_mask(), mask[chosen])
    if batch:
        with pytest.raises(IndexError):
            tokens[0, 0, 0]


@given(tokens=token_sets(num_batch_axes=2))
def test_iteration_runs_over_the_batch(tokens):
    parts = list(tokens)
    assert len(parts) == tokens.shape[0]
    for part, mask in zip(parts, tokens.to_mask(), strict=True):
        assert torch.equal(part.to_mask(), mask)


def test_a_single_set_is_not_indexed():
    """Iteration over one set must not look like iteration over an empty batch."""
    tokens = TokenSet.full((2, 2))
    with pytest.raises(TypeError, match="no batch axis to index; its entries are one set"):
        tokens[0]
    with pytest.raises(TypeError, match="no batch axis to iterate over"):
        list(tokens)


@given(tokens=token_sets())
def test_pytree(tokens):
    leaves, spec = pytree.tree_flatten(tokens)
    assert len(leaves) == 2 and leaves[0] is tokens.idx and leaves[1] is tokens.valid
    assert same(pytree.tree_unflatten(leaves, spec), tokens)
    moved = pytree.tree_map(lambda leaf: leaf.clone(), {"a": [tokens]})["a"][0]
    assert isinstance(moved, TokenSet) and same(moved, tokens)
    other = TokenSet(tokens.idx, tokens.valid, (*tokens.grid_size,), padded=True)
    assert (pytree.tree_structure(other) == spec) == tokens.padded


def test_pytree_leaves_may_be_anything():
    tokens = TokenSet.full((2, 2), (1,))
    names = pytree.tree_map(lambda leaf: str(leaf.dtype), tokens)
    assert (names.idx, names.valid) == ("torch.int64", "torch.bool")


@given(tokens=token_sets())
def test_deepcopy_and_pickle(tokens):
    for twin in (copy.deepcopy(tokens), copy.copy(tokens), pickle.loads(pickle.dumps(tokens))):
        assert same(twin, tokens)
    twin = copy.deepcopy(tokens)
    twin.idx.fill_(-1)
    assert not (tokens.idx == -1).any()


@given(tokens=token_sets())
def test_moving_keeps_everything(tokens):
    assert same(tokens.to("cpu"), tokens)
    away = tokens.to(torch.device("meta"), non_blocking=True)
    assert away.device.type == "meta" and away.valid.device.type == "meta"
    assert (away.shape, away.grid_size, away.padded) == (
        tokens.shape,
        tokens.grid_size,
        tokens.padded,
    )


def test_pin_memory_pins_both(monkeypatch):
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone()
    )
    tokens = TokenSet.from_mask(torch.rand(3, 4) < 0.5, (2, 2))
    assert same(tokens.pin_memory(), tokens)
    assert len(pinned) == 2 and pinned[0] is tokens.idx and pinned[1] is tokens.valid


def test_repr_tells_what_fits_a_line():
    tokens = TokenSet.full((2, 3), (4,))
    assert repr(tokens) == "TokenSet(shape=(4, 6), grid_size=(2, 3), padded=False)"
    away = tokens.to("meta")
    assert repr(away) == "TokenSet(shape=(4, 6), grid_size=(2, 3), padded=False, device='meta')"


def test_frozen():
    tokens = TokenSet.full((2, 2))
    with pytest.raises(AttributeError, match="padded: a TokenSet is immutable"):
        tokens.padded = True
    with pytest.raises(AttributeError, match="idx: a TokenSet is immutable"):
        del tokens.idx
