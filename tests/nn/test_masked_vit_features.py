"""`MaskedViT.forward_intermediates` and `.extract_features`."""

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf

from jepakit import MaskedViT, TokenSet, take_tokens


def test_intermediates_are_what_the_blocks_give(
    any_kind, build, images_for, ragged, assert_close
) -> None:
    """Trap: `output_fmt="NCHW"` silently scrambles a dropped set onto the full grid."""
    encoder = build(any_kind, depth=3)
    outputs = []
    for block in encoder.backbone.blocks:
        block.register_forward_hook(lambda _, __, out: outputs.append(out))
    images = images_for(encoder, 3)
    tokens = ragged(encoder.grid_size, 3, at_least=1)
    prefix = encoder.num_prefix_tokens
    with torch.no_grad():
        for context in (None, TokenSet.full(encoder.grid_size, (3,)), tokens):
            outputs.clear()
            encoder(images, context)
            expected = [out[:, prefix:] for out in outputs]
            if context is tokens:
                expected = [out.masked_fill(~tokens.valid[..., None], 0) for out in expected]
            first, last = encoder.forward_intermediates(images, [0, -1], context)
            assert_close(first, expected[0])
            assert_close(last, expected[2])


def test_normed_intermediates_end_where_forward_does(
    any_kind, build, images_for, ragged, assert_close
) -> None:
    """Trap: a final norm that no layer went through has no gradient, at which DDP stops."""
    encoder = build(any_kind, depth=3)
    images = images_for(encoder, 3)
    tokens = ragged(encoder.grid_size, 3, at_least=1)
    norm = encoder.backbone.norm
    for context in (None, tokens):
        first, last = encoder.forward_intermediates(images, [0, -1], context, norm=True)
        (plain,) = encoder.forward_intermediates(images, [0], context)
        expected = norm(plain)
        if context is tokens:
            expected = expected.masked_fill(~tokens.valid[..., None], 0)
        assert_close(first, expected)
        assert_close(last, encoder(images, context))
        (first.square().sum() + last.square().sum()).backward()
        for name, parameter in norm.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.no_hook
def test_stages_have_no_common_norm() -> None:
    backbone = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, img_size=64)
    encoder = MaskedViT(backbone, mask_mode="replace")
    images = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"norm=True: must be False with mask_mode='replace'"):
        encoder.forward_intermediates(images, [-1], norm=True)
    with pytest.raises(TypeError, match=r"norm='yes': must be a bool"):
        encoder.forward_intermediates(images, [-1], norm="yes")


def test_intermediates_of_a_context_are_a_masked_forward(
    few_kind, build, cached, images_for, ragged, assert_close, hide_keys
) -> None:
    encoder = cached(few_kind)
    images = images_for(encoder, 3)
    tokens = ragged(encoder.grid_size, 3, at_least=1)
    prefix = encoder.num_prefix_tokens
    keys = torch.cat([torch.ones(3, prefix, dtype=torch.bool), tokens.to_mask()], dim=1)
    with torch.no_grad():
        ours = encoder.forward_intermediates(images, [0, 1], tokens)
        hide_keys(keys)
        theirs = build(few_kind, wrapped=False).forward_intermediates(
            images, output_fmt="NLC", intermediates_only=True
        )
        for layer, full in zip(ours, theirs, strict=True):
            assert_close(layer, take_tokens(full, tokens))


def test_intermediates_stop_early(few_kind, build, images_for) -> None:
    encoder = build(few_kind)
    calls = []
    for block in encoder.backbone.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    assert len(encoder.forward_intermediates(images_for(encoder, 1), [0])) == 1
    assert len(calls) == 1


@pytest.mark.parametrize("layers", [[], [2], [-3], [1, 0], [0, 0], [0, -2]])
def test_intermediates_refuse_other_layers(layers, cached, images_for) -> None:
    encoder = cached("vit_cls")
    with pytest.raises(ValueError, match=r"layers=.*distinct numbers of 2 blocks, ascending"):
        encoder.forward_intermediates(images_for(encoder, 1), layers)


@pytest.mark.parametrize("kind", [tuple, np.array, torch.Size, OmegaConf.create])
def test_layers_may_be_any_sequence(kind, cached, images_for) -> None:
    encoder = cached("vit_cls")
    images = images_for(encoder, 1)
    for ours, expected in zip(
        encoder.forward_intermediates(images, kind([0, 1])),
        encoder.forward_intermediates(images, [0, 1]),
        strict=True,
    ):
        assert torch.equal(ours, expected)


def test_mean_features_are_the_mean_of_patches(any_kind, cached, images_for, assert_close) -> None:
    """Traps: a mean over the wrong axis; class and register tokens in the mean; no `fc_norm`."""
    encoder = cached(any_kind)
    images = images_for(encoder, 2)
    with torch.no_grad():
        expected = encoder.backbone.fc_norm(encoder(images).mean(dim=1))
        assert_close(encoder.extract_features(images), expected)
        # BEiT-3 pools the prefix too.
        if encoder.backbone.global_pool == "avg" and any_kind != "beit3":
            head = encoder.backbone.forward_head(
                encoder.backbone.forward_features(images), pre_logits=True
            )
            assert_close(encoder.extract_features(images), head)


def test_cls_features_are_the_class_token(any_kind, cached, images_for, assert_close) -> None:
    """Trap: `cls` pooling that is a mean."""
    encoder = cached(any_kind)
    images = images_for(encoder, 2)
    backbone = encoder.backbone
    if getattr(backbone, "embeds", backbone).cls_token is None:
        with pytest.raises(ValueError, match=r"pool='cls': this backbone has no class token"):
            encoder.extract_features(images, pool="cls")
        return
    with torch.no_grad():
        expected = backbone.fc_norm(backbone.forward_features(images)[:, 0])
        assert_close(encoder.extract_features(images, pool="cls"), expected)
        if backbone.global_pool == "token" and any_kind != "deit_distilled":
            head = backbone.forward_head(backbone.forward_features(images), pre_logits=True)
            assert_close(expected, head)


def test_features_ignore_a_context_left_from_before(cached, images_for, ragged) -> None:
    encoder = cached("vit_cls")
    images = images_for(encoder, 2)
    with torch.no_grad():
        before = encoder.extract_features(images)
        encoder(images, ragged(encoder.grid_size, 2, at_least=1))
        assert torch.equal(encoder.extract_features(images), before)


@pytest.mark.no_hook
def test_unknown_pool(cached, images_for) -> None:
    encoder = cached("vit_cls")
    with pytest.raises(ValueError, match=r"pool='max': must be one of 'mean', 'cls'"):
        encoder.extract_features(images_for(encoder, 1), pool="max")


@pytest.mark.parametrize("kind", ["siglip", "siglip_reg4", "naflex_map_reg1", "naflex_siglip"])
def test_map_features_are_the_backbones_pooling(kind, cached, images_for, assert_close) -> None:
    encoder = cached(kind)
    images, backbone = images_for(encoder, 2), encoder.backbone
    with torch.no_grad():
        head = backbone.forward_head(backbone.forward_features(images), pre_logits=True)
        assert_close(encoder.extract_features(images, pool="map"), head)


def test_map_needs_attention_pooling(cached, images_for) -> None:
    encoder = cached("vit_cls")
    with pytest.raises(ValueError, match=r"pool='map': this backbone has no attention pooling"):
        encoder.extract_features(images_for(encoder, 1), pool="map")


def test_unpooled_features_are_those_of_forward(few_kind, cached, images_for) -> None:
    encoder = cached(few_kind)
    images = images_for(encoder, 2)
    with torch.no_grad():
        assert torch.equal(encoder.extract_features(images, pool=None), encoder(images))


@pytest.mark.parametrize("size", [64, (64, 64), [64, 64], torch.Size((64, 64)), np.int64(64)])
def test_grid_size_of(size, cached) -> None:
    assert cached("vit_cls").grid_size_of(size) == (4, 4)


def test_grid_size_of_what_forward_takes(any_kind, cached, images_for) -> None:
    encoder = cached(any_kind)
    images = images_for(encoder, 1)
    assert encoder.grid_size_of(images.shape[2:]) == encoder.grid_size


def test_grid_size_of_what_forward_refuses(cached) -> None:
    for kind, size, text in (
        ("vit_cls", 96, r"images of 96 x 96 pixels: must be 64 x 64, as the backbone was built"),
        ("vit_dynamic", (50, 48), r"images of 50 x 48 pixels: sides must be multiples"),
        ("vit_cls", 0, r"image_size\[0\]=0: must be at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            cached(kind).grid_size_of(size)
    assert cached("vit_dynamic").grid_size_of((48, 80)) == (3, 5)


def test_pooled_features_of_a_context(few_kind, cached, images_for, ragged, assert_close) -> None:
    """Laws 5 and 6: the mean over what is visible, whatever padding a batch forces. Traps: padding
    in the mean; `fc_norm`, which makes its bias of a sample that has nothing."""
    encoder = cached(few_kind)
    images, tokens = images_for(encoder, 4), ragged(encoder.grid_size, 4)
    mask = tokens.to_mask()
    mask[0] = False
    tokens = TokenSet.from_mask(mask, encoder.grid_size)
    with torch.no_grad():
        pooled = encoder.extract_features(images, tokens)
        assert not pooled[0].any()
        for row in range(1, 4):
            alone = TokenSet.from_mask(mask[row : row + 1], encoder.grid_size)
            if not alone.counts().item():
                continue
            expected = encoder.extract_features(images[row : row + 1], alone)
            assert_close(pooled[row : row + 1], expected)
            mean = encoder(images[row : row + 1], alone).mean(dim=1)
            norm = getattr(encoder.backbone, "fc_norm", torch.nn.Identity())
            assert_close(expected, norm(mean))
        full = TokenSet.full(encoder.grid_size, (4,))
        assert_close(encoder.extract_features(images, full), encoder.extract_features(images))
        unpooled = encoder.extract_features(images, tokens, pool=None)
        assert torch.equal(unpooled, encoder(images, tokens))


def test_class_token_of_a_context(cached, images_for, assert_close) -> None:
    """The class token attends to the context alone."""
    encoder = cached("vit_cls")
    images, other = images_for(encoder, 2), images_for(encoder, 2)
    mask = torch.arange(16).expand(2, -1) < 8  # the upper half
    tokens = TokenSet.from_mask(mask, (4, 4))
    other[:, :, :32] = images[:, :, :32]
    with torch.no_grad():
        pooled = encoder.extract_features(images, tokens, pool="cls")
        assert torch.equal(encoder.extract_features(other, tokens, pool="cls"), pooled)
        assert not torch.allclose(encoder.extract_features(images, pool="cls"), pooled)


def test_attention_pooling_takes_no_context(cached, images_for) -> None:
    encoder = cached("siglip")
    images, full = images_for(encoder, 1), TokenSet.full(encoder.grid_size, (1,))
    with pytest.raises(ValueError, match=r"pool='map': takes no context"):
        encoder.extract_features(images, full, pool="map")
