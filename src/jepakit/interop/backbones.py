"""What the weights of a plain vision transformer say of its arguments, and what they do not."""

import copy
import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._precision import full_precision
from jepakit._wrapped import unwrap
from jepakit.nn import MaskedViT

__all__: list[str] = []

_LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def published_names(depth: int) -> set[str]:
    """All names of the published encoder."""
    layers = [f"blocks.{number}.{layer}" for number in range(depth) for layer in _LAYERS]
    layers += ["patch_embed.proj", "norm"]
    return {"pos_embed", *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))}


def shape_of(state: Mapping[str, Any], name: str, dims: int) -> tuple[int, ...] | None:
    """A tensor's shape; None where there is none of that name and so many dimensions."""
    tensor = state.get(name)
    return tuple(tensor.shape) if isinstance(tensor, Tensor) and tensor.dim() == dims else None


def depth_of(state: Mapping[str, Any], blocks: str = "blocks") -> int:
    """The number of blocks that have names."""
    return len({m[1] for name in state if (m := re.match(rf"{blocks}\.(\d+)\.", str(name)))})


def ratio(hidden: int, width: int) -> str:
    """`mlp_ratio` written so that it gives exactly these widths."""
    return f"{hidden} / {width}" if hidden % width else str(hidden // width)


def backbone_arguments(state: Mapping[str, Any]) -> dict[str, str]:
    """timm's arguments, written out, of the vision transformer that has these tensors."""
    found: dict[str, str] = {}
    if patch := shape_of(state, "patch_embed.proj.weight", 4):
        width, channels, *sides = patch
        found |= {"embed_dim": str(width), "in_chans": str(channels)}
        found["patch_size"] = str(sides[0] if sides[0] == sides[1] else tuple(sides))
        positions = shape_of(state, "pos_embed", 3)
        side = isqrt(positions[1]) if positions else 0
        if positions and side * side == positions[1]:
            pixels = (side * sides[0], side * sides[1])
            found["img_size"] = str(pixels[0] if pixels[0] == pixels[1] else pixels)
    if hidden := shape_of(state, "blocks.0.mlp.fc1.weight", 2):
        found["mlp_ratio"] = ratio(hidden[0], hidden[1])
    found["depth"] = str(depth_of(state))
    found["class_token"] = str("cls_token" in state)
    found["qkv_bias"] = str("blocks.0.attn.qkv.bias" in state)
    if "cls_token" not in state:
        found["global_pool"] = "'avg'"  # timm's default takes the class token
        if "norm.weight" in state:
            found["fc_norm"] = "False"
    if "head.weight" not in state:
        found["num_classes"] = "0"
    return found


def check_arithmetic(name: str, encoder: MaskedViT, eps: float) -> None:
    """Raise where the same weights would give other features, as far as modules show it."""
    backbone = unwrap(encoder.backbone)
    probe = torch.linspace(-3.0, 3.0, 25, dtype=torch.float32, device="cpu")
    for place, module in backbone.named_modules():
        if isinstance(module, nn.LayerNorm) and module.eps != eps:
            raise ValueError(
                f"{name}: {place} has eps={module.eps:g}, the weights were trained with {eps:g}; "
                f"build the backbone with norm_layer=partial(torch.nn.LayerNorm, eps={eps:g})"
            )
        if place.endswith("mlp.act") and not torch.allclose(module(probe), F.gelu(probe)):
            raise ValueError(
                f"{name}: {place} is {module}, the weights were trained with the exact GELU; build "
                "the backbone with act_layer=torch.nn.GELU"
            )

    if getattr(backbone, "rope", None) is not None:
        raise ValueError(
            f"{name}: its {type(backbone).__name__} turns queries and keys by their positions, the "
            "weights were trained without; build a VisionTransformer such as "
            "vit_huge_patch14_gap_224"
        )
    _check_block(name, backbone)


@torch.no_grad()
def _check_block(name: str, backbone: Any) -> None:
    """Raise unless the first block computes what a pre-norm block with these weights does."""
    block: Any = copy.deepcopy(unwrap(backbone.blocks[0])).to("cpu", torch.float32).eval()
    heads, dim = block.attn.num_heads, block.norm1.weight.shape[0]
    x = torch.arange(3 * dim, dtype=torch.float32, device="cpu").sin().view(1, 3, dim)
    with full_precision(x):
        q, k, v = block.attn.qkv(block.norm1(x)).view(1, 3, 3, heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 3, dim)
        expected = x + block.attn.proj(seen)
        hidden = F.gelu(block.mlp.fc1(block.norm2(expected)))
        expected = expected + block.mlp.fc2(hidden)
        found = block(x)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{name}: its {type(block).__name__} does not compute what the published pre-norm "
            "block does with the same weights; build a VisionTransformer with timm's default "
            "block_fn, such as vit_huge_patch14_gap_224"
        )


def num_heads(encoder: MaskedViT) -> int | None:
    """Attention heads of the backbone's blocks."""
    found = (getattr(module, "num_heads", None) for module in encoder.backbone.modules())
    return next((heads for heads in found if isinstance(heads, int)), None)
