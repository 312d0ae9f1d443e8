"""A tiny system of encoder, predictor, teacher and sampler."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from jepakit import EMATeacher, MaskedPredictor, MaskedViT, MultiBlockMask, linear

BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"init_values": 1.0}),
    "eva": ("vit_small_patch16_dinov3", {"init_values": 1.0}),
}


def _build(kind: str = "vit", *, depth: int = 1, **predictor: Any) -> SimpleNamespace:
    torch.manual_seed(0)
    name, arguments = BACKBONES[kind]
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "num_heads": 4, "depth": depth}
    encoder = MaskedViT(timm.create_model(name, num_classes=0, **(sizes | arguments)))
    with torch.no_grad():  # class tokens start at 1e-6
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return SimpleNamespace(
        encoder=encoder,
        predictor=MaskedPredictor(
            encoder.grid_size,
            encoder.embed_dim,
            **({"predictor_embed_dim": 24, "depth": 1, "num_heads": 2} | predictor),
        ),
        teacher=EMATeacher(encoder, linear(0.9, 1.0, steps=100)),
        sampler=MultiBlockMask(
            encoder.grid_size,
            num_targets=2,
            target_scale=(0.05, 0.2),
            target_size_per="sample",
            min_context_coverage=0.2,
            context_length="pad",  # ragged contexts
        ),
    )


@pytest.fixture(scope="session")
def system() -> Callable[..., SimpleNamespace]:
    """A function `(kind="vit", depth=1, **predictor)` to encoder, predictor, teacher, sampler."""
    return _build


@pytest.fixture(scope="session")
def parameters_of() -> Callable[[SimpleNamespace], dict[str, nn.Parameter]]:
    """The trained parameters by name, without the backbone's unused head."""

    def named(parts: SimpleNamespace) -> dict[str, nn.Parameter]:
        both = nn.ModuleDict({"encoder": parts.encoder, "predictor": parts.predictor})
        return {n: p for n, p in both.named_parameters() if "fc_norm" not in n}

    return named
