"""Every constructor argument of `MaskedPredictor` matters (law 12); errors; copies (law 13)."""

import copy
import pickle

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from jepakit import MaskedPredictor, Masks, TokenSet

BASE = {"predictor_embed_dim": 48, "depth": 2, "num_heads": 4}


def build(grid=(4, 5), dim=10, **changes) -> MaskedPredictor:
    torch.manual_seed(0)
    return MaskedPredictor(grid, dim, **(BASE | changes))


def inputs(grid=(4, 5), batch=2, dim=10):
    torch.manual_seed(1)
    here = TokenSet.full(grid, (batch,))
    asked = TokenSet.full(grid, (batch, 2))
    return torch.randn(*here.shape, dim), here, asked


def signature(predictor) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(p.shape)) for name, p in predictor.named_parameters()]


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": (5, 4)},
        {"dim": 12},
        {"predictor_embed_dim": 96},
        {"depth": 3},
        {"num_heads": 2},
        {"mlp_ratio": 2.0},
        {"drop_path": 0.5},
        {"position": "rope"},
        {"position": "learned"},
        {"joint": True},
        {"num_mask_tokens": 2},
        {"num_levels": 2},
        {"out_dim": 12},
    ],
)
def test_every_argument_matters(changes) -> None:
    base, changed = build(), build(**changes)
    grid, dim = changes.get("grid", (4, 5)), changes.get("dim", 10)
    outputs = base(*inputs()), changed(*inputs(grid=grid, dim=dim))
    same_parameters = signature(base) == signature(changed)
    same_outputs = outputs[0].shape == outputs[1].shape and torch.allclose(*outputs)
    assert not (same_parameters and same_outputs)


def test_arguments_set_what_they_say() -> None:
    predictor = build(predictor_embed_dim=96, depth=5, num_heads=3, mlp_ratio=2.5, drop_path=0.4)
    assert predictor.embed.out_features == 96
    assert len(predictor.blocks) == 5
    assert predictor.blocks[0].attn.num_heads == 3
    assert predictor.blocks[0].mlp.fc1.out_features == 240
    rates = [block.drop_path.prob for block in predictor.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_defaults_are_those_of_the_paper() -> None:
    predictor = MaskedPredictor((14, 14), 384)
    assert predictor.embed.out_features == 384
    assert len(predictor.blocks) == 6
    assert predictor.blocks[0].attn.num_heads == 12
    assert predictor.position == "sincos" and not predictor.joint


def test_drop_path_is_for_training_only() -> None:
    predictor = build(drop_path=0.9, depth=3)
    arguments = inputs(batch=8)
    assert not torch.equal(predictor(*arguments), predictor(*arguments))
    predictor.eval()
    assert torch.equal(predictor(*arguments), predictor(*arguments))
    assert torch.equal(predictor(*arguments), build(depth=3)(*arguments))


def test_drop_path_keeps_the_mean() -> None:
    """Dropped for whole samples, the rest scaled by 1 / (1 - prob)."""
    from jepakit.nn.blocks import DropPath

    dropped = DropPath(0.25)(torch.ones(4000, 2, 3))
    kept = dropped[:, 0, 0] > 0
    assert torch.equal(dropped, (kept / 0.75)[:, None, None].expand_as(dropped))
    assert kept.float().mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_heads": 5}, r"num_heads=5: must divide predictor_embed_dim=48"),
        ({"depth": 0}, r"depth=0: must be at least 1"),
        ({"num_mask_tokens": 0}, r"num_mask_tokens=0: must be at least 1"),
        ({"num_heads": 0}, r"num_heads=0: must be at least 1"),
        ({"predictor_embed_dim": 0}, r"predictor_embed_dim=0: must be at least 1"),
        ({"dim": 0}, r"encoder_dim=0: must be at least 1"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio=0: must be above 0"),
        ({"mlp_ratio": 0.01}, r"mlp_ratio=0.01: must leave the MLP at least one hidden unit"),
        ({"mlp_ratio": float("inf")}, r"mlp_ratio=inf: must be finite"),
        ({"drop_path": 1.0}, r"drop_path=1: must lie in \[0, 1\)"),
        ({"drop_path": -0.1}, r"drop_path=-0.1: must lie in"),
        ({"depth": 1, "drop_path": 0.3}, r"drop_path=0.3: .*depth=1"),
        ({"grid": (4, 0)}, r"grid_size=\(4, 0\): every side must be at least 1"),
        ({"grid": (2, 2, 2, 2)}, r"grid_size=\(2, 2, 2, 2\): must have 1 or 2 or 3 axes"),
        (
            {"predictor_embed_dim": 50, "num_heads": 5},
            r"predictor_embed_dim=50: must be a multiple of 4 for sine-cosine positions",
        ),
        (
            {"grid": (2, 2, 2), "predictor_embed_dim": 8},
            r"predictor_embed_dim=8: must be a multiple of 6, or even and at least 10, for sine",
        ),
        (
            {"position": "rope", "num_heads": 16},
            r"head dim 3 \(predictor_embed_dim / num_heads\): must be even and at least 4",
        ),
        (
            {"position": "rope", "num_heads": 24},
            r"head dim 2 .*: must be even and at least 4 for rotary positions",
        ),
    ],
)
def test_constructor_errors(changes, text) -> None:
    with pytest.raises(ValueError, match=text):
        build(**changes)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"position": "alibi"}, ValueError, r"position='alibi': must be one of 'sincos', 'rope', "),
        ({"joint": "yes"}, TypeError, r"joint='yes': must be a bool, got str"),
        ({"joint": 1}, TypeError, r"joint=1: must be a bool, got int"),
        ({"depth": 2.0}, TypeError, r"depth=2.0: must be an int, got float"),
        ({"depth": True}, TypeError, r"depth=True: must be an int"),
        ({"drop_path": "a"}, TypeError, r"drop_path='a': must be a number"),
        ({"grid": 14}, TypeError, r"grid_size=14: must be a sequence of ints"),
        ({"grid": (4.0, 4)}, TypeError, r"grid_size=\(4.0, 4\): must be a sequence of ints"),
    ],
)
def test_constructor_types(changes, error, text) -> None:
    with pytest.raises(error, match=text):
        build(**changes)


@pytest.mark.parametrize("sequence", [list, torch.Size, np.array, OmegaConf.create])
def test_arguments_of_configuration_files(sequence) -> None:
    """Stored as plain Python values, which `repr` and checkpoints show."""
    predictor = MaskedPredictor(
        sequence([4, 5]),
        np.int64(10),
        predictor_embed_dim=np.int64(48),
        depth=np.int32(2),
        num_heads=np.int64(4),
        mlp_ratio=np.float32(2),
        drop_path=np.float64(0.5),
        num_mask_tokens=np.int64(3),
        num_levels=np.int64(2),
        out_dim=np.int64(7),
    ).eval()
    assert type(predictor.grid_size) is tuple
    assert all(type(side) is int for side in predictor.grid_size)
    assert type(predictor.blocks[1].drop_path.prob) is float
    same = build(mlp_ratio=2, drop_path=0.5, num_mask_tokens=3, num_levels=2, out_dim=7).eval()
    assert repr(predictor) == repr(same)
    assert predictor(*inputs()).shape == (2, 2, 20, 7)


def test_unknown_arguments_raise() -> None:
    with pytest.raises(TypeError, match="dropout"):
        MaskedPredictor((4, 5), 10, dropout=0.1)


FULL = TokenSet.full


@pytest.mark.parametrize(
    ("context", "here", "asked", "text"),
    [
        (
            torch.zeros(2, 20, 11),
            FULL((4, 5), (2,)),
            FULL((4, 5), (2, 1)),
            r"features \(2, 20, 11\): must be \[batch, n, 10\], the encoder_dim",
        ),
        (
            torch.zeros(0, 20, 10),
            FULL((4, 5), (0,)),
            FULL((4, 5), (0, 1)),
            r"features \(0, 20, 10\): the batch must not be empty",
        ),
        (
            torch.zeros(2, 19, 10),
            FULL((4, 5), (2,)),
            FULL((4, 5), (2, 1)),
            r"context \(2, 20\): must list the positions of features \(2, 19, 10\)",
        ),
        (
            torch.zeros(2, 20, 10),
            FULL((4, 5), (1,)),
            FULL((4, 5), (2, 1)),
            r"context \(1, 20\): must list the positions of features",
        ),
        (
            torch.zeros(2, 20, 10),
            FULL((4, 5), (2,)),
            FULL((4, 5), (2,)),
            r"targets \(2, 20\): must be \[batch, num_targets, k\]",
        ),
        (
            torch.zeros(2, 20, 10),
            FULL((4, 5), (2,)),
            FULL((4, 5), (1, 1)),
            r"targets \(1, 1, 20\): must be .* the batch size of features, 2",
        ),
        (
            torch.zeros(2, 20, 10),
            FULL((5, 4), (2,)),
            FULL((4, 5), (2, 1)),
            r"targets is on the grid \(4, 5\), context on \(5, 4\): must be on one grid, unless",
        ),
        (
            torch.zeros(2, 20, 10),
            FULL((4, 5), (2,)),
            FULL((20,), (2, 1)),
            r"targets is on the grid \(20,\), context on \(4, 5\): must be on one grid, unless",
        ),
        (
            torch.zeros(2, 20, 10),
            FULL((20,), (2,)),
            FULL((20,), (2, 1)),
            r"context is on the grid \(20,\): must have 2 axes, as .* grid_size \(4, 5\)",
        ),
    ],
)
def test_call_errors(context, here, asked, text) -> None:
    with pytest.raises(ValueError, match=text):
        build()(context, here, asked)


def test_predict_grid_errors() -> None:
    with pytest.raises(ValueError, match=r"context is on the grid \(5, 2, 2\)"):
        build().predict_grid(torch.zeros(2, 20, 10), FULL((5, 2, 2), (2,)))


@pytest.mark.no_hook
@pytest.mark.parametrize("context", [torch.zeros(20, 10), torch.zeros(2, 1, 20, 10)])
def test_context_of_another_rank(context) -> None:
    with pytest.raises(ValueError, match=r"features \(.*must be \[batch, n, 10\]"):
        build()(context, FULL((4, 5), (2,)), FULL((4, 5), (2, 1)))


@pytest.mark.no_hook
@pytest.mark.parametrize("kind", ["Masks", "Tensor"])
def test_tokens_of_another_kind(kind) -> None:
    """Trap: all masks handed over, or a bool mask, where one token set is meant."""
    context, here, asked = inputs()
    bad = Masks(here, asked) if kind == "Masks" else here.to_mask()
    got = rf"TokenSet\.from_mask\(mask, grid_size\), got .*{kind}$"
    for call in (lambda: build()(context, bad, asked), lambda: build().predict_grid(context, bad)):
        with pytest.raises(TypeError, match=rf"^context: .* masks\.context or {got}"):
            call()
    with pytest.raises(TypeError, match=rf"^targets: .* masks\.targets or {got}"):
        build()(context, here, bad)
    with pytest.raises(TypeError, match=r"^features: must be a torch\.Tensor, got .*Masks"):
        build().predict_grid(Masks(here, asked), here)


@pytest.mark.no_hook
def test_integer_context() -> None:
    context = torch.zeros(2, 20, 10, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"features: must be floating point, got torch.int64"):
        build()(context, FULL((4, 5), (2,)), FULL((4, 5), (2, 1)))


@pytest.mark.parametrize("position", ["sincos", "rope", "learned"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(position, duplicate) -> None:
    predictor = build(position=position)
    expected = predictor(*inputs())
    other = duplicate(predictor)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.zero_()
    assert torch.equal(other(*inputs()), expected)


def test_repr_shows_the_choices() -> None:
    text = repr(build(position="rope", joint=True, drop_path=0.25))
    assert "grid_size=(4, 5), position='rope', joint=True" in text
    assert "prob=0.25" in text


@pytest.mark.parametrize("position", ["sincos", "rope", "learned"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(position, dtype) -> None:
    """Tables follow the module, so that a converted one works."""
    context, here, asked = inputs()
    predictor = build(position=position)
    expected = predictor(context, here, asked)
    out = predictor.to(dtype)(context.to(dtype), here, asked)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item()
    )
