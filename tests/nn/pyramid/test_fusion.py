"""From coarse to fine: equal to a loop over cells, on the grid, and only what is there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.nn.pyramid.test_pools import assert_equals_loop

from jepakit import HierarchicalPyramid, TokenSet

KINDS = [(f, u) for f in ("fpn-add", "fpn-concat") for u in ("nearest", "bilinear")]


@pytest.mark.parametrize(("fusion", "upsample"), KINDS)
@pytest.mark.parametrize("valid_if", ["any", "all"])
@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(9,), (5, 7), (1, 6), (3, 5, 2)]), st.booleans())
def test_equals_a_loop_over_cells(
    fusion, upsample, valid_if, build_pyramid, ragged, seed, grid, whole
) -> None:
    """Traps: validity thresholded behind a learned layer; absent neighbours mixed in as zeros."""
    torch.manual_seed(seed)
    pyramid = build_pyramid(
        grid,
        fusion=fusion,
        upsample=upsample,
        valid_if=valid_if,
        projection="linear" if seed % 2 else None,
        norm="layer" if seed % 3 else None,
    ).double()
    tokens = TokenSet.full(grid, (2,)) if whole else ragged(grid, 3)
    assert_equals_loop(pyramid, torch.randn(*tokens.shape, 6, dtype=torch.float64), tokens)


def identity(pyramid: HierarchicalPyramid) -> HierarchicalPyramid:
    with torch.no_grad():
        for lateral in pyramid.top_down.laterals:
            lateral.weight.copy_(torch.eye(*lateral.weight.shape))
            lateral.bias.zero_()
    return pyramid


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize("grid", [(4, 6), (7, 9), (1, 5), (13,)])
def test_coarse_cells_land_where_they_came_from(upsample, grid) -> None:
    """Trap: resizing 4 cells to 7, which moves them. A field that is zero but for one window is
    untouched, after a way up and down, two cells away from it."""
    pyramid = identity(
        HierarchicalPyramid(grid, 1, num_levels=2, fusion="fpn-add", upsample=upsample)
    )
    axes = [torch.arange(side) for side in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, len(grid))
    for cell in torch.unique(places // 2, dim=0):
        inside = (places // 2 == cell).all(dim=1)
        finest = pyramid(inside.float()[None, :, None])[0].features[0, :, 0]
        near = ((places >= 2 * cell - 1) & (places <= 2 * cell + 2)).all(dim=1)
        assert not finest[~near].any()
        if upsample == "nearest":
            assert torch.equal(finest, 2 * inside.float())
        else:
            assert (finest[inside] > 1.5).all() and (finest[near & ~inside] > 0).all()


def test_a_ramp_goes_through_bilinear_but_at_the_border() -> None:
    pyramid = identity(
        HierarchicalPyramid((8, 12), 2, num_levels=2, fusion="fpn-add", upsample="bilinear")
    )
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
    ramp = torch.stack([rows, columns], dim=-1)
    finest = pyramid(ramp.view(1, 96, 2))[0].features.view(8, 12, 2)
    torch.testing.assert_close(finest[1:-1, 1:-1], 2 * ramp[1:-1, 1:-1])


@pytest.mark.parametrize(("fusion", "upsample"), KINDS)
def test_information_flows_down_only(fusion, upsample, build_pyramid) -> None:
    """A change in a far corner reaches a fine cell through the coarse levels, and no coarse cell is
    changed by a finer neighbour of its window."""
    pyramid = build_pyramid((8, 8), fusion=fusion, upsample=upsample)
    features = torch.randn(1, 64, 6)
    other = features.clone()
    other[0, 3] += 1  # row 0, column 3: the same cell as the corner on level 2, not on level 1
    before, after = pyramid(features), pyramid(other)
    changed = [
        (a.features != b.features).any(dim=-1)[0] for a, b in zip(before, after, strict=True)
    ]
    assert changed[0][0]
    reach = 1 if upsample == "nearest" else 4
    assert changed[2].tolist() == [True, False, False, False]
    assert changed[1].view(4, 4)[:2, :2].all()
    assert changed[1].sum() == (4 if reach == 1 else 9)


def test_laterals_keep_the_variance() -> None:
    """At first, so that fusion neither drowns nor blows up what comes in."""
    torch.manual_seed(0)
    for fusion, expected in (("fpn-add", 1.0), ("fpn-concat", 4 / 3)):
        pyramid = HierarchicalPyramid((8, 8), 256, num_levels=2, fusion=fusion)
        y = pyramid.top_down.laterals[0](torch.randn(400, 256 if fusion == "fpn-add" else 512))
        assert y.var().item() == pytest.approx(expected, rel=0.05)
        assert not any(lateral.bias.any() for lateral in pyramid.top_down.laterals)
