"""Laws 5 and 6 of `MaskedViT`: batch-mates and padding change nothing and get nothing."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepakit import TokenSet


def widened(tokens: TokenSet, extra: int) -> TokenSet:
    """The same sets with more padding."""
    idx = torch.nn.functional.pad(tokens.idx, (0, extra))
    valid = torch.nn.functional.pad(tokens.valid, (0, extra))
    return TokenSet(idx, valid, tokens.grid_size, padded=True)


def alone(tokens: TokenSet, sample: int) -> TokenSet:
    """One sample's set, without any padding."""
    return TokenSet.from_mask(tokens.to_mask()[sample : sample + 1], tokens.grid_size)


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(0, 7))
def test_batch_invariance(
    any_kind, cached, images_for, ragged, assert_close, seed, batch, extra
) -> None:
    """Traps: padded keys that attend; 0-padded indices that gather patch 0."""
    torch.manual_seed(seed)
    encoder = cached(any_kind)
    images = images_for(encoder, batch)
    tokens = widened(ragged(encoder.grid_size, batch), extra)
    with torch.no_grad():
        together = encoder(images, tokens)
        largest = together.abs().max().clamp(min=1e-30)
        order = torch.randperm(batch)
        shuffled = TokenSet(tokens.idx[order], tokens.valid[order], tokens.grid_size)
        assert_close(encoder(images[order], shuffled), together[order])
        for sample in range(batch):
            one = alone(tokens, sample)
            count = one.shape[1]
            if count == 0 and encoder.num_prefix_tokens == 0:
                continue  # no token at all is left to attend
            expected = encoder(images[sample : sample + 1], one)[0]
            error = (together[sample, :count] - expected).abs().max() if count else torch.zeros(())
            assert error <= 1e-5 * largest
    assert not together[~tokens.valid].any(), "padding must come out as exact zeros"


def test_padding_gives_and_gets_no_gradient(
    few_kind, build, images_for, ragged, assert_close
) -> None:
    """A batch's gradient is the sum of its samples' own, whatever gradient arrives at padding."""
    # timm before 1.0.31 has no double precision for mixed rotary tables.
    dtype = torch.float32 if few_kind == "rope_mixed" else torch.float64
    encoder = build(few_kind).to(dtype)
    images = images_for(encoder, 4).to(dtype).requires_grad_()
    tokens = ragged(encoder.grid_size, 4, at_least=1)
    into = torch.randn(*tokens.shape, encoder.embed_dim, dtype=dtype)
    into = into.masked_fill(~tokens.valid.unsqueeze(-1), torch.nan)
    parameters = [p for n, p in encoder.named_parameters() if "head" not in n]
    wanted = [images, *parameters]
    together = torch.autograd.grad(encoder(images, tokens), wanted, into, materialize_grads=True)
    total = [torch.zeros_like(tensor) for tensor in wanted]
    for sample in range(4):
        one = alone(tokens, sample)
        out = encoder(images[sample : sample + 1], one)
        parts = torch.autograd.grad(
            out, wanted, into[sample : sample + 1, : one.shape[1]], materialize_grads=True
        )
        for sum_, part in zip(total, parts, strict=True):
            sum_ += part
    for ours, expected in zip(together, total, strict=True):
        # timm keeps rotary tables in float32 in double models too.
        assert_close(ours, expected, 1e-4 if dtype == torch.float32 else 1e-6)
    # Hidden pixels get none.
    rows, columns = encoder.grid_size
    blocks = together[0].unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).abs()
    assert torch.equal(blocks.sum(dim=(1, 3, 5)).flatten(1) > 0, tokens.to_mask())


@pytest.mark.parametrize("fused", [True, False])
def test_nothing_visible_is_no_nan(patch_kind, build, images_for, fused) -> None:
    """Trap: a fully masked row gives NaN on the unfused path."""
    encoder = build(patch_kind)
    set_fused(encoder, fused)
    images = images_for(encoder, 3).requires_grad_()
    mask = torch.zeros(3, encoder.grid_size[0] * encoder.grid_size[1], dtype=torch.bool)
    mask[1, 1:4] = True
    out = encoder(images, TokenSet.from_mask(mask, encoder.grid_size))
    assert torch.isfinite(out).all()
    assert not out[0].any() and not out[2].any() and out[1].any()
    out.square().sum().backward()
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None] + [images.grad]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not images.grad[[0, 2]].any() and images.grad[1].any()


def test_a_batch_with_nothing_visible(few_kind, build, images_for) -> None:
    """Sets of length 0, and sets that are padding only."""
    encoder = build(few_kind)
    images = images_for(encoder, 2)
    for length in (0, 3):
        idx = torch.zeros(2, length, dtype=torch.int64)
        nothing = TokenSet(idx, idx.bool(), encoder.grid_size)
        out = encoder(images, nothing)
        assert out.shape == (2, length, encoder.embed_dim)
        assert not out.any()


def test_fused_and_unfused_attention_agree(
    patch_kind, build, images_for, ragged, assert_close
) -> None:
    encoder = build(patch_kind)
    unfused = copy.deepcopy(encoder)
    set_fused(encoder, True)
    set_fused(unfused, False)
    images = images_for(encoder, 4)
    tokens = ragged(encoder.grid_size, 4)
    with torch.no_grad():
        assert_close(unfused(images, tokens), encoder(images, tokens))
        assert_close(unfused(images), encoder(images))


@pytest.mark.parametrize("rate", ["attn_drop_rate", "proj_drop_rate", "drop_path_rate"])
def test_nothing_is_dropped_at_random_in_eval(few_kind, rate, build, cached, images_for, ragged):
    """Trap: the probability of the dropout module handed to fused attention in eval mode, too."""
    plain, encoder = cached(few_kind), build(few_kind, **{rate: 0.5})
    encoder.load_state_dict(plain.state_dict())
    images, tokens = images_for(plain, 4), ragged(plain.grid_size, 4, at_least=1)
    with torch.no_grad():
        expected = plain(images, tokens)
        assert torch.equal(encoder(images, tokens), expected)
        assert not torch.equal(encoder.train()(images, tokens), expected)


def set_fused(encoder: torch.nn.Module, fused: bool) -> None:
    modules = [module for module in encoder.modules() if hasattr(module, "fused_attn")]
    assert modules
    for module in modules:
        module.fused_attn = fused


def test_mask_is_not_taken_for_something_else(build, images_for, assert_close) -> None:
    """Trap: a mask of shape (B, N) is silently accepted when B == N."""
    encoder = build("gap_no_cls")  # no prefix, so that N is the length of the set
    mask = torch.rand(16, 16).argsort(dim=1) < 15
    mask[0] = True
    tokens = TokenSet.from_mask(mask, encoder.grid_size)
    assert tokens.shape == (16, 16)
    images = images_for(encoder, 16)
    with torch.no_grad():
        together = encoder(images, tokens)
        for sample in range(16):
            one = alone(tokens, sample)
            expected = encoder(images[sample : sample + 1], one)[0]
            assert_close(together[sample, : one.shape[1]], expected)
