"""Law 14 for backbones of every family: compiled, exported, in half precision, in other memory
formats, partly frozen."""

import pytest
import torch

from jepakit import TokenSet

pytestmark = pytest.mark.no_hook

# One of each way to drop patches; others differ in what timm computes.
FAMILIES = ["vit_cls", "dinov3", "beit", "beit_shared", "relpos", "relpos_shared_mlp", "naflex"]


@pytest.fixture(autouse=True)
def _forget_compiled() -> None:
    torch.compiler.reset()


def ragged_context(encoder, batch: int, *, first: int = 3) -> TokenSet:
    size = encoder.grid_size[0] * encoder.grid_size[1]
    mask = torch.rand(batch, size).argsort(dim=1) < size // 2
    mask[0] = torch.arange(size) < first
    return TokenSet.from_mask(mask, encoder.grid_size)


@pytest.mark.parametrize("kind", FAMILIES)
def test_one_graph(kind, build, images_for, assert_close) -> None:
    """`fullgraph=True`, forward and backward, whole and ragged."""
    encoder = build(kind)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    images, context = images_for(encoder, 3), ragged_context(encoder, 3)
    for seen in (None, context):
        gradients = []
        for forward in (encoder, compiled):
            encoder.zero_grad()
            out = forward(images, seen)
            out.square().mean().backward()
            gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
            if forward is encoder:
                expected = out
        assert_close(out, expected, 1e-4)
        assert len(gradients[0]) == len(gradients[1])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())
            )


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_one_graph_with_checkpointing(kind, build, images_for, assert_close) -> None:
    """Blocks with a bias of their own included, whose context is computed again with them."""
    encoder = build(kind).train()
    if kind == "relpos_shared_mlp":
        encoder.backbone.shared_rel_pos.eval()  # it has a dropout of its own
    images, context = images_for(encoder, 3), ragged_context(encoder, 3)
    expected = encoder(images, context)
    expected.square().mean().backward()
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    encoder.zero_grad()
    encoder.backbone.set_grad_checkpointing(True)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    out = compiled(images, context)
    assert_close(out, expected, 1e-4)
    out.square().mean().backward()
    actual = [p.grad for p in encoder.parameters() if p.grad is not None]
    for ours, theirs in zip(actual, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


# From torch 2.6, about stack traces: a stand-in for a module is no child of the encoder.
@pytest.mark.filterwarnings("ignore:Unable to find the path of the module")
@pytest.mark.parametrize("kind", FAMILIES)
def test_exports(kind, build, images_for, assert_close, tmp_path) -> None:
    """Saved and loaded, the program takes other images and other contexts of the same length."""
    encoder = build(kind)
    images, context = images_for(encoder, 3), ragged_context(encoder, 3)
    with torch.no_grad():
        program = torch.export.export(encoder, (images, context), strict=False)
        torch.export.save(program, tmp_path / "encoder.pt2")
        # The file holds the example inputs, which are read with `weights_only=True`.
        program = torch.export.load(tmp_path / "encoder.pt2")
        other = ragged_context(encoder, 3, first=1)
        assert other.shape == context.shape
        images = images_for(encoder, 3)
        assert_close(program.module()(images, other), encoder(images, other))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(kind, dtype, build, images_for) -> None:
    encoder = build(kind)
    images, context = images_for(encoder, 3), ragged_context(encoder, 3)
    expected = encoder(images, context)
    with torch.autocast("cpu", dtype=dtype):
        out = encoder(images, context)
    assert torch.isfinite(out).all()
    error = (out.float() - expected)[context.valid].abs().mean()
    assert error < 0.05 * expected[context.valid].abs().mean()
    out.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", FAMILIES)
def test_whole_bfloat16(kind, build, images_for) -> None:
    encoder = build(kind).bfloat16()
    images, context = images_for(encoder, 3).bfloat16(), ragged_context(encoder, 3)
    out = encoder(images, context)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


def test_channels_last(few_kind, build, images_for, assert_close) -> None:
    encoder = build(few_kind)
    images, context = images_for(encoder, 3), ragged_context(encoder, 3)
    expected = encoder(images, context)
    encoder = encoder.to(memory_format=torch.channels_last)
    out = encoder(images.to(memory_format=torch.channels_last), context)
    assert_close(out, expected)


def test_frozen_blocks(few_kind, build, images_for) -> None:
    """Frozen parameters get no gradient and all others do, in whatever block they are."""
    encoder = build(few_kind).train()
    encoder.backbone.blocks[0].requires_grad_(False)
    encoder(images_for(encoder, 3), ragged_context(encoder, 3)).square().mean().backward()
    assert all(p.grad is None for p in encoder.backbone.blocks[0].parameters())
    assert all(p.grad is not None for p in encoder.backbone.blocks[1].parameters())
