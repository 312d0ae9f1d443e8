"""Weights and shape of a plain timm `VisionTransformer`: read from one, or built into one."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.activations import GELU
from timm.models import vision_transformer
from torch import Tensor, nn

from jepakit.nn._backbones.backbone import UnsupportedBackboneError

_vit: Any = vision_transformer  # the classes that it builds models of, wherever they are defined
# Modules that a plain model consists of. All others compute something else.
_PLAIN = (
    _vit.VisionTransformer,
    _vit.PatchEmbed,
    nn.Conv2d,
    nn.Sequential,
    _vit.Block,
    _vit.LayerNorm,
    nn.LayerNorm,
    _vit.Attention,
    nn.Linear,
    _vit.Mlp,
    GELU,
    nn.GELU,
    _vit.LayerScale,
    _vit.DropPath,
    nn.Dropout,
    nn.Identity,
)
# What other families have, by the attribute that shows it.
_OTHER_FAMILIES = {
    "embeds": "embeddings of sizes that vary within a batch",
    "rope": "rotary positions",
    "rel_pos_bias": "relative positions",
    "shared_rel_pos": "relative positions",
    "dist_token": "a distillation token",
}


@dataclass(frozen=True)
class PlainViT:
    """Shape and weights; names of tensors are timm's, those of `blocks` and `norm` alone."""

    patch_size: tuple[int, int]
    grid_size: tuple[int, int]
    in_channels: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    drop_path: float
    has_layer_scale: bool
    kernel: Float[Tensor, "d c h w"]
    bias: Float[Tensor, " d"]
    prefix: Float[Tensor, "prefix d"]  # class and register tokens, with their positions
    positions: Float[Tensor, "N d"]
    tensors: dict[str, Tensor]


def read_plain_vit(model: Any) -> PlainViT:
    """Return shape and weights of a plain model; raise if it has anything else, naming it."""
    if type(model) is not _vit.VisionTransformer:
        found = [text for name, text in _OTHER_FAMILIES.items() if hasattr(model, name)]
        has = f"; {found[0]} cannot be carried over" if found else ""
        hint = "; hand over its backbone" if hasattr(model, "backbone") else ""
        rule = "must be a plain VisionTransformer of timm's"
        raise UnsupportedBackboneError(f"timm_vit={type(model).__name__}: {rule}{has}{hint}")
    for name, module in model.named_modules():
        if problem := _problem(module):
            raise UnsupportedBackboneError(
                f"timm_vit.{name}: {problem} cannot be carried over{_hint(name)}"
            )
    first: Any = model.blocks[0]
    tensors = dict(model.state_dict())
    kernel = tensors.pop("patch_embed.proj.weight")
    dim = len(kernel)
    bias = tensors.pop("patch_embed.proj.bias", kernel.new_zeros(dim))
    prefix, positions = _embedded(model, kernel)
    for name in ("cls_token", "reg_token", "pos_embed"):
        tensors.pop(name, None)

    # What is left has to be the tensors of the blocks and of the norm, all of them.
    has_layer_scale = isinstance(first.ls1, _vit.LayerScale)
    layers = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    parts = [f"blocks.{i}.{layer}" for i in range(len(model.blocks)) for layer in layers]
    expected = [f"{part}.{kind}" for part in [*parts, "norm"] for kind in ("weight", "bias")]
    if has_layer_scale:
        expected += [f"blocks.{i}.{ls}.gamma" for i in range(len(model.blocks)) for ls in _SCALES]
    for name in expected:
        weight = tensors.get(name.removesuffix("bias") + "weight")
        if name not in tensors and name.endswith("bias") and weight is not None:
            tensors[name] = weight.new_zeros(len(weight))  # a layer without one
    if extra := [name for name in tensors if name not in expected]:
        raise UnsupportedBackboneError(
            f"timm_vit: its {', '.join(extra[:4])} cannot be carried over{_hint(extra[0])}"
        )
    if missing := [name for name in expected if name not in tensors]:
        raise UnsupportedBackboneError(f"timm_vit: it lacks {', '.join(missing[:4])}")
    return PlainViT(
        patch_size=tuple(model.patch_embed.proj.kernel_size),
        grid_size=tuple(model.patch_embed.grid_size),
        in_channels=kernel.shape[1],
        embed_dim=dim,
        depth=len(model.blocks),
        num_heads=first.attn.num_heads,
        mlp_dim=len(tensors["blocks.0.mlp.fc1.weight"]),
        drop_path=_drop_path(model),
        has_layer_scale=has_layer_scale,
        kernel=kernel,
        bias=bias,
        prefix=prefix,
        positions=positions,
        tensors=tensors,
    )


def build_plain_vit(vit: PlainViT) -> Any:
    """Return a model with these weights, its prefix as register tokens: `read_plain_vit` undone."""
    height, width = vit.patch_size
    rows, columns = vit.grid_size
    model = _vit.VisionTransformer(
        img_size=(rows * height, columns * width),
        patch_size=vit.patch_size,
        in_chans=vit.in_channels,
        num_classes=0,
        global_pool="",
        embed_dim=vit.embed_dim,
        depth=vit.depth,
        num_heads=vit.num_heads,
        mlp_ratio=(vit.mlp_dim + 0.5) / vit.embed_dim,  # rounded down to `mlp_dim`
        init_values=1.0 if vit.has_layer_scale else None,
        class_token=False,
        reg_tokens=len(vit.prefix),
        no_embed_class=True,
        drop_path_rate=vit.drop_path,
    )
    state = vit.tensors | {
        "patch_embed.proj.weight": vit.kernel,
        "patch_embed.proj.bias": vit.bias,
        "pos_embed": vit.positions[None],
    }
    if len(vit.prefix):
        state["reg_token"] = vit.prefix[None]
    model.to(vit.kernel).load_state_dict(state)
    return model


_SCALES = ("ls1", "ls2")


def _problem(module: Any) -> str | None:
    """Describe what a submodule computes beyond a plain model; None if nothing."""
    if type(module) not in _PLAIN:
        return type(module).__name__
    if isinstance(module, nn.Dropout) and module.p > 0:
        return f"a dropout of {module.p:g}"
    if isinstance(module, nn.LayerNorm) and (module.eps != 1e-6 or module.weight is None):
        return f"a norm with eps={module.eps:g}" if module.weight is not None else "a plain norm"
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return "an approximate GELU"
    if isinstance(module, nn.Conv2d) and (module.stride != module.kernel_size or module.groups > 1):
        return "a convolution of patches that overlap"
    if isinstance(module, _vit.Attention) and module.qkv.out_features != 3 * module.qkv.in_features:
        return "attention of another width than the features"
    if isinstance(module, _vit.Attention) and module.scale != module.head_dim**-0.5:
        return f"attention with a scale of {module.scale:g}"
    return None


def _hint(name: str) -> str:
    """Return what to do about a part that a plain model need not have."""
    if name.startswith("head"):
        return "; build it with num_classes=0"
    if name.startswith(("attn_pool", "fc_norm")):
        return "; build it with global_pool='' and num_classes=0"
    if "drop" in name:
        return "; set it to 0"
    return ""


def _embedded(model: Any, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return class and register tokens, and patch positions, as they are added in front."""
    dim, count = len(kernel), model.patch_embed.num_patches
    tokens = [token[0] for token in (model.cls_token, model.reg_token) if token is not None]
    prefix = torch.cat([kernel.new_zeros(0, dim), *tokens]).detach()
    if model.pos_embed is None:
        return prefix, kernel.new_zeros(count, dim)
    positions = model.pos_embed.detach()[0]
    if not model.no_embed_class:
        prefix, positions = prefix + positions[: len(prefix)], positions[len(prefix) :]
    return prefix, positions


def _drop_path(model: Any) -> float:
    """Return the rate of the last block; raise unless rates rise linearly from 0."""
    rates = [
        (getattr(block.drop_path1, "drop_prob", 0.0), getattr(block.drop_path2, "drop_prob", 0.0))
        for block in model.blocks
    ]
    last, steps = float(rates[-1][0]), max(1, len(rates) - 1)
    linear = [last * i / steps for i in range(len(rates))]
    if any(
        abs(rate - line) > 1e-6 for pair, line in zip(rates, linear, strict=True) for rate in pair
    ):
        raise UnsupportedBackboneError(
            f"timm_vit: its drop path rates {rates} do not rise linearly from 0; set them to 0"
        )
    return last
