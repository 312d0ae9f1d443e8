"""`load_hf_ijepa`: the weights of Hugging Face's `IJepaModel`."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from jepakit._checks import type_name
from jepakit._wrapped import clean_names, unwrap
from jepakit.interop.assignment import assign, pair
from jepakit.interop.backbones import backbone_arguments, check_arithmetic, num_heads
from jepakit.interop.parts import as_encoder, backbone_tensors
from jepakit.nn import MaskedViT

__all__ = ["load_hf_ijepa"]

_AROUND = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
# Two generations of names: of transformers 4, and of its later releases.
_WITHIN = {
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


def load_hf_ijepa(model: nn.Module | Mapping[str, Any], encoder: nn.Module) -> None:
    """Load the weights of an `IJepaModel` of transformers into an encoder.

    Queries, keys and values are put together as timm has them. Everything is compared first: where
    something does not fit, this raises and the encoder has not changed. Build the teacher after.

    Given the model, its number of heads, the epsilon of its norms (1e-12 in its default
    configuration, 1e-6 in timm and the published models), its activation and its grid are compared
    with the encoder's. A state dict says none of these.

    Args:
        model: An `IJepaModel`, or its state dict under the names of transformers 4 or 5, such as
            `safetensors.torch.load_file` gives for a file.
        encoder: A `MaskedViT` around a timm model without class token, such as
            `vit_huge_patch14_gap_224` with `num_classes=0`; wrapped or not.

    Raises:
        TypeError: If `model` or `encoder` is something else.
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
        >>> torch.equal(encoder.backbone.pos_embed, state["embeddings.position_embeddings"])
        True

    Source:
        `IJepaModel` of Hugging Face's transformers, of which only the names are used; weights of
        Assran et al., I-JEPA (arXiv:2301.08243).
    """
    target = as_encoder("encoder", encoder)
    ours = backbone_tensors("encoder", target)
    state: Any = model
    if isinstance(model, nn.Module):
        model = unwrap(model)
        state = clean_names(model.state_dict().items())
    elif not isinstance(model, Mapping):
        raise TypeError(f"model: must be an IJepaModel or its state dict, got {type_name(model)}")
    if any(str(name).startswith("ijepa.") for name in state):
        raise ValueError(
            "model: must be the IJepaModel alone, but has names that start with 'ijepa.'; pass "
            "model.ijepa of a model with a head"
        )
    pairs = pair("model", "encoder's backbone", ours, _timm_names(state), backbone_arguments)
    if isinstance(model, nn.Module):
        _check_configuration(model, target)
    else:
        _check_grid(target)
    assign(pairs.values())


def _timm_names(state: Mapping[str, Any]) -> dict[str, Any]:
    found = {_timm_name(str(name)): tensor for name, tensor in state.items()}
    for name in [name for name in found if ".attn.q." in name]:
        each = [name.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        tensors = [found.get(one) for one in each]
        # One that is missing leaves the others as names that the backbone has not.
        if all(isinstance(tensor, Tensor) and tensor.dim() > 0 for tensor in tensors):
            fused = torch.cat([found.pop(one) for one in each])
            found[name.replace(".attn.q.", ".attn.qkv.")] = fused
    return found


def _timm_name(name: str) -> str:
    if name == "embeddings.position_embeddings":
        return "pos_embed"
    stem, _, kind = name.rpartition(".")
    if stem in _AROUND:
        return f"{_AROUND[stem]}.{kind}"
    block = re.fullmatch(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)", stem)
    if block and block[2] in _WITHIN:
        return f"blocks.{block[1]}.{_WITHIN[block[2]]}.{kind}"
    return name


def _check_configuration(model: nn.Module, encoder: MaskedViT) -> None:
    config: Any = getattr(model, "config", None)
    if config is None:
        raise TypeError(f"model={type_name(model)}: must be an IJepaModel, which has a config")
    if config.hidden_act != "gelu":
        raise ValueError(f"model.config.hidden_act={config.hidden_act!r}: must be 'gelu'")
    check_arithmetic("encoder", encoder, config.layer_norm_eps)
    heads = num_heads(encoder)
    if heads is not None and heads != config.num_attention_heads:
        raise ValueError(
            f"encoder: has {heads} heads, the model {config.num_attention_heads}; build the "
            f"backbone with num_heads={config.num_attention_heads}"
        )
    pixels, patch = _both(config.image_size), _both(config.patch_size)
    grid = (pixels[0] // patch[0], pixels[1] // patch[1])
    if grid != encoder.grid_size:
        raise ValueError(
            f"encoder: is on the grid {encoder.grid_size}, the model on {grid}; build the backbone "
            f"with img_size={pixels}"
        )


def _check_grid(encoder: MaskedViT) -> None:
    height, width = encoder.grid_size
    if height != width and isqrt(height * width) ** 2 == height * width:
        raise ValueError(
            f"encoder: is on the grid {encoder.grid_size}, and a state dict does not say whether "
            f"its {height * width} positions are that or a square; pass the IJepaModel itself"
        )


def _both(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
