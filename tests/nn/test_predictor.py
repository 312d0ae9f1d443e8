"""Laws of `MaskedPredictor`: padding, leaks, positions, blocks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad

from jepakit import MaskedPredictor, TokenSet
from jepakit.nn.positions import grid_coordinates, rotary_features, sincos_table

GRIDS = [(7,), (4, 5), (2, 3, 2)]
POSITIONS = ["sincos", "rope", "learned"]
KINDS = pytest.mark.parametrize(
    ("position", "joint"), [(p, j) for p in POSITIONS for j in (False, True)]
)


def build(grid=(4, 5), **arguments) -> MaskedPredictor:
    """Far from the initial values, at which blocks do little and biases nothing."""
    arguments = {"predictor_embed_dim": 48, "depth": 2, "num_heads": 4} | arguments
    predictor = MaskedPredictor(grid, 10, **arguments).eval()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return predictor


def sample_of(tokens: TokenSet, sample: int) -> TokenSet:
    """One sample's sets, with no more padding than they need."""
    return TokenSet.from_mask(tokens.to_mask()[sample : sample + 1], tokens.grid_size)


def wider(tokens: TokenSet, extra: int) -> TokenSet:
    return TokenSet(pad(tokens.idx, (0, extra)), pad(tokens.valid, (0, extra)), tokens.grid_size)


def features(tokens: TokenSet, dim: int = 10) -> torch.Tensor:
    return torch.randn(*tokens.shape, dim)


def positions_of(predictor: MaskedPredictor, grid: tuple[int, ...]) -> torch.Tensor:
    if predictor.position == "learned":
        return predictor.position_table
    if predictor.position == "rope":
        return rotary_features(grid_coordinates(grid), 48 // 4)
    return sincos_table(grid, 48)


def plain(predictor, context, context_tokens, target_tokens):
    """The docstring's formula, a sample and a block at a time, without padding or any mask."""
    out = torch.zeros(*target_tokens.shape, context.shape[-1])
    table = positions_of(predictor, context_tokens.grid_size)
    rope = predictor.position == "rope"
    for b in range(len(context)):
        known = predictor.embed(context[b, context_tokens.valid[b]])
        here = context_tokens.idx[b, context_tokens.valid[b]]
        asked = [i[v] for i, v in zip(target_tokens.idx[b], target_tokens.valid[b], strict=True)]
        together = [torch.cat(asked)] if predictor.joint else asked
        parts = []
        for places in together:
            x = torch.cat([known, predictor.mask_token.expand(len(places), -1)])[None]
            place = table[torch.cat([here, places])][None]
            if not rope:
                x = x + place
            for block in predictor.blocks:
                x = block(x, None, place if rope else None)
            parts.append(predictor.proj(predictor.norm(x))[0, len(here) :])
        if predictor.joint:
            parts = list(parts[0].split([len(places) for places in asked]))
        for m, part in enumerate(parts):
            out[b, m, : len(part)] = part
    return out


@KINDS
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS), st.integers(1, 4), st.integers(1, 3))
def test_equals_one_block_at_a_time(
    position, joint, ragged, assert_close, seed, grid, batch, blocks
) -> None:
    torch.manual_seed(seed)
    predictor = build(grid, position=position, joint=joint)
    here = ragged(grid, batch, at_least=1)
    asked = ragged(grid, batch, blocks)
    context = features(here)
    with torch.no_grad():
        assert_close(predictor(context, here, asked), plain(predictor, context, here, asked))


@KINDS
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(0, 6), st.integers(0, 6))
def test_batch_invariance(
    position, joint, ragged, assert_close, seed, batch, more_context, more_targets
) -> None:
    """Law 5. Traps: padded context as keys; a gather by 0-padded indices."""
    torch.manual_seed(seed)
    predictor = build(position=position, joint=joint)
    here = wider(ragged((4, 5), batch), more_context)
    asked = wider(ragged((4, 5), batch, 2), more_targets)
    context = features(here)
    with torch.no_grad():
        together = predictor(context, here, asked)
        largest = together.abs().max().clamp(min=1e-30)
        for sample in range(batch):
            one, ones = sample_of(here, sample), sample_of(asked, sample)
            alone = predictor(context[sample : sample + 1, : one.shape[1]], one, ones)
            length = ones.shape[-1]
            expected = torch.zeros_like(together[sample]).index_copy(
                1, torch.arange(length), alone[0]
            )
            assert (together[sample] - expected).abs().max() <= 1e-5 * largest
    assert not together[~asked.valid].any(), "padding must come out as exact zeros"


@KINDS
def test_padding_gives_and_gets_nothing(position, joint, ragged) -> None:
    """Law 6: values at padding, NaN included, enter neither value nor gradient."""
    predictor = build(position=position, joint=joint)
    here, asked = ragged((4, 5), 4), ragged((4, 5), 4, 3)
    clean = features(here)
    gone = ~here.valid.unsqueeze(-1)
    results = []
    for filler in (0.0, 1e4, torch.nan):
        context = clean.masked_fill(gone, filler).requires_grad_()
        predictor.zero_grad()
        out = predictor(context, here, asked)
        into = torch.ones_like(out).masked_fill(~asked.valid.unsqueeze(-1), filler)
        out.backward(into)
        gradients = [parameter.grad.clone() for parameter in predictor.parameters()]
        assert not context.grad[~here.valid].any()
        results.append([out.detach(), context.grad, *gradients])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@KINDS
def test_nothing_to_see_or_to_predict(position, joint) -> None:
    """Rows of padding only give zeros and finite gradients, not the NaN of an empty softmax."""
    predictor = build(position=position, joint=joint)
    idx = torch.tensor([[1, 3], [0, 0], [2, 0]])
    valid = torch.tensor([[True, True], [False, False], [True, False]])
    here = TokenSet(idx, valid, (4, 5))
    asked = TokenSet(idx[:, None].flip(0), valid[:, None].flip(0), (4, 5))
    nothing = TokenSet(idx[:, None] * 0, valid[:, None] & False, (4, 5))
    for target in (asked, nothing):
        predictor.zero_grad()
        out = predictor(features(here), here, target)
        assert torch.isfinite(out).all() and not out[~target.valid].any()
        out.square().sum().backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in predictor.parameters())
    empty = TokenSet.from_mask(torch.zeros(3, 20, dtype=torch.bool), (4, 5))
    assert empty.shape == (3, 0)
    unseen = predictor(features(empty), empty, asked)
    assert torch.isfinite(unseen).all() and unseen[asked.valid].any()


@KINDS
@pytest.mark.parametrize(("blocks", "length"), [(2, 0), (0, 3), (0, 0)])
def test_empty_target_sets(position, joint, blocks, length) -> None:
    """Trap: a size of -1, which cannot be inferred where there is nothing to predict."""
    predictor = build(position=position, joint=joint)
    context = TokenSet.full((4, 5), (3,))
    idx = torch.zeros(3, blocks, length, dtype=torch.int64)
    for padded in (False, True):
        targets = TokenSet(idx, torch.zeros_like(idx, dtype=torch.bool), (4, 5), padded)
        out = predictor(features(context), context, targets)
        assert out.shape == (3, blocks, length, 10)
        out.sum().backward()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_position_gets_its_own_prediction(position, grid) -> None:
    """Trap: no position on the mask tokens, so that all predictions are equal."""
    predictor = build(grid, position=position)
    here = TokenSet.full(grid, (1,))
    with torch.no_grad():
        predictions = predictor.predict_grid(features(here), here)[0]
    distance = torch.cdist(predictions, predictions).fill_diagonal_(torch.inf)
    assert distance.min() > 1e-3 * predictions.abs().max()


@pytest.mark.parametrize("position", POSITIONS)
def test_where_the_context_is_matters(position) -> None:
    """Trap: positions on the mask tokens alone."""
    predictor = build(position=position)
    first = TokenSet(torch.tensor([[0, 1, 2]]), torch.ones(1, 3, dtype=torch.bool), (4, 5))
    second = TokenSet(torch.tensor([[0, 1, 3]]), first.valid, (4, 5))
    asked = TokenSet(torch.tensor([[[10, 19]]]), torch.ones(1, 1, 2, dtype=torch.bool), (4, 5))
    context = features(first)
    with torch.no_grad():
        a, b = predictor(context, first, asked), predictor(context, second, asked)
    assert (a - b).abs().max() > 1e-3 * a.abs().max()


@pytest.mark.parametrize("position", POSITIONS)
def test_order_in_time_matters(position) -> None:
    """Trap: positions in space alone, to which a film that runs backwards is the same film."""
    predictor = build((3, 2, 2), position=position)
    everything = TokenSet.full((3, 2, 2), (1,))
    film = features(everything)
    backwards = film.unflatten(1, (3, 4)).flip(1).flatten(1, 2)
    with torch.no_grad():
        a, b = (predictor.predict_grid(context, everything) for context in (film, backwards))
    moved = (a - b).abs().amax(dim=-1)
    assert (moved > 1e-3 * a.abs().max()).all(), "in the frame that stays in the middle, too"


@KINDS
def test_predict_grid_is_the_prediction_of_everything(
    position, joint, ragged, assert_close
) -> None:
    predictor = build(position=position, joint=joint)
    here = ragged((4, 5), 3, at_least=1)
    context = features(here)
    everything = TokenSet.full((4, 5), (3, 1))
    with torch.no_grad():
        grid = predictor.predict_grid(context, here)
        assert grid.shape == (3, 20, 10)
        assert_close(grid, predictor(context, here, everything)[:, 0])


@KINDS
def test_order_of_blocks(position, joint, ragged, assert_close) -> None:
    """Blocks have no number: permuted in, permuted out."""
    predictor = build(position=position, joint=joint)
    here, asked = ragged((4, 5), 2, at_least=1), ragged((4, 5), 2, 4)
    order = torch.tensor([2, 0, 3, 1])
    permuted = TokenSet(asked.idx[:, order], asked.valid[:, order], (4, 5))
    context = features(here)
    with torch.no_grad():
        expected = predictor(context, here, asked)[:, order]
        assert_close(predictor(context, here, permuted), expected)


@pytest.mark.parametrize("position", POSITIONS)
def test_joint_blocks_see_each_other_and_others_do_not(position, ragged, assert_close) -> None:
    separate = build(position=position)
    joint = MaskedPredictor(
        (4, 5), 10, predictor_embed_dim=48, depth=2, num_heads=4, position=position, joint=True
    )
    joint.load_state_dict(separate.state_dict())
    here, asked = ragged((4, 5), 3, at_least=1), ragged((4, 5), 3, 2, at_least=1)
    other = TokenSet(asked.idx.clone(), asked.valid.clone(), (4, 5))
    other.idx[:, 1] = ragged((4, 5), 3, at_least=asked.shape[-1]).idx[:, : asked.shape[-1]]
    other.valid[:, 1] = True
    context = features(here)
    with torch.no_grad():
        a, b = separate(context, here, asked), separate(context, here, other)
        assert_close(a[:, 0], b[:, 0])
        a, b = joint(context, here, asked), joint(context, here, other)
        assert (a[:, 0] - b[:, 0]).abs().max() > 1e-3 * a.abs().max()
        one = TokenSet(asked.idx[:, :1], asked.valid[:, :1], (4, 5))
        assert_close(joint(context, here, one), separate(context, here, one))


@KINDS
def test_every_parameter_learns(position, joint, ragged) -> None:
    """Trap: an unused parameter stops DDP. At the initial values, and finite."""
    predictor = MaskedPredictor(
        (4, 5), 10, predictor_embed_dim=48, depth=3, num_heads=4, position=position, joint=joint
    ).train()
    here, asked = ragged((4, 5), 3, at_least=2), ragged((4, 5), 3, 2, at_least=1)
    predictor(features(here), here, asked).square().sum().backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


@KINDS
def test_runs_on_fused_attention(position, joint, ragged, assert_close, monkeypatch) -> None:
    """Trap: `need_weights=True` or a hand-written softmax. Every kernel gives the same."""
    predictor = build(position=position, joint=joint)
    here, asked = ragged((4, 5), 3, at_least=1), ragged((4, 5), 3, 2)
    context = features(here)
    calls = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(kwargs["attn_mask"].shape)
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        with sdpa_kernel(SDPBackend.MATH):
            expected = predictor(context, here, asked)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # on a CPU it takes masks
            assert_close(predictor(context, here, asked), expected)
    assert len(calls) == 4
    assert {shape[1:3] for shape in calls} == {(1, 1)}


@KINDS
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_one_key_mask_for_all_blocks(position, joint, precision, ragged, monkeypatch) -> None:
    """Traps: a bool mask, which attention converts in every block; a float32 mask beside queries in
    half precision, which no fused kernel takes."""
    predictor = build(position=position, joint=joint)
    here, asked = ragged((4, 5), 3, at_least=1), ragged((4, 5), 3, 2)
    masks, attend = [], torch.nn.functional.scaled_dot_product_attention

    def seen(q, k, v, attn_mask=None, **kwargs):
        assert q.dtype == k.dtype == attn_mask.dtype
        masks.append(attn_mask)
        return attend(q, k, v, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        inputs = features(here)
        if precision == "bfloat16":
            predictor, inputs = predictor.bfloat16(), inputs.bfloat16()
        predictor(inputs, here, asked)
    assert len(masks) == 2 and masks[0] is masks[1]
    assert masks[0].dtype == (torch.float32 if precision == "float32" else torch.bfloat16)


def test_no_key_mask_without_padding(monkeypatch) -> None:
    predictor = build()
    masks = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def seen(*args, attn_mask=None, **kwargs):
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    here = TokenSet.full((4, 5), (2,))
    predictor.predict_grid(features(here), here)
    assert masks == [None, None]


def test_initial_values() -> None:
    """I-JEPA's: truncated normal of 0.02, residual projections divided by sqrt(2 l), no biases."""
    predictor = MaskedPredictor((4, 5), 64, predictor_embed_dim=96, depth=3, num_heads=4)
    for name, parameter in predictor.state_dict().items():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif ".attn.proj." in name or ".mlp.fc2." in name:
            depth = int(name.split(".")[1]) + 1
            assert parameter.std() == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.05), name
        else:
            assert parameter.std() == pytest.approx(0.02, rel=0.2), name
    learned = MaskedPredictor((40, 5), 64, predictor_embed_dim=96, num_heads=4, position="learned")
    assert learned.position_table.detach().std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("position", POSITIONS)
def test_state_dict_round_trip(position, ragged, tmp_path) -> None:
    predictor = build(position=position)
    torch.save(predictor.state_dict(), tmp_path / "predictor.pt")
    other = build(position=position)
    other.load_state_dict(torch.load(tmp_path / "predictor.pt", weights_only=True))
    here, asked = ragged((4, 5), 2, at_least=1), ragged((4, 5), 2, 2)
    context = features(here)
    assert torch.equal(other(context, here, asked), predictor(context, here, asked))
    assert ("position_table" in predictor.state_dict()) == (position == "learned")
