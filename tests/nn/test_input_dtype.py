"""Inputs of another floating type than the weights get an error that names both.

Trap: "mat1 and mat2 must have the same dtype", from the depth of a layer, for NumPy's float64.
"""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor

from jepakit import MaskedPredictor, MaskedViT, TokenSet
from jepakit.nn import CausalPredictor, Patches, SetEncoder, TemporalPool, TokenViT

FULL = TokenSet.full((2, 2), (2,))


def vit() -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    backbone = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=0
    )
    encoder = MaskedViT(backbone)
    return encoder, encoder


def token_vit() -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    encoder = TokenViT((2, 2), embed=Patches(16, 16), embed_dim=16, depth=1, num_heads=2)
    return encoder, encoder


def predictor() -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    module = MaskedPredictor((2, 2), 16, predictor_embed_dim=16, depth=1, num_heads=2)
    return module, lambda x: module.predict_grid(x.flatten(2)[:, 0, :64].view(2, 4, 16), FULL)


def causal_predictor() -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    module = CausalPredictor((2, 2), 16, predictor_embed_dim=16, depth=1, num_heads=2)
    return module, lambda x: module(x.flatten(1)[:, :128].view(2, 2, 4, 16))


def set_encoder() -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    module = SetEncoder(32, 16, 1)
    return module, lambda x: module(x[:, 0])


def temporal_pool() -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    module = TemporalPool(32, 32)
    return module, lambda x: module(x[:, 0])


@pytest.mark.parametrize(
    "build", [vit, token_vit, predictor, causal_predictor, set_encoder, temporal_pool]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_named_unless_autocast_converts(build: Callable[..., object], dtype: torch.dtype) -> None:
    module, call = build()
    inputs = torch.ones(2, 3, 32, 32, dtype=dtype)
    with pytest.raises(TypeError, match=rf"are {dtype}, but the weights torch.float32; convert"):
        call(inputs)
    module.to(dtype)
    assert call(inputs).dtype == dtype
    if dtype == torch.bfloat16:
        module.float()
        with torch.autocast("cpu", dtype):
            assert call(inputs).isfinite().all()
