"""`load_hf_ijepa`: the weights of Hugging Face's `IJepaModel`."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn

from jepakit._checks import as_bool, type_name
from jepakit._wrapped import clean_names, unwrap
from jepakit.interop._encoder_layout import adapt_encoder, backbone_arguments, check_arithmetic
from jepakit.interop._weights import Adaptation, assign, backbone_tensors, match, unwrapped
from jepakit.nn import MaskedViT

__all__ = ["load_hf_ijepa"]

# Hugging Face's names and timm's; queries, keys and values are one layer in timm.
_OUTER_NAMES = {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}
# Within a block: first the names of transformers 4, then those of its later releases.
_BLOCK_NAMES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def load_hf_ijepa(
    model: nn.Module | Mapping[str, Any], encoder: nn.Module, *, adapt: bool = False
) -> list[Adaptation]:
    """Load the weights of an `IJepaModel` of transformers into an encoder.

    Everything is compared first: if something does not fit, this raises and the encoder is
    unchanged. Build the teacher after.

    If `model` is the model itself, its number of heads, the epsilon of its norms (1e-12 in its
    default configuration, 1e-6 in timm and the published models), its activation and its grid are
    compared with the encoder's. A state dict holds none of these.

    Args:
        model: An `IJepaModel`, or its state dict under the names of transformers 4 or 5, for
            example from `safetensors.torch.load_file`.
        encoder: A `MaskedViT` around a timm model without class token, such as
            `vit_huge_patch14_gap_224` with `num_classes=0`; wrapped or not.
        adapt: As in `load_ijepa`.

    Returns:
        What was adapted; empty if everything fitted.

    Raises:
        ValueError: If the weights do not fit the encoder, or it is sharded.

    Example:
        >>> import timm, torch
        >>> from jepakit import MaskedViT
        >>> from jepakit.interop import load_hf_ijepa
        >>> arguments = dict(img_size=28, embed_dim=32, depth=0, num_classes=0)
        >>> encoder = MaskedViT(timm.create_model("vit_huge_patch14_gap_224", **arguments))
        >>> state = {
        ...     "embeddings.patch_embeddings.projection.weight": torch.randn(32, 3, 14, 14),
        ...     "embeddings.patch_embeddings.projection.bias": torch.randn(32),
        ...     "embeddings.position_embeddings": torch.randn(1, 4, 32),
        ...     "layernorm.weight": torch.ones(32),
        ...     "layernorm.bias": torch.zeros(32),
        ... }
        >>> load_hf_ijepa(state, encoder)
        []
        >>> torch.equal(encoder.backbone.pos_embed, state["embeddings.position_embeddings"])
        True

    Source:
        Weights of Assran et al., I-JEPA (arXiv:2301.08243), under the names of `IJepaModel` in
        Hugging Face's transformers.
    """
    target = unwrapped("encoder", encoder, MaskedViT)
    ours = backbone_tensors("encoder", target)
    state: Any = model
    if isinstance(model, nn.Module):
        model = unwrap(model)
        state = clean_names(model.state_dict().items())
    elif not isinstance(model, Mapping):
        raise TypeError(f"model: must be an IJepaModel or its state dict, got {type_name(model)}")
    if any(str(name).startswith("ijepa.") for name in state):
        raise ValueError("model: must be the IJepaModel alone; pass model.ijepa of one with a head")
    weights, adaptations = _timm_names(state), list[Adaptation]()
    if as_bool("adapt", adapt):
        grid = _configured_grid(model) if isinstance(model, nn.Module) else None
        weights, adaptations = adapt_encoder("encoder", weights, ours, target.grid_size, grid)
    matched = match("model", "encoder's backbone", ours, weights, backbone_arguments)
    if isinstance(model, nn.Module):
        _check_configuration(model, target, any_grid=adapt)
    elif not adapt:
        _check_grid(target)
    assign(matched.values())
    return adaptations


def _timm_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename a state dict to timm's names, with queries, keys and values in one tensor."""
    renamed = {_timm_name(str(name)): tensor for name, tensor in state.items()}
    for query in [name for name in renamed if ".attn.q." in name]:
        names = [query.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        tensors = [renamed.get(name) for name in names]
        # If one is missing, the others keep their names, and are reported as extra ones.
        if all(isinstance(tensor, Tensor) and tensor.dim() > 0 for tensor in tensors):
            fused = torch.cat([renamed.pop(name) for name in names])
            renamed[query.replace(".attn.q.", ".attn.qkv.")] = fused
    return renamed


def _timm_name(name: str) -> str:
    if name == "embeddings.position_embeddings":
        return "pos_embed"
    layer, _, kind = name.rpartition(".")
    if layer in _OUTER_NAMES:
        return f"{_OUTER_NAMES[layer]}.{kind}"
    block = re.fullmatch(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)", layer)
    if block and block[2] in _BLOCK_NAMES:
        return f"blocks.{block[1]}.{_BLOCK_NAMES[block[2]]}.{kind}"
    return name


def _configured_grid(model: nn.Module) -> tuple[int, int] | None:
    config: Any = getattr(model, "config", None)
    if config is None:
        return None
    pixels, patch = _both_sides(config.image_size), _both_sides(config.patch_size)
    return pixels[0] // patch[0], pixels[1] // patch[1]


def _check_configuration(model: nn.Module, encoder: MaskedViT, *, any_grid: bool) -> None:
    config: Any = getattr(model, "config", None)
    if config is None:
        raise TypeError(f"model={type_name(model)}: must be an IJepaModel, which has a config")
    if config.hidden_act != "gelu":
        raise ValueError(f"model.config.hidden_act={config.hidden_act!r}: must be 'gelu'")
    check_arithmetic("encoder", encoder, config.layer_norm_eps)
    heads, backbone = config.num_attention_heads, cast(Any, unwrap(encoder.backbone))
    own_heads = cast(Any, unwrap(backbone.blocks[0])).attn.num_heads
    if own_heads != heads:
        hint = f"build the backbone with num_heads={heads}"
        raise ValueError(f"encoder: has {own_heads} heads, the model {heads}; {hint}")
    grid = _configured_grid(model)
    if grid != encoder.grid_size and not any_grid:
        grids = f"is on the grid {encoder.grid_size}, the model on {grid}"
        size = f"build the backbone with img_size={_both_sides(config.image_size)}"
        raise ValueError(f"encoder: {grids}; {size}, or pass adapt=True")


def _check_grid(encoder: MaskedViT) -> None:
    height, width = encoder.grid_size
    if height != width and isqrt(height * width) ** 2 == height * width:
        raise ValueError(
            f"encoder: is on the grid {encoder.grid_size}, and a state dict does not show whether "
            "its positions are on that grid or on a square one; pass the IJepaModel itself, or "
            "adapt=True if they are on a square one"
        )


def _both_sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
