"""A `MaskedPredictor` in I-JEPA's published layout: its names and its order of features."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from jepakit.interop._encoder_layout import check_square_grid, depth_of, mlp_ratio, shape_of
from jepakit.interop._weights import tensors_of
from jepakit.nn import MaskedPredictor
from jepakit.nn.positions import sincos_table

TABLE = "predictor_pos_embed"

# The published position table has the sines and cosines of the column in its first half and those
# of the row in its second; `sincos_table` has the row first. Norms, attention and MLPs work with
# any order of the features in the residual stream, as long as all of them use the same. So a
# published predictor becomes one for our table by swapping the halves of every tensor along the
# axis that runs over that stream. For a stream of width 4, with S = [[0, I], [I, 0]] swapping
# (x0, x1, x2, x3) to (x2, x3, x0, x1): a map W into the stream becomes S W (its rows are swapped),
# and a map W out of it W S (its columns are).
_INTO_STREAM = ("predictor_embed", "attn.proj", "mlp.fc2")
_ON_STREAM = ("norm1", "norm2", "predictor_norm")
_OUT_OF_STREAM = ("attn.qkv", "mlp.fc1", "predictor_proj")
_STREAM_AXIS = {
    **{f"{layer}.{kind}": 0 for layer in _INTO_STREAM + _ON_STREAM for kind in ("weight", "bias")},
    **{f"{layer}.weight": 1 for layer in _OUT_OF_STREAM},
    "mask_token": 2,
}


def published_tensors(name: str, predictor: MaskedPredictor) -> dict[str, Tensor]:
    """Return a predictor's tensors under the published names and shapes; shares memory.

    Features are in our order, and the fixed table of `position="sincos"` is not included.
    """
    levels, width = len(predictor.grid_sizes), predictor.embed.in_features
    out_width = predictor.proj.out_features
    if levels > 1 or out_width != width:
        raise ValueError(
            f"{name}: has {levels} levels and predictions of width {out_width} from features of "
            f"width {width}; the published layout has one level and one width"
        )
    if predictor.position == "rope":
        raise ValueError(
            f"{name}: position='rope' has no place in the published layout; build the predictor "
            "with position='sincos'"
        )
    check_square_grid(name, predictor.grid_size)
    tensors = {}
    for key, tensor in tensors_of(name, predictor).items():
        if key == "mask_token":
            tensors[key] = tensor[None, None]
        elif key == "position_table":
            tensors[TABLE] = tensor[None]
        else:
            key = key.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.2.", ".mlp.fc2.")
            tensors[f"predictor_{key}"] = tensor
    return tensors


def swap_halves(predictor: MaskedPredictor, name: str, tensor: Tensor) -> Tensor:
    """Convert a tensor between the published order of features and ours; its own inverse."""
    axis = _STREAM_AXIS.get(re.sub(r"^predictor_blocks\.\d+\.", "", name))
    if axis is None or predictor.position != "sincos":
        return tensor
    return tensor.roll(tensor.shape[axis] // 2, dims=axis)


def published_table(predictor: MaskedPredictor) -> Tensor:
    """Return the fixed table of the published code for a predictor's grid and width, `[1 N d]`."""
    width = predictor.embed.out_features
    return sincos_table(predictor.grid_size, width).roll(width // 2, dims=-1)[None]


def check_table(source: str, predictor: MaskedPredictor, table: Tensor) -> None:
    """Raise unless `table` is the published one, which our fixed table replaces."""
    table = table.detach().cpu()
    tolerance = max(1e-5, torch.finfo(table.dtype).eps)
    error = (table.float() - published_table(predictor)).abs().max().item()
    if not error <= tolerance:  # also for NaN
        raise ValueError(
            f"{source}: {TABLE} differs from the published sine-cosine table by up to {error:.2g}; "
            "build the predictor with position='learned', which takes any table"
        )


def predictor_arguments(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments, as source code, of the predictor with these tensors."""
    arguments: dict[str, str] = {}
    if embed := shape_of(state, "predictor_embed.weight", 2):
        arguments |= {"encoder_dim": str(embed[1]), "predictor_embed_dim": str(embed[0])}
    if hidden := shape_of(state, "predictor_blocks.0.mlp.fc1.weight", 2):
        arguments["mlp_ratio"] = mlp_ratio(*hidden)
    arguments["depth"] = str(depth_of(state, "predictor_blocks"))
    table = shape_of(state, TABLE, 3)
    if table and isqrt(table[1]) ** 2 == table[1]:
        arguments["grid_size"] = str((isqrt(table[1]), isqrt(table[1])))
    return arguments
