"""Weights of Hugging Face's `VJEPA2Model`: `load_hf_vjepa2` and `hf_vjepa2_state_dict`."""

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from jepakit._checks import type_name
from jepakit._wrapped import clean_names, unwrap
from jepakit.interop._video_layout import (
    check_names,
    encoder_tensors,
    match_video,
    predictor_tensors,
)
from jepakit.interop._weights import Assignment, assign, cpu_copy, unwrapped
from jepakit.nn import Block, MaskedPredictor, TokenViT

__all__ = ["hf_vjepa2_state_dict", "load_hf_vjepa2"]

# Published layers and Hugging Face's. Those of the blocks are the same in both parts.
_ENCODER = {"patch_embed.proj": "embeddings.patch_embeddings.proj", "norm": "layernorm"}
_PREDICTOR = {
    "predictor_embed": "embeddings.predictor_embeddings",
    "predictor_norm": "layernorm",
    "predictor_proj": "proj",
}
_HF_MASK_TOKENS = "embeddings.mask_tokens"
_LETTERS = ("query", "key", "value")  # one layer `qkv` in the published code and in ours


def load_hf_vjepa2(
    model: nn.Module | Mapping[str, Any],
    *,
    encoder: nn.Module | None = None,
    predictor: nn.Module | None = None,
) -> None:
    """Load the weights of a `VJEPA2Model` of transformers into an encoder and a predictor.

    Everything is compared first: if something does not fit, this raises and nothing is changed.
    Build the teacher after. The clips of transformers are `[b t c h w]`, ours `[b c t h w]`; its
    predictor takes mask token 1 where the call does not say another.

    If `model` is the model itself, its numbers of heads, the epsilon of its norms and its
    activation are compared too. A state dict holds none of these. The crop and the number of frames
    need not fit: rotary positions know every grid.

    Args:
        model: A `VJEPA2Model`, or its state dict, for example from `safetensors.torch.load_file`.
        encoder: A `TokenViT` with `Tubelets`, without registers, with position `"rope-vjepa2"`;
            wrapped or not.
        predictor: A `MaskedPredictor` with position `"rope-vjepa2"` and as many mask tokens as the
            model, ten in the published ones.

    Raises:
        ValueError: If the weights do not fit a part, or it is sharded.

    Example:
        >>> from jepakit.interop import hf_vjepa2_state_dict, load_hf_vjepa2
        >>> from jepakit.nn import TokenViT, Tubelets
        >>> embed, position = Tubelets((2, 4, 4), 24), "rope-vjepa2"
        >>> encoder = TokenViT((2, 4, 4), 24, depth=1, num_heads=2, embed=embed, position=position)
        >>> load_hf_vjepa2(hf_vjepa2_state_dict(encoder=encoder), encoder=encoder)

    Source:
        Weights of Assran et al., V-JEPA 2 (arXiv:2506.09985), under the names of `VJEPA2Model` in
        Hugging Face's transformers.
    """
    parts = _parts(encoder, predictor)
    state: Any = model
    if isinstance(model, nn.Module):
        model = unwrap(model)
        state = clean_names(model.state_dict().items())
    elif not isinstance(model, Mapping):
        raise TypeError(f"model: must be a VJEPA2Model or its state dict, got {type_name(model)}")
    if any(str(name).startswith("vjepa2.") for name in state):
        raise ValueError("model: must be the VJEPA2Model alone; pass model.vjepa2 of one with head")
    assignments: list[Assignment] = []
    for name, part in parts.items():
        source, weights = f"model's {name}", _published_names(state, name)
        assignments += match_video(source, name, part, weights, rotary=True)
        if isinstance(model, nn.Module):
            _check_configuration(model, name, part)
    assign(assignments)


def hf_vjepa2_state_dict(
    *, encoder: nn.Module | None = None, predictor: nn.Module | None = None
) -> dict[str, Shaped[Tensor, "..."]]:
    """Weights of an encoder and a predictor under the names of transformers' `VJEPA2Model`.

    With both parts, `VJEPA2Model.load_state_dict` takes them. Tensors are copies on the CPU.

    Args:
        encoder: A `TokenViT` with `Tubelets` and position `"rope-vjepa2"`; wrapped or not.
        predictor: A `MaskedPredictor` with position `"rope-vjepa2"`.

    Raises:
        ValueError: If a part has something that the model has not, such as registers.

    Example:
        >>> from jepakit import MaskedPredictor
        >>> from jepakit.interop import hf_vjepa2_state_dict
        >>> predictor = MaskedPredictor(
        ...     (2, 4, 4), 24, predictor_embed_dim=12, depth=1, num_heads=1, position="rope-vjepa2"
        ... )
        >>> state = hf_vjepa2_state_dict(predictor=predictor)
        >>> state["predictor.embeddings.mask_tokens"].shape
        torch.Size([1, 1, 1, 12])
    """
    state: dict[str, Tensor] = {}
    for name, part in _parts(encoder, predictor).items():
        if isinstance(part, TokenViT):
            tensors = encoder_tensors(name, part, rotary=True)
        else:
            tensors = predictor_tensors(name, cast(MaskedPredictor, part), rotary=True)
        check_names(name, tensors)
        tokens = []
        for key, tensor in tensors.items():
            if key.startswith("mask_tokens."):
                tokens.append(tensor)
                continue
            state |= {
                f"{name}.{hf_name}": cpu_copy(piece)
                for hf_name, piece in _hf_tensors(key, tensor).items()
            }
        if tokens:
            state[f"{name}.{_HF_MASK_TOKENS}"] = cpu_copy(torch.stack(tokens))
    return state


def _parts(encoder: nn.Module | None, predictor: nn.Module | None) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {}
    if encoder is not None:
        parts["encoder"] = unwrapped("encoder", encoder, TokenViT)
    if predictor is not None:
        parts["predictor"] = unwrapped("predictor", predictor, MaskedPredictor)
    if not parts:
        raise ValueError("encoder, predictor: at least one must be given")
    return parts


def _hf_tensors(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a published tensor, or the three that it is made of, under Hugging Face's names."""
    layer, _, kind = key.rpartition(".")
    block = re.fullmatch(r"(?:predictor_)?blocks\.(\d+)\.(.+)", layer)
    if not block:
        return {f"{(_ENCODER | _PREDICTOR)[layer]}.{kind}": tensor}
    start = f"layer.{block[1]}"
    if block[2] == "attn.qkv":
        pieces = zip(_LETTERS, tensor.chunk(3), strict=True)
        return {f"{start}.attention.{letter}.{kind}": piece for letter, piece in pieces}
    return {f"{start}.{block[2].replace('attn.', 'attention.')}.{kind}": tensor}


def _published_names(state: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Rename the tensors of a part; those that are unknown keep their names, to be reported."""
    layers = _ENCODER if part == "encoder" else _PREDICTOR
    outer = {hf_name: name for name, hf_name in layers.items()}
    blocks = "blocks" if part == "encoder" else "predictor_blocks"
    renamed: dict[str, Any] = {}
    for full_name, tensor in state.items():
        if not str(full_name).startswith(f"{part}."):
            continue
        name = str(full_name).removeprefix(f"{part}.")
        layer, _, kind = name.rpartition(".")
        if name == _HF_MASK_TOKENS and isinstance(tensor, Tensor) and tensor.dim() == 4:
            renamed |= {f"mask_tokens.{i}": token for i, token in enumerate(tensor)}
        elif block := re.fullmatch(r"layer\.(\d+)\.(.+)", layer):
            inner = block[2].replace("attention.", "attn.")
            renamed[f"{blocks}.{block[1]}.{inner}.{kind}"] = tensor
        else:
            renamed[f"{outer.get(layer, layer)}.{kind}" if layer else name] = tensor
    for query in [name for name in renamed if ".attn.query." in name]:
        names = [query.replace(".query.", f".{letter}.") for letter in _LETTERS]
        tensors = [renamed.get(name) for name in names]
        # If one is missing, the others keep their names, and are reported as extra ones.
        if all(isinstance(tensor, Tensor) and tensor.dim() > 0 for tensor in tensors):
            fused = torch.cat([renamed.pop(name) for name in names])
            renamed[query.replace(".query.", ".qkv.")] = fused
    return renamed


def _check_configuration(model: nn.Module, name: str, part: nn.Module) -> None:
    config: Any = getattr(model, "config", None)
    if config is None:
        raise TypeError(f"model={type_name(model)}: must be a VJEPA2Model, which has a config")
    if config.hidden_act != "gelu":
        raise ValueError(f"model.config.hidden_act={config.hidden_act!r}: must be 'gelu'")
    if config.layer_norm_eps != 1e-6:
        raise ValueError(f"model.config.layer_norm_eps={config.layer_norm_eps:g}: must be 1e-06")
    key = "num_attention_heads" if name == "encoder" else "pred_num_attention_heads"
    heads = getattr(config, key)
    own = cast(Block, unwrap(cast(Any, part).blocks[0])).attn.num_heads
    if own != heads:
        raise ValueError(
            f"{name}: has {own} heads, the model {heads}; build the {name} with num_heads={heads}"
        )
