"""Law 14 for `TokenViT`: compiled, in half precision, with checkpointing."""

import pytest
import torch
from tests.nn.test_token_vit import AXES, CLIPS, KIND, KINDS, build, inputs_on
from torch._dynamo.testing import CompileCounter

from jepakit import TokenSet

pytestmark = pytest.mark.no_hook
SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def _forget_compiled() -> None:
    torch.compiler.reset()


def context_on(grid: tuple[int, ...], batch: int, seed: int = 0) -> TokenSet:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, torch.Size(grid).numel(), generator=generator) < 0.5
    tokens = TokenSet.from_mask(mask, grid)
    return TokenSet(tokens.idx, tokens.valid, grid, padded=True)


# Compiling takes seconds: the quick suite has one of each kind of graph, the whole suite all.
QUICK = [(3, "rope", True)]
GRAPHS = [
    pytest.param(*kind, checkpointing, marks=() if (*kind, checkpointing) in QUICK else SLOW)
    for kind in KINDS
    for checkpointing in (False, True)
]


@pytest.mark.parametrize(("axes", "position", "checkpointing"), GRAPHS)
def test_one_graph(axes, position, checkpointing, assert_close) -> None:
    """`fullgraph=True`, forward and backward, whole and ragged."""
    registers = {"num_registers": 2, "repeat_registers": True} if axes == 3 else {}
    encoder = build(axes, position=position, **registers).train()
    encoder.set_grad_checkpointing(checkpointing)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    grid = AXES[axes][0]
    inputs = inputs_on(axes, grid, 3)
    for context in (None, context_on(grid, 3)):
        outputs = []
        for forward in (encoder, compiled):
            encoder.zero_grad()
            out = forward(inputs, context)
            out.square().mean().backward()
            outputs.append([out, *(parameter.grad.clone() for parameter in encoder.parameters())])
        for ours, theirs in zip(*outputs, strict=True):
            assert_close(ours, theirs, 1e-4)


@pytest.mark.parametrize(
    "position", ["rope", *(pytest.param(kind, marks=SLOW) for kind in ("sincos", "rope-vjepa2"))]
)
def test_two_graphs_for_clips_of_any_size(position) -> None:
    """The first for its size, the second for all. Trap: a size that a check makes a constant."""
    encoder, counter = (
        build(position=position, num_registers=1, repeat_registers=True),
        CompileCounter(),
    )
    compiled = torch.compile(encoder, fullgraph=True, backend=counter)
    grids = [(2, 3, 4), (3, 5, 6), (4, 2, 5), (2, 3, 4)]
    for context in (False, True):
        for grid in grids:
            clip = inputs_on(3, grid)
            seen = (context_on(grid, 2),) if context else ()
            torch.testing.assert_close(compiled(clip, *seen), encoder(clip, *seen))
        assert counter.frame_count == 2 * (1 + context)


@KIND
def test_autocast(axes, position) -> None:
    registers = {"num_registers": 2, "repeat_registers": True} if axes == 3 else {}
    encoder, grid = build(axes, position=position, **registers), AXES[axes][0]
    inputs = inputs_on(axes, grid, 3)
    for context in (None, context_on(grid, 3)):
        expected = encoder(inputs, context)
        with torch.autocast("cpu", torch.bfloat16):
            out = encoder(inputs, context)
        error = (out.float() - expected).abs().mean()
        assert error < 0.03 * expected.abs().mean()
        out.float().square().mean().backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Unable to find the path of the module")
@CLIPS
def test_exports(position, assert_close) -> None:
    encoder, clip, context = (
        build(position=position),
        inputs_on(3, (2, 3, 4)),
        context_on((2, 3, 4), 2),
    )
    with torch.no_grad():
        program = torch.export.export(encoder, (clip, context), strict=False)
        clip = torch.randn_like(clip)
        assert_close(program.module()(clip, context), encoder(clip, context))
