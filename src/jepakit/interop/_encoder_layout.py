"""The published encoder: names of its tensors, arguments inferred from them, its computation."""

import copy
import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._precision import full_precision
from jepakit._wrapped import unwrap
from jepakit.interop._weights import Adaptation
from jepakit.nn import MaskedViT
from jepakit.nn._backbones.resample import adapt_patch_kernel, adapt_positions

_BLOCK_LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def published_layers(depth: int, blocks: str = "blocks") -> list[str]:
    """Return the names of all layers of `depth` blocks."""
    return [f"{blocks}.{number}.{layer}" for number in range(depth) for layer in _BLOCK_LAYERS]


def published_names(depth: int) -> set[str]:
    """Return all names of a published encoder with `depth` blocks."""
    layers = [*published_layers(depth), "patch_embed.proj", "norm"]
    return {"pos_embed", *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))}


# Arguments of a model, inferred from the names and shapes of its tensors


def shape_of(state: Mapping[str, Any], name: str, dims: int) -> tuple[int, ...] | None:
    """Return a tensor's shape; None unless there is one of that name with `dims` dimensions."""
    tensor = state.get(name)
    return tuple(tensor.shape) if isinstance(tensor, Tensor) and tensor.dim() == dims else None


def depth_of(state: Mapping[str, Any], blocks: str = "blocks") -> int:
    return len({m[1] for name in state if (m := re.match(rf"{blocks}\.(\d+)\.", str(name)))})


def mlp_ratio(hidden: int, width: int) -> str:
    """Return the `mlp_ratio` that gives exactly these widths, as source code."""
    return f"{hidden} / {width}" if hidden % width else str(hidden // width)


def backbone_arguments(state: Mapping[str, Any]) -> dict[str, str]:
    """Return timm's arguments, as source code, of the vision transformer with these tensors."""
    arguments: dict[str, str] = {}
    if patch := shape_of(state, "patch_embed.proj.weight", 4):
        width, channels, *sides = patch
        arguments |= {"embed_dim": str(width), "in_chans": str(channels)}
        arguments["patch_size"] = str(sides[0] if sides[0] == sides[1] else tuple(sides))
        positions = shape_of(state, "pos_embed", 3)
        side = isqrt(positions[1]) if positions else 0
        if positions and side * side == positions[1]:
            pixels = (side * sides[0], side * sides[1])
            arguments["img_size"] = str(pixels[0] if pixels[0] == pixels[1] else pixels)
    if hidden := shape_of(state, "blocks.0.mlp.fc1.weight", 2):
        arguments["mlp_ratio"] = mlp_ratio(*hidden)
    arguments["depth"] = str(depth_of(state))
    arguments["class_token"] = str("cls_token" in state)
    arguments["qkv_bias"] = str("blocks.0.attn.qkv.bias" in state)
    if "cls_token" not in state:
        arguments["global_pool"] = "'avg'"  # timm's default takes the class token
        if "norm.weight" in state:
            arguments["fc_norm"] = "False"
    if "head.weight" not in state:
        arguments["num_classes"] = "0"
    return arguments


# Other image sizes, patch sizes and channels


def adapt_encoder(
    part: str,
    weights: Any,
    tensors: Mapping[str, Tensor],
    grid_size: tuple[int, int],
    published_grid: tuple[int, int] | None = None,
) -> tuple[Any, list[Adaptation]]:
    """Return weights with the kernel and the positions that an encoder's shapes need, and a report.

    What cannot be adapted stays as it is, for `match` to refuse.
    """
    if not isinstance(weights, Mapping):
        return weights, []
    adapted, done = dict(weights), []
    kernel, own = "patch_embed.proj.weight", tensors.get("patch_embed.proj.weight")
    if own is not None and shape_of(weights, kernel, 4) not in (None, tuple(own.shape)):
        adapted[kernel], method = adapt_patch_kernel(weights[kernel], tuple(own.shape))
        done.append((kernel, method))
    if shape_of(weights, "pos_embed", 3):
        adapted["pos_embed"] = adapt_positions(weights["pos_embed"], grid_size, published_grid)
        done.append(("pos_embed", f"interpolated to the grid {grid_size}"))
    return adapted, [
        Adaptation(part, name, tuple(weights[name].shape), tuple(adapted[name].shape), method)
        for name, method in done
        if adapted[name] is not weights[name]
    ]


# Computation that names and shapes do not show


def check_square_grid(name: str, grid_size: tuple[int, ...]) -> None:
    if len(grid_size) != 2 or grid_size[0] != grid_size[1]:
        raise ValueError(f"{name} on the grid {grid_size}: must be on a square grid (H, H)")


def check_arithmetic(name: str, encoder: MaskedViT, eps: float) -> None:
    """Raise if the backbone computes other features than the published one from the same weights.

    Compared are the norms' epsilon, the activation, the kind of positions and the first block.
    """
    backbone = unwrap(encoder.backbone)
    probe = torch.linspace(-3.0, 3.0, 25, dtype=torch.float32, device="cpu")
    for path, module in backbone.named_modules():
        if isinstance(module, nn.LayerNorm) and module.eps != eps:
            raise ValueError(
                f"{name}: {path} has eps={module.eps:g}, the weights were trained with {eps:g}; "
                f"build the backbone with norm_layer=partial(torch.nn.LayerNorm, eps={eps:g})"
            )
        if path.endswith("mlp.act") and not torch.allclose(module(probe), F.gelu(probe)):
            raise ValueError(
                f"{name}: {path} is {module}, the weights were trained with the exact GELU; build "
                "the backbone with act_layer=torch.nn.GELU"
            )
    if getattr(backbone, "rope", None) is not None:
        kind = type(backbone).__name__
        raise ValueError(f"{name}: its {kind} has rotary positions, the published encoder has none")
    _check_block(name, backbone)


@torch.no_grad()
def _check_block(name: str, backbone: Any) -> None:
    """Raise unless the first block computes what a pre-norm block with its weights does."""
    block: Any = copy.deepcopy(unwrap(backbone.blocks[0])).to("cpu", torch.float32).eval()
    heads, dim = block.attn.num_heads, block.norm1.weight.shape[0]
    x = torch.arange(3 * dim, dtype=torch.float32, device="cpu").sin().view(1, 3, dim)
    with full_precision(x):
        qkv = block.attn.qkv(block.norm1(x))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=heads)
        attended = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        expected = x + block.attn.proj(attended)
        expected = expected + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(expected))))
        actual = block(x)
    if not torch.allclose(actual, expected, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{name}: its {type(block).__name__} does not compute what the published pre-norm "
            "block does with the same weights; build a backbone such as vit_huge_patch14_gap_224"
        )
