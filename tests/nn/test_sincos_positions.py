"""Positions that a backbone begins with: sines and cosines on its grid, or a clear refusal."""

import math

import pytest
import timm
import torch

from jepakit import MaskedViT
from jepakit.nn import UnsupportedBackboneError, init_sincos_positions


def vit(**options) -> MaskedViT:
    options = dict(img_size=(24, 40), patch_size=8, embed_dim=16, depth=1, num_heads=2) | options
    return MaskedViT(timm.create_model("vit_tiny_patch16_224", num_classes=0, **options))


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, 1),
        ({"reg_tokens": 3}, 4),
        ({"reg_tokens": 3, "no_embed_class": True}, 0),
        ({"class_token": False, "global_pool": "avg"}, 0),
    ],
)
def test_every_patch_gets_its_row_and_column(options, prefix) -> None:
    """Trap: prefix tokens shift the table by one, and every patch is told its neighbour's place."""
    encoder = vit(**options)
    init_sincos_positions(encoder)
    table = encoder.backbone.pos_embed[0]
    assert torch.equal(table[:prefix], torch.zeros(prefix, 16))
    rows, columns = encoder.grid_size
    assert (rows, columns) == (3, 5)
    for row in range(rows):
        for column in range(columns):
            angles = [[x * 10000 ** (-4 * i / 16) for i in range(4)] for x in (row, column)]
            expected = [f(a) for axis in angles for f in (math.sin, math.cos) for a in axis]
            got = table[prefix + row * columns + column]
            assert torch.allclose(got, torch.tensor(expected), atol=1e-6)


def test_it_stays_the_trainable_parameter_that_it_was() -> None:
    encoder = vit()
    before = encoder.backbone.pos_embed
    init_sincos_positions(encoder)
    assert encoder.backbone.pos_embed is before
    assert before.requires_grad
    encoder(torch.rand(2, 3, 24, 40)).sum().backward()
    assert before.grad is not None


@pytest.mark.parametrize(
    "build",
    [
        lambda: MaskedViT(timm.create_model("vit_small_patch16_dinov3", num_classes=0, depth=1)),
        lambda: MaskedViT(timm.create_model("beit_base_patch16_224", num_classes=0, depth=1)),
        lambda: MaskedViT(timm.create_model("hiera_tiny_224", num_classes=0), mask_mode="replace"),
    ],
)
def test_other_positions_are_refused(build) -> None:
    with pytest.raises(UnsupportedBackboneError, match="pos_embed"):
        init_sincos_positions(build())


def test_an_embedding_of_another_form_is_refused() -> None:
    encoder = vit()
    encoder.backbone.pos_embed = torch.nn.Parameter(torch.zeros(1, 16, 3, 5))  # as PiT has it
    with pytest.raises(UnsupportedBackboneError, match=r"shape \[1, tokens, width\]"):
        init_sincos_positions(encoder)


@pytest.mark.no_hook
def test_a_bare_backbone_is_refused() -> None:
    with pytest.raises(TypeError, match="encoder: must be a MaskedViT, got VisionTransformer"):
        init_sincos_positions(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1))


def test_a_width_without_four_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="18 wide: must be a multiple of 4"):
        init_sincos_positions(vit(embed_dim=18))
