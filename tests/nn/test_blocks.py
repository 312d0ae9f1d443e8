"""`Block` against timm's, its key mask, and its checkpointing."""

import pytest
import timm
import torch
from torch import nn

from jepakit.nn import Block


def scrambled(*args, **options) -> Block:
    torch.manual_seed(0)
    block = Block(*args, **options).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return block


@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_equals_timms_under_the_same_names(layer_scale, assert_close) -> None:
    ours = scrambled(24, 3, mlp_ratio=2.0, layer_scale=layer_scale)
    theirs = timm.models.vision_transformer.Block(
        24, 3, mlp_ratio=2.0, qkv_bias=True, init_values=layer_scale
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 24)
    assert_close(ours(x), theirs(x), 1e-6)
    if layer_scale:
        assert_close(Block(24, 3, layer_scale=0.3).ls2(x), 0.3 * x)


def test_only_keys_that_take_part_count(assert_close) -> None:
    block, x = scrambled(24, 3), torch.randn(2, 7, 24)
    mask = torch.zeros(2, 1, 1, 7)
    mask[0, ..., 4:] = -torch.inf
    out = block(x, mask)
    assert_close(out[0, :4], block(x[:1, :4])[0])
    assert_close(out[1], block(x[1:])[0])
    assert_close(block(x, mask, first=3), out[:, 3:])


def test_the_pairs_of_a_rotary_table(assert_close) -> None:
    """A head of 4: `halves` turns (0, 2) and (1, 3), `adjacent` turns (0, 1) and (2, 3)."""
    angle = torch.tensor([[0.3, 1.1]])
    x = torch.randn(1, 1, 4)
    halves, adjacent = scrambled(4, 1), scrambled(4, 1, rotary_pairs="adjacent")
    order = torch.tensor([0, 2, 1, 3])
    with torch.no_grad():  # the same queries and keys, their features in the other order
        for part in (adjacent.attn.qkv.weight, adjacent.attn.qkv.bias):
            queries, keys, values = part.chunk(3)
            part.copy_(torch.cat([queries[order], keys[order], values]))
    x = torch.randn(1, 2, 4)
    angles = torch.cat([0 * angle, angle])  # the second entry turns
    first = torch.cat([angles.cos(), angles.sin()], dim=-1)[None]
    each = angles.repeat_interleave(2, dim=-1)
    second = torch.cat([each.cos(), each.sin()], dim=-1)[None]
    assert_close(adjacent(x, None, second), halves(x, None, first))
    assert (halves(x, None, first) - halves(x)).abs().max() > 1e-4


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing(drop_path, assert_close) -> None:
    """Computed again in the backward pass, with the same residual branches dropped."""
    block = scrambled(24, 3, drop_path=drop_path).train()
    runs: list[None] = []
    block.attn.register_forward_pre_hook(lambda *_: runs.append(None))
    x = torch.randn(6, 7, 24)
    gradients = []
    for enable in (False, True):
        block.set_grad_checkpointing(enable)
        block.zero_grad()
        runs.clear()
        torch.manual_seed(1)
        out = block(x)
        torch.rand(5)  # the state of the generator has moved on
        out.square().sum().backward()
        assert len(runs) == 1 + enable
        gradients.append([parameter.grad for parameter in block.parameters()])
    for without, with_it in zip(*gradients, strict=True):
        assert_close(with_it, without)
    runs.clear()
    with torch.no_grad():
        block(x)
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((24, 5), {}, r"num_heads=5: must divide dim=24"),
        ((0, 1), {}, r"dim=0: must be at least 1"),
        ((24, 3), {"mlp_ratio": 0.01}, r"mlp_ratio=0.01: must leave the MLP at least one"),
        ((24, 3), {"drop_path": 1.0}, r"drop_path=1: must lie in \[0, 1\)"),
        ((24, 3), {"layer_scale": float("nan")}, r"layer_scale=nan: must be finite"),
    ],
)
def test_errors(arguments, options, text) -> None:
    with pytest.raises(ValueError, match=text):
        Block(*arguments, **options)


@pytest.mark.no_hook
def test_unknown_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rotary_pairs='all': must be one of 'halves', 'adja"):
        Block(24, 3, rotary_pairs="all")


def test_no_layer_scale_is_no_module_of_weights() -> None:
    assert isinstance(Block(24, 3).ls1, nn.Identity)


def test_drop_path_drops_whole_samples_and_scales_the_others() -> None:
    """Traps: dropped by token; the mean of a branch that shrinks."""
    block = Block(8, 2, drop_path=0.75)
    kept = block.drop_path(torch.ones(64, 5, 8))
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    assert (kept == kept[:, :1, :1]).all()
    assert torch.equal(block.eval().drop_path(torch.ones(2, 5, 8)), torch.ones(2, 5, 8))


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("x", "rotary", "error", "message"),
    [
        (torch.zeros(2, 3, 8, dtype=torch.float64), None, TypeError, "x: are torch.float64"),
        (torch.zeros(3, 8), None, ValueError, r"x \(3, 8\): must be \[batch, n, 8\]"),
        (torch.zeros(2, 3, 6), None, ValueError, r"x \(2, 3, 6\): must be \[batch, n, 8\]"),
        (torch.zeros(2, 3, 8), torch.ones(1, 1, 4), ValueError, r"rotary \(1, 1, 4\): must be \[1"),
        (torch.zeros(2, 3, 8), torch.ones(1, 3, 8), ValueError, r"\[1 or 2, 3, 4\]"),
    ],
)
def test_block_names_what_does_not_fit(x, rotary, error, message) -> None:
    """Trap: a table for one entry, which would turn all entries alike."""
    with pytest.raises(error, match=message):
        Block(8, 2)(x, rotary=rotary)
