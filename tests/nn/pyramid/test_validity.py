"""The valid cells of each level are computed, and cells that are not valid affect nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from jepakit import HierarchicalPyramid, MultiBlockMask, TokenSet
from jepakit.masking import NestedMask

KINDS = pytest.mark.parametrize(
    "arguments",
    [
        {"pool": "avg"},
        {"pool": "max", "fusion": "fpn-add"},
        {"pool": "conv", "fusion": "fpn-concat", "upsample": "bilinear"},
        {"pool": "attention", "fusion": "fpn-add", "upsample": "bilinear", "norm": "layer"},
        {"pool": "attention", "valid_if": "all", "fusion": "fpn-concat", "projection": "linear"},
        {"pool": "conv", "valid_if": "all", "fusion": "fpn-add", "upsample": "bilinear"},
    ],
    ids=lambda arguments: "-".join(map(str, arguments.values())),
)
GRIDS = [(9,), (5, 6), (14, 14), (2, 5, 3)]


def wider(tokens: TokenSet, extra: int) -> TokenSet:
    return TokenSet(pad(tokens.idx, (0, extra)), pad(tokens.valid, (0, extra)), tokens.grid_size)


@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS))
def test_cells_are_those_of_coarsen(ragged, seed, grid) -> None:
    torch.manual_seed(seed)
    tokens = ragged(grid, 3)
    num_levels = 1 + max(side - 1 for side in grid).bit_length()
    pyramid = HierarchicalPyramid(grid, 2, num_levels=num_levels)
    for number, level in enumerate(pyramid(torch.randn(*tokens.shape, 2), tokens)):
        expected = tokens.coarsen(number)
        assert level.tokens.grid_size == expected.grid_size
        assert torch.equal(level.tokens.to_mask(), expected.to_mask())


@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS))
def test_all_is_any_of_the_complement(ragged, seed, grid) -> None:
    """A cell is whole unless one of the absent positions lies in it, at the border too."""
    torch.manual_seed(seed)
    tokens = ragged(grid, 3)
    pyramid = HierarchicalPyramid(grid, 2, valid_if="all")
    for number, level in enumerate(pyramid(torch.randn(*tokens.shape, 2), tokens)):
        broken = tokens.complement().coarsen(number).to_mask()
        assert torch.equal(level.tokens.to_mask(), ~broken)


def test_lengths_follow_from_shapes(ragged) -> None:
    """`min(n, M)` entries, without host synchronisation; the whole grid stays whole."""
    pyramid = HierarchicalPyramid((14, 14), 2)
    for n in (0, 3, 20, 196):
        mask = torch.arange(196) < n
        tokens = TokenSet.from_mask(mask.expand(2, -1), (14, 14))
        assert not tokens.padded
        levels = pyramid(torch.randn(2, n, 2), tokens)
        assert [level.tokens.shape[1] for level in levels] == [n, min(n, 49), min(n, 16)]
        assert [level.tokens.padded for level in levels] == [False, n < 196, n < 196]
    sets = ragged((14, 14), 2)
    assert pyramid(torch.randn(*sets.shape, 2), sets)[0].tokens is sets


@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS))
def test_trimmed_drops_what_no_sample_has(ragged, seed, grid) -> None:
    """Trap: a third of a sequence is padding that attention computes all the same."""
    torch.manual_seed(seed)
    tokens = wider(ragged(grid, 3), 2)
    for level in HierarchicalPyramid(grid, 2, num_levels=2)(torch.randn(*tokens.shape, 2), tokens):
        features, kept = level.trimmed()
        assert kept.shape[-1] == level.tokens.counts().max() == kept.counts().max()
        assert kept.padded == (not kept.valid.all())
        assert torch.equal(kept.to_mask(), level.tokens.to_mask())
        assert torch.equal(features[kept.valid], level.features[level.tokens.valid])
        assert not features[~kept.valid].any()


def test_nested_masks_and_levels_agree() -> None:
    """A nested sampler's context on a level is the set of cells that the pyramid has there."""
    masks = NestedMask((14, 14), MultiBlockMask((4, 4), context_length="pad"))(8)
    levels = HierarchicalPyramid((14, 14), 2)(torch.randn(*masks.context.shape, 2), masks.context)
    for number, level in enumerate(levels):
        coarse = masks.coarsen(number)
        assert torch.equal(level.tokens.to_mask(), coarse.context.to_mask())
        assert not (level.tokens.to_mask() & coarse.targets.to_mask().any(dim=1)).any()


@pytest.mark.parametrize("grid", [(14, 14), (13, 10)])
def test_targets_of_a_level_are_the_cells_of_a_nested_block(grid) -> None:
    """Every cell of a coarse target lies in the block as a whole, so what is asked for there is a
    pool of targets alone; `"any"` and `"all"` are the same."""
    masks = NestedMask(grid, MultiBlockMask((4, 4 if grid[1] == 14 else 3), context_length="pad"))(
        4
    )
    blocks = masks.targets[:, 1]
    for rule in ("any", "all"):
        pyramid = HierarchicalPyramid(grid, 2, valid_if=rule)
        for number, level in enumerate(pyramid(torch.randn(*blocks.shape, 2), blocks)):
            asked = masks.coarsen(number).targets[:, 1]
            assert asked.grid_size == level.tokens.grid_size
            assert torch.equal(asked.to_mask(), level.tokens.to_mask())


@KINDS
@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_not_valid_changes_nothing(arguments, grid, build_pyramid, ragged) -> None:
    """Law 6, exact: 1e4, infinity or NaN at padding, on every level, in value and gradient."""
    pyramid = build_pyramid(grid, **arguments)
    tokens = wider(ragged(grid, 4, at_least=1), 3)
    clean = torch.randn(*tokens.shape, 6)
    results = []
    for filler in (0.0, 1e4, torch.inf, torch.nan):
        features = clean.masked_fill(~tokens.valid.unsqueeze(-1), filler).requires_grad_()
        pyramid.zero_grad()
        levels = pyramid(features, tokens)
        outputs = [level.features for level in levels]
        # A gradient that arrives at padding goes nowhere.
        into = [
            torch.ones_like(level.features).masked_fill(~level.tokens.valid.unsqueeze(-1), filler)
            for level in levels
        ]
        torch.autograd.backward(outputs, into)
        assert not features.grad[~tokens.valid].any()
        for level in levels:
            assert not level.features[~level.tokens.valid].any()
        learned = [p.grad for p in pyramid.parameters()]
        results.append([*outputs, features.grad, *learned])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@KINDS
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(0, 9))
def test_batch_invariance(arguments, build_pyramid, ragged, seed, batch, extra) -> None:
    """Law 5: neither batch-mates nor the padding that they force change a sample."""
    torch.manual_seed(seed)
    pyramid = build_pyramid((7, 10), **arguments)
    tokens = wider(ragged((7, 10), batch), extra)
    features = torch.randn(*tokens.shape, 6)
    with torch.no_grad():
        together = pyramid(features, tokens)
        for sample in range(batch):
            one = TokenSet.from_mask(tokens.to_mask()[sample : sample + 1], (7, 10))
            alone = pyramid(features[sample : sample + 1, : one.shape[1]], one)
            for level, other in zip(together, alone, strict=True):
                got = level.features[sample][level.tokens.valid[sample]]
                wanted = other.features[0][other.tokens.valid[0]]
                assert torch.equal(
                    level.tokens.idx[sample][level.tokens.valid[sample]],
                    other.tokens.idx[0][other.tokens.valid[0]],
                )
                if len(wanted):
                    largest = level.features.abs().max()
                    assert (got - wanted).abs().max() <= 1e-5 * largest


@KINDS
def test_the_whole_grid_and_a_set_of_all_of_it_agree(arguments, build_pyramid) -> None:
    """One code for dense and sparse: None, a full set, and a full set among others."""
    pyramid = build_pyramid((5, 7), **arguments)
    features = torch.randn(2, 35, 6)
    full = TokenSet.full((5, 7), (2,))
    padded = TokenSet(full.idx, full.valid, (5, 7), padded=True)
    dense = pyramid(features)
    for tokens in (full, padded):
        for level, other in zip(dense, pyramid(features, tokens), strict=True):
            torch.testing.assert_close(level.features, other.features, rtol=1e-5, atol=1e-5)
            assert torch.equal(level.tokens.idx, other.tokens.idx)


@KINDS
def test_empty_sets(arguments, build_pyramid) -> None:
    """Samples without a token, and a batch of them: zeros, and finite gradients."""
    pyramid = build_pyramid((5, 6), **arguments)
    idx, valid = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.bool)
    mixed = (
        torch.tensor([[0, 0, 0, 0], [3, 7, 8, 0]]),
        torch.tensor([[False] * 4, [True] * 3 + [False]]),
    )
    for case in (TokenSet(idx, valid, (5, 6)), TokenSet(*mixed, (5, 6))):
        features = torch.randn(2, 4, 6, requires_grad=True)
        pyramid.zero_grad()
        levels = pyramid(features, case)
        for level in levels:
            assert not level.features[~level.tokens.valid].any()
        sum(level.features.square().sum() for level in levels).backward()
        assert torch.isfinite(features.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in pyramid.parameters())
    nothing = TokenSet.from_mask(torch.zeros(2, 30, dtype=torch.bool), (5, 6))
    levels = pyramid(torch.zeros(2, 0, 6), nothing)
    assert [level.features.shape for level in levels] == [(2, 0, 6)] * 3
