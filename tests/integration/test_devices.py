"""Masks that stay on the CPU while images are moved give an error that names them."""

import pytest
import timm
import torch

from jepakit import (
    HierarchicalPyramid,
    MaskedPredictor,
    MaskedViT,
    RandomMask,
    mean_tokens,
    put_tokens,
    take_tokens,
)

GRID = (4, 4)
MASKS = RandomMask(GRID)(2, generator=torch.Generator().manual_seed(0))
CONTEXT, TARGETS = MASKS.context, MASKS.targets


def on_meta(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta")


def encoder() -> MaskedViT:
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, depth=1)
    return MaskedViT(backbone).to("meta")


def predictor() -> MaskedPredictor:
    return MaskedPredictor(GRID, 8, predictor_embed_dim=8, depth=1, num_heads=1).to("meta")


@pytest.mark.parametrize(
    ("call", "set_name", "other"),
    [
        (lambda: encoder()(on_meta(2, 3, 64, 64), CONTEXT), "context", "images"),
        (
            lambda: predictor()(on_meta(*CONTEXT.shape, 8), CONTEXT, TARGETS.to("meta")),
            "context",
            "features",
        ),
        (
            lambda: predictor()(on_meta(*CONTEXT.shape, 8), CONTEXT.to("meta"), TARGETS),
            "targets",
            "features",
        ),
        (lambda: take_tokens(on_meta(2, 16, 8), TARGETS), "tokens", "features"),
        (lambda: put_tokens(on_meta(*TARGETS.shape, 8), TARGETS), "tokens", "features"),
        (lambda: mean_tokens(on_meta(*CONTEXT.shape, 8), CONTEXT), "tokens", "features"),
        (
            lambda: HierarchicalPyramid(GRID, 8)(on_meta(*CONTEXT.shape, 8), CONTEXT),
            "tokens",
            "features",
        ),
    ],
    ids=["encoder", "predictor context", "predictor targets", "take", "put", "mean", "pyramid"],
)
def test_a_set_left_on_another_device_is_named(call, set_name, other):
    text = rf"^{set_name} is on cpu, {other} on meta: must be on one device; .*masks\.to\(device\)$"
    with pytest.raises(ValueError, match=text):
        call()
