"""Law 14: one graph, bf16 autocast, half precision; no host synchronisation."""

import pytest
import torch

from jepakit import HierarchicalPyramid, TokenSet

ARGUMENTS = [
    {},
    {"pool": "max", "fusion": "fpn-concat", "upsample": "bilinear", "valid_if": "all"},
    {"pool": "conv", "fusion": "fpn-add", "projection": "linear", "norm": "layer"},
    {"pool": "attention", "fusion": "fpn-add", "upsample": "bilinear"},
]
KINDS = pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda a: a.get("pool", "avg"))


@pytest.fixture(autouse=True)
def _forget_compiled() -> None:
    torch.compiler.reset()


def run(function, pyramid, features, tokens, *, autocast: bool = False):
    x = features.clone().requires_grad_()
    pyramid.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        levels = function(x, tokens)
    sum(level.features.float().square().sum() for level in levels).backward()
    gradients = [p.grad.clone() for p in pyramid.parameters()]
    return [level.features.detach() for level in levels], [x.grad, *gradients]


@pytest.mark.no_hook
@KINDS
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_one_graph(arguments, autocast, build_pyramid, ragged) -> None:
    pyramid = build_pyramid((5, 7), **arguments)
    compiled = torch.compile(pyramid, fullgraph=True, backend="aot_eager")
    sets = ragged((5, 7), 3, at_least=1)
    for tokens in (None, sets):
        features = torch.randn(*((3, 35) if tokens is None else tokens.shape), 6)
        expected = run(pyramid, pyramid, features, tokens, autocast=autocast)
        actual = run(compiled, pyramid, features, tokens, autocast=autocast)
        for ours, theirs in zip(actual, expected, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert torch.isfinite(a).all()
                scale = float(b.abs().max().clamp(min=1e-6))
                assert (a.float() - b.float()).abs().max() <= (2e-2 if autocast else 1e-4) * scale


@pytest.mark.no_hook
@pytest.mark.slow
@KINDS
def test_to_machine_code(arguments, build_pyramid, ragged) -> None:
    pyramid = build_pyramid((5, 7), **arguments)
    compiled = torch.compile(pyramid, fullgraph=True)
    tokens = ragged((5, 7), 3, at_least=1)
    features = torch.randn(*tokens.shape, 6)
    expected, actual = (run(f, pyramid, features, tokens) for f in (pyramid, compiled))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@KINDS
def test_autocast_is_close_to_float32(arguments, build_pyramid, ragged) -> None:
    pyramid = build_pyramid((7, 9), **arguments)
    tokens = ragged((7, 9), 3, at_least=1)
    features = torch.randn(*tokens.shape, 6)
    expected, _ = run(pyramid, pyramid, features, tokens)
    actual, gradients = run(pyramid, pyramid, features, tokens, autocast=True)
    for a, b in zip(actual, expected, strict=True):
        assert (a.float() - b).abs().max() <= 0.05 * b.abs().max()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(arguments, dtype, build_pyramid, ragged) -> None:
    """A pyramid that was cast as a whole gives back the type that comes in."""
    pyramid = build_pyramid((7, 9), **arguments).to(dtype)
    tokens = ragged((7, 9), 3, at_least=1)
    for level in pyramid(torch.randn(*tokens.shape, 6, dtype=dtype), tokens):
        assert level.features.dtype == dtype and torch.isfinite(level.features).all()


@pytest.mark.no_hook
@KINDS
def test_no_host_synchronisation(arguments) -> None:
    """On the meta device there are no values: lengths follow from shapes alone."""
    pyramid = HierarchicalPyramid((5, 7), 6, **arguments).to("meta")
    idx = torch.zeros(3, 11, dtype=torch.int64, device="meta")
    tokens = TokenSet(idx, torch.zeros_like(idx, dtype=torch.bool), (5, 7))
    levels = pyramid(torch.zeros(3, 11, 6, device="meta"), tokens)
    assert [level.features.shape for level in levels] == [(3, 11, 6), (3, 11, 6), (3, 4, 6)]


@pytest.mark.no_hook
@KINDS
def test_exports(arguments, build_pyramid, ragged) -> None:
    pyramid = build_pyramid((5, 7), **arguments)
    tokens = ragged((5, 7), 3, at_least=1)
    features = torch.randn(*tokens.shape, 6)
    program = torch.export.export(pyramid, (features, tokens), strict=False)
    for ours, theirs in zip(
        program.module()(features, tokens), pyramid(features, tokens), strict=True
    ):
        torch.testing.assert_close(ours.features, theirs.features)
        assert torch.equal(ours.tokens.to_mask(), theirs.tokens.to_mask())
