"""The published video models: our modules' tensors under their names, arguments inferred from them.

V-JEPA and V-JEPA 2 share all names. The first adds fixed tables of positions and stores them, the
second has rotary positions.
"""

import re
from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from jepakit._wrapped import name_difference, unwrap
from jepakit.interop._encoder_layout import depth_of, mlp_ratio, published_layers, shape_of
from jepakit.interop._weights import Assignment, match, tensors_of
from jepakit.nn import MaskedPredictor, TokenViT, Tubelets
from jepakit.nn.positions import grid_coordinates, sincos_features

ENCODER_TABLE, PREDICTOR_TABLE = "pos_embed", "predictor_pos_embed"


# Tensors under the published names


def encoder_tensors(name: str, encoder: TokenViT, *, rotary: bool) -> dict[str, Tensor]:
    """Return an encoder's tensors under the published names and shapes; shares memory.

    Without `rotary`, a fixed table of positions is included, which the published layout stores.
    """
    _check_positions(name, encoder, rotary=rotary)
    if not isinstance(unwrap(encoder.embed), Tubelets):
        kind = type(unwrap(encoder.embed)).__name__
        raise ValueError(f"{name}: has embed={kind}, the published encoder Tubelets")
    tensors: dict[str, Tensor] = {}
    for key, tensor in tensors_of(name, encoder).items():
        if key == "position_table":
            tensors[ENCODER_TABLE] = tensor[None]
        else:
            tensors[re.sub(r"^embed\.", "patch_embed.", key)] = tensor
    if encoder.position == "sincos":
        tensors[ENCODER_TABLE] = _table(encoder, encoder.embed_dim)
    return tensors


def predictor_tensors(name: str, predictor: MaskedPredictor, *, rotary: bool) -> dict[str, Tensor]:
    """As `encoder_tensors`, of a predictor; every mask token is a tensor of its own."""
    _check_positions(name, predictor, rotary=rotary)
    tensors: dict[str, Tensor] = {}
    for key, tensor in tensors_of(name, predictor).items():
        if key == "mask_token":
            tensors |= {f"mask_tokens.{i}": row[None, None] for i, row in enumerate(tensor)}
        elif key == "position_table":
            tensors[PREDICTOR_TABLE] = tensor[None]
        else:
            tensors[f"predictor_{key}"] = tensor
    if predictor.position == "sincos":
        tensors[PREDICTOR_TABLE] = _table(predictor, predictor.embed.out_features)
    return tensors


def check_names(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise if a part has something that the published layout has not, such as registers."""
    if any(key.startswith("predictor_") for key in tensors):
        layers = published_layers(depth_of(tensors, "predictor_blocks"), "predictor_blocks")
        layers += ["predictor_embed", "predictor_norm", "predictor_proj"]
        rest = {key for key in tensors if key.startswith("mask_tokens.")}
    else:
        layers = [*published_layers(depth_of(tensors)), "patch_embed.proj", "norm"]
        rest = set()
    rest |= {key for key in (ENCODER_TABLE, PREDICTOR_TABLE) if key in tensors}
    expected = rest | {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if difference := name_difference(expected, tensors.keys()):
        raise ValueError(f"{name}: must have the names of the published layout, but {difference}")


def _check_positions(name: str, part: TokenViT | MaskedPredictor, *, rotary: bool) -> None:
    allowed = ("rope-vjepa2",) if rotary else ("sincos", "learned")
    if part.position not in allowed:
        raise ValueError(
            f"{name}: position={part.position!r} has no place in the published layout; build it "
            f"with position={allowed[0]!r}"
        )
    grid = part.grid_size
    # A table does not say how its rows lie on the grid. Rotary positions are stored nowhere.
    if len(grid) != 3 or (not rotary and grid[1] != grid[2]):
        rule = "must have three axes" if rotary else "must be (T, H, H)"
        raise ValueError(f"{name} on the grid {grid}: {rule}, as published")


def _table(part: TokenViT | MaskedPredictor, width: int) -> Tensor:
    return sincos_features(grid_coordinates(part.grid_size), width, part.uniform_power)[None]


# From published tensors to ours


def match_video(
    source: str, name: str, module: nn.Module, weights: Any, *, rotary: bool
) -> list[Assignment]:
    """Match an encoder or a predictor with weights under the published names, or raise."""
    tensors: Mapping[str, Tensor]
    arguments_of: Callable[[Mapping[str, Any]], dict[str, str]]
    if isinstance(module, TokenViT):
        tensors = encoder_tensors(name, module, rotary=rotary)
        table, arguments_of = ENCODER_TABLE, _encoder_arguments
    elif isinstance(module, MaskedPredictor):
        tensors = predictor_tensors(name, module, rotary=rotary)
        table, arguments_of = PREDICTOR_TABLE, _predictor_arguments
    else:
        raise TypeError(f"{name}: must be a TokenViT or a MaskedPredictor")
    if rotary and isinstance(weights, Mapping):
        # Published files of V-JEPA 2 may hold a table that their models do not use.
        weights = {key: tensor for key, tensor in weights.items() if key != table}
    matched = match(source, name, tensors, weights, arguments_of, adaptable=())
    if not rotary and module.position == "sincos":
        own, published = matched.pop(table)
        if not _close(published, own):
            wanted = _table_arguments(published)
            advice = ", ".join(f"{key}={value}" for key, value in wanted.items())
            raise ValueError(
                f"{source}: {table} is not the {name}'s table of sines and cosines; build the "
                f"{name} with {advice or 'position=' + repr('learned') + ', which takes any table'}"
            )
    return list(matched.values())


def _close(published: Tensor, own: Tensor) -> bool:
    """True if a stored table is one that is computed, to the rounding of its type."""
    published, own = published.detach().cpu(), own.detach().cpu()
    tolerance = max(1e-5, torch.finfo(published.dtype).eps)
    if published.shape != own.shape:
        return False
    return (published.float() - own).abs().max().item() <= tolerance  # False for NaN


# Arguments of a module, inferred from the names and shapes of its tensors


def _encoder_arguments(state: Mapping[str, Any]) -> dict[str, str]:
    arguments: dict[str, str] = {}
    if kernel := shape_of(state, "patch_embed.proj.weight", 5):
        width, channels, *size = kernel
        arguments["embed_dim"] = str(width)
        arguments["embed"] = f"Tubelets({tuple(size)}, {width}, in_channels={channels})"
    arguments["depth"] = str(depth_of(state))
    if hidden := shape_of(state, "blocks.0.mlp.fc1.weight", 2):
        arguments["mlp_ratio"] = mlp_ratio(*hidden)
    return arguments | _table_arguments(state.get(ENCODER_TABLE))


def _predictor_arguments(state: Mapping[str, Any]) -> dict[str, str]:
    arguments: dict[str, str] = {}
    if embed := shape_of(state, "predictor_embed.weight", 2):
        arguments |= {"encoder_dim": str(embed[1]), "predictor_embed_dim": str(embed[0])}
        out = shape_of(state, "predictor_proj.weight", 2)
        arguments["out_dim"] = str(out[0] if out else embed[1])
    arguments["depth"] = str(depth_of(state, "predictor_blocks"))
    if hidden := shape_of(state, "predictor_blocks.0.mlp.fc1.weight", 2):
        arguments["mlp_ratio"] = mlp_ratio(*hidden)
    tokens = [name for name in state if str(name).startswith("mask_tokens.")]
    arguments["num_mask_tokens"] = str(len(tokens))
    return arguments | _table_arguments(state.get(PREDICTOR_TABLE))


def _table_arguments(table: object) -> dict[str, str]:
    """Return the arguments of a table of sines and cosines `[1 N d]`; none of another table."""
    if not isinstance(table, Tensor) or table.dim() != 3 or not table.is_floating_point():
        return {}
    _, rows, width = table.shape
    # The first feature is the sine of the time, which is the same in one step alone.
    step = int((table[0, :, 0] == table[0, 0, 0]).sum())
    side = isqrt(step)
    if step == 0 or side * side != step or rows % step:
        return {}
    grid = (rows // step, side, side)
    for uniform in (True, False):
        fits = width % 2 == 0 and width >= 10 if uniform else width % 8 == 0
        if not fits:
            continue
        own = sincos_features(grid_coordinates(grid), width, uniform)[None]
        if _close(table, own):
            return {"grid_size": str(grid), "uniform_power": str(uniform)}
    return {}
