"""Position tables against naive loops, laws of rotary positions, and `init_sincos_positions`."""

import itertools
import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit import MaskedViT
from jepakit.nn import UnsupportedBackboneError, init_sincos_positions
from jepakit.nn.positions import (
    diagonal_table,
    grid_coordinates,
    grid_table,
    rotary_features,
    rotate_adjacent,
    rotate_halves,
    sincos_features,
    sincos_table,
    vjepa2_features,
)


def rotary_table(grid: tuple[int, ...], head_dim: int) -> torch.Tensor:
    return rotary_features(grid_coordinates(grid), head_dim)


grids = st.one_of(
    st.tuples(st.integers(1, 9)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)


@given(grids)
def test_coordinates_are_row_major(grid) -> None:
    """Trap: `sqrt(num_tokens)` for the grid, which scrambles rows and columns."""
    expected = list(itertools.product(*(range(side) for side in grid)))
    assert grid_coordinates(grid).tolist() == [list(map(float, place)) for place in expected]


@given(grids, st.integers(1, 4))
def test_sincos_is_the_formula(grid, pairs) -> None:
    table = sincos_table(grid, 2 * pairs * len(grid))
    assert table.dtype == torch.float32
    for row, place in enumerate(itertools.product(*(range(side) for side in grid))):
        expected = []
        for x in place:
            angles = [x * 10000 ** (-2 * i / (2 * pairs)) for i in range(pairs)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert table[row].tolist() == pytest.approx(expected, abs=1e-6)


@given(grids)
def test_sincos_rows_differ(grid) -> None:
    table = sincos_table(grid, 12 * len(grid))
    distance = torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.fill_diagonal_(torch.inf).min() > 0.5


@given(grids, st.integers(0, 5))
def test_rotary_is_the_formula(grid, more) -> None:
    """Trap: theta^(-2i/d) with i over pairs, each axis with its own share."""
    pairs = len(grid) + more
    table = rotary_table(grid, 2 * pairs)
    shares = [len(range(axis, pairs, len(grid))) for axis in range(len(grid))]
    assert sum(shares) == pairs
    for row, place in enumerate(itertools.product(*(range(side) for side in grid))):
        angles = []
        for x, share in zip(place, shares, strict=True):
            angles += [x * 100 ** (-2 * i / (2 * share)) for i in range(share)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert table[row].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["sincos", "rope"])
@given(grids, st.integers(0, 4), st.integers(0, 5), st.integers(0, 3))
def test_one_table_has_the_positions_of_all_grids(kind, grid, level, more, longer) -> None:
    """Trap: rows and columns exchanged, or a cell that the border cuts off. The numbers of a table
    that is computed for the grid, bit by bit."""
    axes = len(grid)
    dim = 2 * axes * (1 + more) if kind == "sincos" else 2 * (axes + more)
    features = sincos_features if kind == "sincos" else rotary_features
    diagonal = diagonal_table(kind, axes, dim, max(grid) + longer)
    expected = features(grid_coordinates(grid, level), dim)
    assert torch.equal(grid_table(diagonal, kind, grid, level), expected)


@given(st.integers(0, 2**32 - 1), grids)
def test_rotation_keeps_norms(seed, grid) -> None:
    torch.manual_seed(seed)
    table = rotary_table(grid, 12)
    x = torch.randn(2, 3, len(table), 12, dtype=torch.float64)
    turned = rotate_halves(x, table.expand(2, -1, -1))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])  # the origin does not turn
    if len(table) > 1:
        assert not torch.allclose(turned[:, :, 1:], x[:, :, 1:])


@given(st.integers(0, 2**32 - 1))
def test_scores_depend_on_the_difference_alone(seed) -> None:
    """Trap: pairs that the frequencies were not made for. Then a shift would change the scores."""
    torch.manual_seed(seed)
    grid = (6, 7)
    table = rotary_table(grid, 16).double()
    q, k = torch.randn(2, 16, dtype=torch.float64)

    def score(row_q: int, column_q: int, row_k: int, column_k: int) -> float:
        places = torch.tensor([row_q * 7 + column_q, row_k * 7 + column_k])
        turned = rotate_halves(torch.stack([q, k])[None, None], table[places][None])[0, 0]
        return float(turned[0] @ turned[1])

    assert score(0, 1, 2, 3) == pytest.approx(score(3, 4, 5, 6), abs=1e-5)
    assert score(0, 1, 2, 3) == pytest.approx(score(1, 1, 3, 3), abs=1e-5)
    assert abs(score(0, 1, 2, 3) - score(0, 1, 3, 2)) > 1e-7


def test_rotation_follows_the_type_of_its_input() -> None:
    """Trap: float32 tables that raise queries in half precision, which no fused kernel takes."""
    table = rotary_table((4, 4), 8)[None]
    x = torch.randn(1, 2, 16, 8)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert rotate_halves(x.to(dtype), table).dtype == dtype
    torch.testing.assert_close(
        rotate_halves(x.bfloat16(), table).float(), rotate_halves(x, table), rtol=0, atol=0.05
    )


@pytest.mark.parametrize(("grid", "dim"), [((4,), 3), ((4, 4), 6), ((2, 2, 2), 8)])
def test_sincos_refuses_other_widths(grid, dim) -> None:
    with pytest.raises(ValueError, match=rf"dim={dim}: must be a multiple of"):
        sincos_table(grid, dim)


@pytest.mark.parametrize(("grid", "dim"), [((4,), 3), ((4, 4), 2), ((2, 2, 2), 4)])
def test_rotary_refuses_other_widths(grid, dim) -> None:
    with pytest.raises(ValueError, match=rf"head dim {dim} .* must be even and at least"):
        rotary_table(grid, dim)


@given(st.tuples(*[st.integers(1, 3)] * 3), st.integers(3, 20))
def test_vjepa2_rotation_is_that_of_the_published_code(grid, half) -> None:
    """Trap: the standard formula, with which published weights give other features. Angle k of an
    axis belongs to features k and k + p of its 2p, but features 2i and 2i + 1 turn together."""
    head_dim = 2 * half
    p = head_dim // 6
    torch.manual_seed(half)
    table = vjepa2_features(grid_coordinates(grid), head_dim)
    x = torch.randn(1, 1, len(table), head_dim)
    turned = rotate_adjacent(x, table[None])[0, 0].tolist()
    for row, place in enumerate(itertools.product(*(range(side) for side in grid))):
        values = x[0, 0, row].tolist()
        expected = list(values)
        for axis, coordinate in enumerate(place):
            for k in range(2 * p):
                angle = coordinate * 10000 ** (-(k % p) / p)
                here = 2 * p * axis + k
                partner = -values[here + 1] if here % 2 == 0 else values[here - 1]
                expected[here] = values[here] * math.cos(angle) + partner * math.sin(angle)
        assert turned[row] == pytest.approx(expected, abs=1e-5)


@given(st.tuples(*[st.integers(1, 3)] * 3), st.integers(5, 20), st.booleans())
def test_sincos_of_clips_is_that_of_the_published_code(grid, size, uniform_power) -> None:
    """With `uniform_power` each axis has a third, rounded up to even, and the end is cut off."""
    dim = 2 * size if uniform_power else 8 * size
    third = 2 * math.ceil(dim / 6)
    widths = [third] * 3 if uniform_power else [dim // 2, dim // 4, dim // 4]
    table = sincos_features(grid_coordinates(grid), dim, uniform_power)
    assert table.shape[1] == dim
    for row, place in enumerate(itertools.product(*(range(side) for side in grid))):
        expected = []
        for x, width in zip(place, widths, strict=True):
            angles = [x * 10000 ** (-i / (width // 2)) for i in range(width // 2)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert table[row].tolist() == pytest.approx(expected[:dim], abs=1e-6)


@pytest.mark.parametrize("kind", ["sincos", "sincos-half-time", "rope-vjepa2"])
@given(st.tuples(*[st.integers(1, 3)] * 3), st.integers(0, 2), st.integers(2, 9))
def test_one_table_has_the_positions_of_all_clips(kind, grid, level, size) -> None:
    """Trap: a share of an axis that is cut, or does not turn, counted with another axis."""
    dim = 8 * size
    diagonal = diagonal_table(kind, 3, dim, max(grid))
    coordinates = grid_coordinates(grid, level)
    if kind == "rope-vjepa2":
        expected = vjepa2_features(coordinates, dim)
    else:
        expected = sincos_features(coordinates, dim, kind == "sincos")
    assert torch.equal(grid_table(diagonal, kind, grid, level), expected)


@pytest.mark.parametrize(
    ("kind", "axes", "dim", "text"),
    [
        ("sincos", 3, 8, r"dim=8: must be a multiple of 6, or even and at least 10"),
        ("sincos", 3, 13, r"dim=13: must be a multiple of 6, or even"),
        ("sincos-half-time", 3, 12, r"dim=12: must be a multiple of 8 with uniform_power=False"),
        ("sincos-half-time", 2, 16, r"uniform_power=False: must come with a grid of 3 axes, got 2"),
        ("rope-vjepa2", 2, 16, r"position='rope-vjepa2': must come with a grid of 3 axes, got 2"),
        ("rope-vjepa2", 3, 4, r"head dim 4 .* must be even and at least 6"),
    ],
)
def test_kinds_of_three_axes_refuse_others(kind, axes, dim, text) -> None:
    with pytest.raises(ValueError, match=text):
        diagonal_table(kind, axes, dim, 4)


def vit(**options) -> MaskedViT:
    options = dict(img_size=(24, 40), patch_size=8, embed_dim=16, depth=1, num_heads=2) | options
    return MaskedViT(timm.create_model("vit_tiny_patch16_224", num_classes=0, **options))


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, 1),
        ({"reg_tokens": 3}, 4),
        ({"reg_tokens": 3, "no_embed_class": True}, 0),
        ({"class_token": False, "global_pool": "avg"}, 0),
    ],
)
def test_every_patch_gets_its_row_and_column(options, prefix) -> None:
    """Trap: prefix tokens shift the table by one, and every patch gets its neighbour's position."""
    encoder = vit(**options)
    init_sincos_positions(encoder)
    table = encoder.backbone.pos_embed[0]
    assert torch.equal(table[:prefix], torch.zeros(prefix, 16))
    rows, columns = encoder.grid_size
    assert (rows, columns) == (3, 5)
    for row in range(rows):
        for column in range(columns):
            angles = [[x * 10000 ** (-4 * i / 16) for i in range(4)] for x in (row, column)]
            expected = [f(a) for axis in angles for f in (math.sin, math.cos) for a in axis]
            got = table[prefix + row * columns + column]
            assert torch.allclose(got, torch.tensor(expected), atol=1e-6)


def test_it_stays_the_trainable_parameter_that_it_was() -> None:
    encoder = vit()
    before = encoder.backbone.pos_embed
    init_sincos_positions(encoder)
    assert encoder.backbone.pos_embed is before
    assert before.requires_grad
    encoder(torch.rand(2, 3, 24, 40)).sum().backward()
    assert before.grad is not None


@pytest.mark.parametrize(
    "build",
    [
        lambda: MaskedViT(timm.create_model("vit_small_patch16_dinov3", num_classes=0, depth=1)),
        lambda: MaskedViT(timm.create_model("beit_base_patch16_224", num_classes=0, depth=1)),
        lambda: MaskedViT(timm.create_model("hiera_tiny_224", num_classes=0), mask_mode="replace"),
    ],
)
def test_other_positions_are_refused(build) -> None:
    with pytest.raises(UnsupportedBackboneError, match="pos_embed"):
        init_sincos_positions(build())


def test_an_embedding_of_another_form_is_refused() -> None:
    encoder = vit()
    encoder.backbone.pos_embed = torch.nn.Parameter(torch.zeros(1, 16, 3, 5))  # as PiT has it
    with pytest.raises(UnsupportedBackboneError, match=r"shape \[1, tokens, width\]"):
        init_sincos_positions(encoder)


@pytest.mark.no_hook
def test_a_bare_backbone_is_refused() -> None:
    with pytest.raises(TypeError, match=r"encoder: must be a MaskedViT, got .*VisionTransformer$"):
        init_sincos_positions(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1))


def test_a_width_without_four_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="18 wide: must be a multiple of 4"):
        init_sincos_positions(vit(embed_dim=18))
