"""Laws 3 and 4 of `MaskedViT`, on timm models of every kind."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from jepakit import MaskedViT, TokenSet, put_tokens, take_tokens
from jepakit.nn._padding import key_mask


def test_everything_visible_is_the_backbone(any_kind, build, images_for, assert_close) -> None:
    """Traps: a gather shifted by the class token; registers, none or five prefix tokens; no
    `pos_embed`; the wrong norm."""
    encoder = build(any_kind)
    images = images_for(encoder, 3)
    with torch.no_grad():
        tokens = encoder(images)
        expected = encoder.backbone.forward_features(images)[:, encoder.num_prefix_tokens :]
        assert tokens.shape == (3, *expected.shape[1:])
        assert torch.equal(tokens, expected)
        # The same model, never wrapped.
        bare = build(any_kind, wrapped=False)
        features = bare.forward_features(images)
        assert_close(tokens, features[:, bare.num_prefix_tokens :])

        everything = TokenSet.full(encoder.grid_size, (3,))
        assert_close(encoder(images, everything), expected)
        with_mask = TokenSet(everything.idx, everything.valid, encoder.grid_size, padded=True)
        assert_close(encoder(images, with_mask), expected)


def test_a_context_is_a_masked_full_forward(
    any_kind, build, cached, images_for, ragged, assert_close, hide_keys
) -> None:
    """Trap: masked tokens zeroed but left as keys."""
    encoder = cached(any_kind)
    images = images_for(encoder, 5)
    tokens = ragged(encoder.grid_size, 5, at_least=1)
    prefix = encoder.num_prefix_tokens
    keys = torch.cat([torch.ones(5, prefix, dtype=torch.bool), tokens.to_mask()], dim=1)
    with torch.no_grad():
        actual, unmasked = encoder(images, tokens), take_tokens(encoder(images), tokens)
        hide_keys(keys)
        masked = build(any_kind, wrapped=False).forward_features(images)
        expected = take_tokens(masked[:, prefix:], tokens)
        assert_close(actual, expected)
        # Were hidden tokens seen, or blocks idle, the law above would say nothing.
        partial = tokens.counts() < tokens.num_positions
        difference = (unmasked - expected)[partial].abs().max()
        assert difference > 1e-2 * expected.abs().max()


@settings(max_examples=6)
@given(st.integers(0, 2**32 - 1))
def test_no_leak(patch_kind, cached, images_for, patch_pixels, ragged, seed) -> None:
    """Law 4, exactly. Trap: padding that gathers patch 0, which is hidden here."""
    torch.manual_seed(seed)
    encoder = cached(patch_kind)
    images = images_for(encoder, 3)
    mask = ragged(encoder.grid_size, 3).to_mask()
    mask[:, 0] = False
    tokens = TokenSet.from_mask(mask, encoder.grid_size)
    other = torch.where(patch_pixels(encoder, mask), images, 1e3 * torch.randn_like(images))
    with torch.no_grad():
        assert torch.equal(encoder(images, tokens), encoder(other, tokens))


def test_hidden_nan_stays_hidden(
    patch_kind, cached, images_for, patch_pixels, ragged, monkeypatch
) -> None:
    """Trap: masked tokens multiplied by zero. NaN * 0 = NaN."""
    monkeypatch.setattr("jepakit._checks.TYPECHECK", False)  # which refuses NaN
    encoder = cached(patch_kind)
    images = images_for(encoder, 4)
    mask = ragged(encoder.grid_size, 4, at_least=1).to_mask()
    mask[:, 0] = False
    tokens = TokenSet.from_mask(mask, encoder.grid_size)
    broken = images.masked_fill(~patch_pixels(encoder, mask), torch.nan)
    with torch.no_grad():
        assert torch.equal(encoder(broken, tokens), encoder(images, tokens))


def test_a_stem_is_the_only_way_in(hybrid_kind, build, images_for, ragged) -> None:
    """Law 4 as it holds where a stem mixes the pixels: its hidden patches change nothing."""
    encoder = build(hybrid_kind)
    images = images_for(encoder, 4)
    tokens = ragged(encoder.grid_size, 4, at_least=1)
    hidden = ~tokens.to_mask()
    with torch.no_grad():
        out = encoder(images, tokens)
        encoder.backbone.patch_embed.register_forward_hook(
            lambda _module, _arguments, x: x.masked_fill(hidden.unsqueeze(-1), torch.nan)
        )
        assert encoder(images).isnan().any()
        assert torch.equal(encoder(images, tokens), out)


def test_visible_pixels_matter(patch_kind, cached, images_for, patch_pixels) -> None:
    """Trap: "the last patch is never used". A change in any patch reaches it and the others."""
    encoder = cached(patch_kind)
    images = images_for(encoder, 1)
    size = encoder.grid_size[0] * encoder.grid_size[1]
    mask = torch.ones(size, size, dtype=torch.bool)
    changed = patch_pixels(encoder, torch.eye(size, dtype=torch.bool))
    tokens = TokenSet.from_mask(mask, encoder.grid_size)
    with torch.no_grad():
        before = encoder(images.expand(size, -1, -1, -1), tokens)
        after = encoder(torch.where(changed, images + 1, images), tokens)
    moved = (after - before).abs().amax(dim=-1)
    assert (moved > 1e-6 * before.abs().max()).all()


def test_order_of_positions(any_kind, build, cached, images_for, assert_close, hide_keys) -> None:
    """Every token comes out at its own place: one visible patch at a time, put back on the grid."""
    encoder = cached(any_kind)
    size = encoder.grid_size[0] * encoder.grid_size[1]
    images = images_for(encoder, 1).expand(size, -1, -1, -1)
    alone = TokenSet.from_mask(torch.eye(size, dtype=torch.bool), encoder.grid_size)
    with torch.no_grad():
        tokens = encoder(images, alone)
        hide_keys(
            torch.cat([torch.ones(size, encoder.num_prefix_tokens), torch.eye(size)], dim=1).bool()
        )
        full = build(any_kind, wrapped=False).forward_features(images)
    grid = put_tokens(tokens, alone).sum(dim=0)
    assert_close(grid, torch.einsum("nnd->nd", full[:, encoder.num_prefix_tokens :]))


@pytest.mark.parametrize("kind", ["vit_dynamic", "eva02_dynamic"])
@pytest.mark.parametrize("grid", [(2, 5), (4, 3), (1, 1)])
def test_dynamic_sizes(kind, grid, cached, ragged, assert_close) -> None:
    """Trap: `sqrt(num_tokens)` for the grid."""
    encoder = cached(kind)
    patch = encoder.backbone.patch_embed.patch_size[0]
    images = torch.randn(3, 3, grid[0] * patch, grid[1] * patch)
    tokens = ragged(grid, 3, at_least=1)
    prefix = encoder.num_prefix_tokens
    keys = torch.cat([torch.ones(3, prefix, dtype=torch.bool), tokens.to_mask()], dim=1)
    with torch.no_grad():
        assert_close(encoder(images), encoder.backbone.forward_features(images)[:, prefix:])
        masked = encoder.backbone.forward_features(images, attn_mask=keys[:, None, None])
        assert_close(encoder(images, tokens), take_tokens(masked[:, prefix:], tokens))


def test_dynamic_padding(build, assert_close) -> None:
    """`dynamic_img_pad`: the grid is rounded up, as timm does."""
    encoder = build("vit_dynamic", dynamic_img_pad=True)
    images = torch.randn(2, 3, 40, 50)  # 2.5 x 3.1 patches
    tokens = TokenSet.full((3, 4), (2,))
    with torch.no_grad():
        assert_close(encoder(images, tokens), encoder.backbone.forward_features(images)[:, 1:])


def test_fewer_tokens_are_computed(few_kind, build, images_for) -> None:
    """Trap: masking that saves nothing. Every block gets the prefix and the context alone."""
    encoder = build(few_kind)
    lengths = []
    for block in encoder.backbone.blocks:
        block.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    mask = torch.zeros(2, encoder.grid_size[0] * encoder.grid_size[1], dtype=torch.bool)
    mask[:, [1, 3, 4]] = True
    encoder(images_for(encoder, 2), TokenSet.from_mask(mask, encoder.grid_size))
    assert lengths == [encoder.num_prefix_tokens + 3] * 2


def test_a_quarter_of_the_tokens_is_a_quarter_of_the_work() -> None:
    """Counted, not timed: a ViT-S/16 at 224 pixels, whose patch embedding still sees everything."""
    encoder = MaskedViT(timm.create_model("vit_small_patch16_224", num_classes=0))
    images = torch.zeros(1, 3, 224, 224)
    visible = TokenSet.from_mask((torch.arange(196) % 4 == 0)[None], (14, 14))
    work = []
    for context in (None, visible):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder(images, context)
        work.append(counter.get_total_flops())
    assert work[1] < 0.30 * work[0]


def test_no_key_mask_without_padding(few_kind, build, images_for, monkeypatch) -> None:
    """An all-true mask costs time, so `padded=False` builds none; `padded=True` reads nothing back
    and always builds one, with one row for each sample and all its queries."""
    encoder = build(few_kind)
    built: list[tuple[int, ...]] = []

    def counted(valid):
        mask = key_mask(valid)
        built.append(tuple(mask.shape))
        return mask

    monkeypatch.setattr("jepakit.nn._backbones.backbone.key_mask", counted)
    images = images_for(encoder, 2)
    full = TokenSet.full(encoder.grid_size, (2,))
    encoder(images)
    encoder(images, full)
    assert not built
    encoder(images, TokenSet(full.idx, full.valid, full.grid_size, padded=True))
    assert built == [(2, 1, 1, encoder.num_prefix_tokens + full.num_positions)]
