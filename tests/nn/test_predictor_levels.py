"""One `MaskedPredictor` for the levels of a pyramid, and for targets of another width."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepakit import HierarchicalPyramid, MaskedPredictor, MultiBlockMask, TokenSet
from jepakit.masking import NestedMask
from jepakit.nn.positions import grid_coordinates, rotary_features, sincos_features
from jepakit.testing import assert_predictor_contract

POSITIONS = pytest.mark.parametrize("position", ["sincos", "rope", "learned"])
GRIDS = [(7,), (5, 6), (2, 5, 3)]


def build(grid=(5, 6), **arguments) -> MaskedPredictor:
    """Far from the initial values, as in test_predictor.py."""
    arguments = {
        "predictor_embed_dim": 48,
        "depth": 2,
        "num_heads": 4,
        "num_levels": 3,
    } | arguments
    predictor = MaskedPredictor(grid, 10, **arguments).eval()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return predictor


def single(predictor: MaskedPredictor, level: int) -> MaskedPredictor:
    """The same blocks with one level only, whose embedding went into mask token and bias."""
    grid, dim = predictor.grid_sizes[level], predictor.mask_token.numel()
    other = MaskedPredictor(
        grid,
        10,
        predictor_embed_dim=dim,
        depth=len(predictor.blocks),
        num_heads=4,
        position=predictor.position,
        joint=predictor.joint,
    ).eval()
    state = predictor.state_dict()
    embedding = state.pop("level_embedding")[level]
    state["mask_token"] = state["mask_token"] + embedding
    state["embed.bias"] = state["embed.bias"] + embedding
    if predictor.position == "learned":
        first = sum(map(math.prod, predictor.grid_sizes[:level]))
        state["position_table"] = state["position_table"][first : first + math.prod(grid)]
    else:
        is_rope = predictor.position == "rope"
        table, width = (rotary_features, dim // 4) if is_rope else (sincos_features, dim)
        rows = table(grid_coordinates(predictor.grid_size, level), width)
        other._position_rows = lambda *_: rows
    other.load_state_dict(state)
    return other


@POSITIONS
@pytest.mark.parametrize("joint", [False, True])
@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS))
def test_each_level_is_a_predictor_of_its_own_grid(
    position, joint, ragged, assert_close, seed, grid
) -> None:
    torch.manual_seed(seed)
    predictor = build(grid, position=position, joint=joint)
    assert predictor.grid_sizes == HierarchicalPyramid(grid, 10).grid_sizes
    for level, cells in enumerate(predictor.grid_sizes):
        here, asked = ragged(cells, 3, at_least=1), ragged(cells, 3, 2)
        context = torch.randn(*here.shape, 10)
        alone = single(predictor, level)
        with torch.no_grad():
            assert_close(predictor(context, here, asked), alone(context, here, asked))
            grid_of_it = predictor.predict_grid(context, here)
            assert grid_of_it.shape == (3, math.prod(cells), 10)
            assert_close(grid_of_it, alone.predict_grid(context, here))


@POSITIONS
@pytest.mark.parametrize("level", [0, 1])
def test_contract(position, level) -> None:
    """Padding, batch-mates, positions and gradients, on a fine and on a coarse level."""
    predictor = MaskedPredictor(
        (6, 5),
        10,
        predictor_embed_dim=48,
        depth=2,
        num_heads=4,
        position=position,
        num_levels=2,
        out_dim=14,
    )
    grid = predictor.grid_sizes[level]
    assert_predictor_contract(predictor, grid, 10, out_dim=14)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple).filter(lambda g: max(g) > 1),
    st.integers(0, 3),
)
def test_a_cell_is_at_the_mean_of_its_patches(grid, level) -> None:
    """In patches of the finest grid, whatever the border cuts off: a pyramid's mean of places."""
    level = min(level, max(side - 1 for side in grid).bit_length())
    places = grid_coordinates(grid).float()[None]
    pyramid = HierarchicalPyramid(grid, len(grid), num_levels=level + 1)
    expected = pyramid(places)[level].features[0]
    torch.testing.assert_close(grid_coordinates(grid, level).float(), expected)


@pytest.mark.parametrize("table", [sincos_features, rotary_features])
def test_coarse_tables_are_read_off_the_finest(table) -> None:
    """Both have the same row where a window is a single patch, at the end of an odd side."""
    fine, coarse = (table(grid_coordinates((9,), level), 12) for level in (0, 1))
    assert torch.equal(coarse[-1], fine[-1])
    apart = torch.cdist(coarse[:-1], fine)
    near = apart.topk(2, largest=False).indices.sort().values
    assert near.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


@POSITIONS
def test_levels_differ(position) -> None:
    """Trap: one predictor that cannot tell a coarse token from a fine one at the same place. The
    last patch of an odd side is a cell of its own on every level."""
    predictor = build((9,), position=position)
    with torch.no_grad():
        if position == "learned":
            predictor.position_table.zero_()
        seen = torch.ones(1, 1, dtype=torch.bool)
        context = torch.randn(1, 1, 10)
        last = [TokenSet(torch.tensor([[side - 1]]), seen, (side,)) for side in (9, 5, 3)]
        asked = [TokenSet(t.idx[None], seen[None], t.grid_size) for t in last]
        outputs = [predictor(context, here, there).flatten() for here in last for there in asked]
        distance = torch.cdist(torch.stack(outputs), torch.stack(outputs))
        assert distance.fill_diagonal_(torch.inf).min() > 1e-3
        predictor.level_embedding.zero_()
        again = [predictor(context, here, there).flatten() for here in last for there in asked]
        torch.testing.assert_close(torch.stack(again), again[0].expand(9, -1))


@POSITIONS
@pytest.mark.parametrize("joint", [False, True])
def test_a_level_from_another(position, joint, ragged, assert_close) -> None:
    """Coarse cells from a fine context, and back: as ragged, and as independent of batch-mates."""
    predictor = build(position=position, joint=joint)
    for seen, wanted in ((0, 2), (2, 0)):
        here = ragged(predictor.grid_sizes[seen], 4, at_least=1)
        asked = ragged(predictor.grid_sizes[wanted], 4, 2)
        context = torch.randn(*here.shape, 10)
        with torch.no_grad():
            together = predictor(context, here, asked)
            assert not together[~asked.valid].any()
            for sample in range(4):
                one = TokenSet.from_mask(here.to_mask()[sample : sample + 1], here.grid_size)
                ones = TokenSet.from_mask(asked.to_mask()[sample : sample + 1], asked.grid_size)
                alone = predictor(context[sample : sample + 1, : one.shape[1]], one, ones)
                assert_close(together[sample, :, : ones.shape[-1]], alone[0])


@POSITIONS
def test_every_parameter_learns_from_any_levels(position) -> None:
    """Trap: an unused parameter stops DDP. From one level alone, too, none is left out."""
    predictor = MaskedPredictor(
        (8, 8), 10, predictor_embed_dim=48, depth=2, num_heads=4, position=position, num_levels=3
    )
    masks = NestedMask((8, 8), MultiBlockMask((2, 2), context_length="pad"))(2)
    pyramid = HierarchicalPyramid((8, 8), 10)
    levels = pyramid(torch.randn(*masks.context.shape, 10), masks.context)
    for chosen in ([0], [2], [0, 1, 2]):
        predictor.zero_grad()
        total = 0.0
        for level in chosen:
            features, tokens = levels[level]
            asked = masks.coarsen(level).targets
            total = total + predictor(features, tokens, asked).square().sum()
        total.backward()
        for name, parameter in predictor.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name
        used = predictor.level_embedding.grad.any(dim=1)
        assert used.tolist() == [level in chosen for level in range(3)]


def test_one_level_has_nothing_of_it() -> None:
    """The same draws, the same names and the same output as without the argument."""
    torch.manual_seed(0)
    plain = MaskedPredictor((4, 5), 10, predictor_embed_dim=48, num_heads=4)
    torch.manual_seed(0)
    several = MaskedPredictor((4, 5), 10, predictor_embed_dim=48, num_heads=4, num_levels=2)
    ours, theirs = several.state_dict(), plain.state_dict()
    assert ours.keys() - theirs.keys() == {"level_embedding"} and not theirs.keys() - ours.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert several.level_embedding.detach().std() == pytest.approx(0.02, rel=0.3)
    assert "num_levels=2" in repr(several) and plain.grid_sizes == ((4, 5),)


@POSITIONS
def test_state_and_copies(position) -> None:
    predictor, other = build(position=position), build(position=position)
    other.load_state_dict(predictor.state_dict())
    here = TokenSet.full((3, 3), (2,))
    context = torch.randn(2, 9, 10)
    expected = predictor.predict_grid(context, here)
    for copy in (other, pickle.loads(pickle.dumps(predictor))):
        assert torch.equal(copy.predict_grid(context, here), expected)


@pytest.mark.no_hook
def test_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    predictor = build((5, 7), depth=1, position="rope", out_dim=6)
    compiled = torch.compile(predictor, fullgraph=True, backend="eager")
    for level, grid in enumerate(predictor.grid_sizes):
        idx = torch.tensor([[0, 1], [1, 0]])
        here = TokenSet(idx, torch.tensor([[True, True], [True, False]]), grid)
        asked = TokenSet.full(predictor.grid_sizes[-level - 1], (2, 1))
        context = torch.randn(2, 2, 10)
        with torch.no_grad():
            torch.testing.assert_close(
                compiled(context, here, asked), predictor(context, here, asked)
            )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_levels": 0}, r"num_levels=0: must be at least 1"),
        (
            {"num_levels": 5},
            r"num_levels=5: the grid \(5, 6\) is a single cell on level 3, so it has 4 levels",
        ),
        ({"out_dim": 0}, r"out_dim=0: must be at least 1"),
    ],
)
def test_constructor_errors(changes, text) -> None:
    with pytest.raises(ValueError, match=text):
        build(**changes)


def test_tokens_of_no_level() -> None:
    context, here = torch.zeros(1, 30, 10), TokenSet.full((6, 5), (1,))
    text = (
        r"context is on the grid \(6, 5\): must be on one of "
        r"\(\(5, 6\), \(3, 3\), \(2, 2\)\)"
    )
    with pytest.raises(ValueError, match=text):
        build()(context, here, TokenSet.full((5, 6), (1, 1)))
    with pytest.raises(ValueError, match=text):
        build().predict_grid(context, here)


def test_width_of_the_predictions(ragged) -> None:
    """`out_dim` is the last axis, and the first entries are those of a head of that width."""
    wide = build(num_levels=1, out_dim=25)
    narrow = build(num_levels=1)
    state = {
        name: tensor[:10] if name.startswith("proj.") else tensor
        for name, tensor in wide.state_dict().items()
    }
    narrow.load_state_dict(state)
    here, asked = ragged((5, 6), 3, at_least=1), ragged((5, 6), 3, 2)
    context = torch.randn(*here.shape, 10)
    with torch.no_grad():
        out = wide(context, here, asked)
        assert out.shape == (*asked.shape, 25)
        torch.testing.assert_close(out[..., :10], narrow(context, here, asked))
        assert wide.predict_grid(context, here).shape == (3, 30, 25)
