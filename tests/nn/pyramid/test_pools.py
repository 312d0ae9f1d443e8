"""Law 10: pooling commutes with the grid, and equals a loop over cells."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.nn.pyramid.naive import dense, naive_levels

from jepakit import HierarchicalPyramid, TokenSet

POOLS = ["avg", "max", "conv", "attention"]
GRIDS = [(7,), (5, 6), (1, 9), (14, 3), (3, 5, 2)]


def most_levels(grid: tuple[int, ...]) -> int:
    return 1 + max(side - 1 for side in grid).bit_length()


def assert_equals_loop(pyramid, features, tokens, tolerance: float = 1e-6) -> None:
    """Values on every level, and gradients of a random functional of them."""
    x = features.clone().requires_grad_()
    whole = tokens.counts().min() == tokens.num_positions
    levels = pyramid(x, None if whole else tokens)
    y = features.clone().requires_grad_()
    expected = naive_levels(pyramid, y, tokens)
    ours = theirs = torch.zeros((), dtype=features.dtype)
    for level, fields, grid in zip(levels, expected, pyramid.grid_sizes, strict=True):
        field, mask = dense(fields, grid, pyramid.dim)
        assert level.tokens.grid_size == grid
        assert torch.equal(level.tokens.to_mask(), mask)
        got = torch.zeros_like(field)
        for sample, (idx, valid) in enumerate(
            zip(level.tokens.idx, level.tokens.valid, strict=True)
        ):
            got[sample, idx[valid]] = level.features[sample, valid].to(field.dtype)
        assert (got - field).abs().max() <= tolerance * field.abs().max().clamp(min=1)
        assert not level.features[~level.tokens.valid].any()
        weight = torch.randn_like(field)
        ours, theirs = ours + (got * weight).sum(), theirs + (field * weight).sum()
    if not theirs.requires_grad:
        return  # nothing is valid
    inputs = [p for p in pyramid.parameters() if p.requires_grad]
    gradients = [
        torch.autograd.grad(total, [source, *inputs], materialize_grads=True)
        for total, source in ((ours, x), (theirs, y))
    ]
    for got, wanted in zip(*gradients, strict=True):
        assert (got - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("valid_if", ["any", "all"])
@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS), st.booleans())
def test_equals_a_loop_over_cells(pool, valid_if, build_pyramid, ragged, seed, grid, whole) -> None:
    """Traps: pooling along the token list; a mean of means; a tail that is dropped."""
    torch.manual_seed(seed)
    levels = 2 + seed % (most_levels(grid) - 1)
    pyramid = build_pyramid(grid, num_levels=min(4, levels), pool=pool, valid_if=valid_if).double()
    tokens = TokenSet.full(grid, (2,)) if whole else ragged(grid, 3)
    features = torch.randn(*tokens.shape, 6, dtype=torch.float64)
    assert_equals_loop(pyramid, features, tokens)


@pytest.mark.parametrize("pool", POOLS)
def test_equals_a_loop_in_float32(pool, build_pyramid, ragged) -> None:
    for grid in GRIDS:
        pyramid = build_pyramid(grid, num_levels=most_levels(grid), pool=pool)
        for tokens in (TokenSet.full(grid, (2,)), ragged(grid, 3)):
            assert_equals_loop(pyramid, torch.randn(*tokens.shape, 6), tokens)


@pytest.mark.slow
@pytest.mark.no_hook  # thousands of calls
@pytest.mark.parametrize("pool", POOLS)
def test_a_constant_stays_the_same_constant(pool, build_pyramid) -> None:
    """Trap: 14 -> 7 -> 3.5. Every grid from 2x2 to 33x33, with four levels or as many as it has
    (fewer levels are the finest of these), whatever was learned, whole grid and half of it."""
    constant = torch.randn(3)
    for height in range(2, 34):
        for width in range(2, 34):
            grid, size = (height, width), height * width
            half = TokenSet.from_mask(torch.rand(2, size) < 0.5, grid)
            pyramid = build_pyramid(grid, 3, num_levels=min(4, most_levels(grid)), pool=pool)
            for tokens in (None, half):
                shape = (1, size) if tokens is None else tokens.shape
                for number, level in enumerate(pyramid(constant.expand(*shape, 3), tokens)):
                    sides = tuple(math.ceil(side / 2**number) for side in grid)
                    assert level.tokens.grid_size == sides
                    valid = level.tokens.valid
                    assert valid.any() or not half.valid.any()
                    apart = (level.features - constant).abs().amax(dim=-1)[valid]
                    assert (apart <= 1e-5).all(), (grid, number)
                    if tokens is None:
                        assert valid.shape == (1, math.prod(sides)) and valid.all()


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_constant_stays_on_any_number_of_axes(pool, grid, build_pyramid, ragged) -> None:
    constant = torch.randn(3)
    for num_levels in range(2, most_levels(grid) + 1):
        pyramid = build_pyramid(grid, 3, num_levels=num_levels, pool=pool)
        tokens = ragged(grid, 4)
        for level in pyramid(constant.expand(*tokens.shape, 3), tokens):
            apart = (level.features - constant).abs().amax(dim=-1)[level.tokens.valid]
            assert (apart <= 1e-5).all()


@pytest.mark.parametrize("fusion", ["fpn-add", "fpn-concat"])
@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize("pool", ["avg", "conv"])
def test_with_learned_maps_a_constant_stays_a_constant(
    fusion, upsample, pool, build_pyramid, ragged
) -> None:
    """Another one on each level, but the same in every cell, also beside cells that are absent."""
    pyramid = build_pyramid(
        (7, 10), pool=pool, fusion=fusion, upsample=upsample, projection="linear", norm="layer"
    )
    tokens = ragged((7, 10), 5)
    whole = pyramid(torch.ones(1, 70, 6))
    for level, other in zip(pyramid(torch.ones(*tokens.shape, 6), tokens), whole, strict=True):
        expected = other.features[0, 0]
        torch.testing.assert_close(other.features[0], expected.expand_as(other.features[0]))
        cells = level.features[level.tokens.valid]
        torch.testing.assert_close(cells, expected.expand_as(cells), rtol=1e-4, atol=1e-4)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple).filter(lambda g: max(g) > 1),
    st.integers(0, 2**32 - 1),
)
@example((33, 33), 0)
@example((32, 33), 0)
def test_a_ramp_pools_to_the_mean_of_its_cells(grid, seed) -> None:
    """A coarse cell of a linear ramp is the ramp at the mean place of the valid cells under it."""
    torch.manual_seed(seed)
    pyramid = HierarchicalPyramid(grid, len(grid), num_levels=most_levels(grid))
    axes = [torch.arange(side, dtype=torch.float32) for side in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(1, -1, len(grid))
    for level, cells in enumerate(pyramid(places)):
        sides = cells.tokens.grid_size
        middles = [
            torch.tensor([(k * 2**level + min((k + 1) * 2**level, side) - 1) / 2 for k in range(n)])
            for side, n in zip(grid, sides, strict=True)
        ]
        expected = torch.stack(torch.meshgrid(*middles, indexing="ij"), dim=-1)
        torch.testing.assert_close(cells.features, expected.view(1, -1, len(grid)))


def test_average_is_no_mean_of_means() -> None:
    """Three positions on one side of a cell and one on the other count one each."""
    tokens = TokenSet(torch.tensor([[0, 1, 4, 15]]), torch.ones(1, 4, dtype=torch.bool), (4, 4))
    levels = HierarchicalPyramid((4, 4), 1)(torch.tensor([[[1.0], [1.0], [1.0], [9.0]]]), tokens)
    assert levels[1].features.flatten().tolist()[:2] == [1.0, 9.0]
    assert levels[2].features.flatten().tolist()[:1] == [3.0]


def test_pools_with_parameters_start_as_the_average(ragged) -> None:
    tokens = ragged((7, 5), 3)
    features = torch.randn(*tokens.shape, 4)
    average = HierarchicalPyramid((7, 5), 4)(features, tokens)
    for pool in ("conv", "attention"):
        levels = HierarchicalPyramid((7, 5), 4, pool=pool)(features, tokens)
        for one, other in zip(levels, average, strict=True):
            torch.testing.assert_close(one.features, other.features)


def test_attention_takes_scores_of_any_size(ragged) -> None:
    """A sharp query picks one position; its exponential alone would be infinite."""
    pyramid = HierarchicalPyramid((4, 6), 4, num_levels=2, pool="attention")
    with torch.no_grad():
        pyramid.pooling.queries.fill_(1e3)
    tokens = ragged((4, 6), 3, at_least=1)
    features = torch.randn(*tokens.shape, 4, requires_grad=True)
    level = pyramid(features, tokens)[1]
    ranked = features.detach() + 1e3 * features.detach().sum(dim=-1, keepdim=True)
    best = HierarchicalPyramid((4, 6), 4, num_levels=2, pool="max")(ranked, tokens)[1].features
    sums = level.features.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(level.features + 1e3 * sums, best, rtol=1e-3, atol=0.1)
    level.features.sum().backward()
    assert torch.isfinite(features.grad).all()


def test_half_precision_is_added_up_in_float32() -> None:
    """In bfloat16 the mean over 256 cells would be off by far more than one rounding."""
    torch.manual_seed(0)
    x = (torch.rand(1, 256, 8) + 1).bfloat16()
    top = HierarchicalPyramid((16, 16), 8, num_levels=5)(x)[-1].features
    assert top.dtype == torch.bfloat16
    assert torch.equal(top[0, 0], x.float().mean(dim=1)[0].bfloat16())
