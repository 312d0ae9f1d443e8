"""A `MaskedPredictor`'s tensors in I-JEPA's published layout: its names and its feature order."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from jepakit.interop.backbones import depth_of, ratio, shape_of
from jepakit.interop.parts import square_side, tensors_of
from jepakit.nn import MaskedPredictor
from jepakit.nn.positions import sincos_table

__all__: list[str] = []

TABLE = "predictor_pos_embed"

# The published table has the column's sines and cosines in its first half and the row's in its
# second; `sincos_table` has the row first. Everything between the two linear maps at the ends is
# equivariant under a permutation of the features of the residual stream, so a published predictor
# becomes one on our table by swapping the halves along each axis that runs over that stream.
_STREAM_AXIS = {
    "predictor_embed.weight": 0,
    "predictor_embed.bias": 0,
    "mask_token": 2,
    "norm1.weight": 0,
    "norm1.bias": 0,
    "attn.qkv.weight": 1,
    "attn.proj.weight": 0,
    "attn.proj.bias": 0,
    "norm2.weight": 0,
    "norm2.bias": 0,
    "mlp.fc1.weight": 1,
    "mlp.fc2.weight": 0,
    "mlp.fc2.bias": 0,
    "predictor_norm.weight": 0,
    "predictor_norm.bias": 0,
    "predictor_proj.weight": 1,
}


def published_tensors(name: str, predictor: MaskedPredictor) -> dict[str, Tensor]:
    """A predictor's tensors under the published names and shapes; shares its memory.

    The features are still in our order. The fixed table of `"sincos"` is not among them.
    """
    levels, width = len(predictor.grid_sizes), predictor.embed.in_features
    if levels > 1 or predictor.proj.out_features != width:
        raise ValueError(
            f"{name}: has {levels} levels and predictions of width {predictor.proj.out_features} "
            f"from tokens of width {width}; the published layout has one level and one width"
        )
    if predictor.position == "rope":
        raise ValueError(
            f"{name}: position='rope' has no place in the published layout, which adds positions; "
            "build the predictor with position='sincos'"
        )
    square_side(name, predictor.grid_size)
    found = {}
    for key, tensor in tensors_of(name, predictor).items():
        if key == "mask_token":
            found[key] = tensor[None, None]
        elif key == "position_table":
            found[TABLE] = tensor[None]
        else:
            key = re.sub(r"\.mlp\.0\.", ".mlp.fc1.", re.sub(r"\.mlp\.2\.", ".mlp.fc2.", key))
            found[f"predictor_{key}"] = tensor
    return found


def reorder(predictor: MaskedPredictor, name: str, tensor: Tensor) -> Tensor:
    """From the published order of features to ours, and as well from ours to the published."""
    axis = _STREAM_AXIS.get(re.sub(r"^predictor_blocks\.\d+\.", "", name))
    if axis is None or predictor.position != "sincos":
        return tensor
    return tensor.roll(tensor.shape[axis] // 2, dims=axis)


def published_table(predictor: MaskedPredictor) -> Tensor:
    """The fixed table of the published code, for a predictor's grid and width, `[1, N, P]`."""
    width = predictor.embed.out_features
    return sincos_table(predictor.grid_size, width).roll(width // 2, dims=-1)[None]


def check_table(source: str, predictor: MaskedPredictor, table: Tensor) -> None:
    """Raise unless `table` is the published one, which our fixed table stands for."""
    table = table.detach().cpu()
    precision = max(1e-5, torch.finfo(table.dtype).eps)
    error = (table.float() - published_table(predictor)).abs().max().item()
    if not error <= precision:  # NaN lands here too
        raise ValueError(
            f"{source}: {TABLE} differs from the published sine-cosine table by up to {error:.2g}, "
            "so it was learned or made in another way; build the predictor with "
            "position='learned', which takes any table"
        )


def predictor_arguments(state: Mapping[str, Any]) -> dict[str, str]:
    """Arguments, written out, of the predictor that has these tensors."""
    found: dict[str, str] = {}
    if embed := shape_of(state, "predictor_embed.weight", 2):
        found |= {"encoder_dim": str(embed[1]), "predictor_embed_dim": str(embed[0])}
    if hidden := shape_of(state, "predictor_blocks.0.mlp.fc1.weight", 2):
        found["mlp_ratio"] = ratio(hidden[0], hidden[1])
    found["depth"] = str(depth_of(state, "predictor_blocks"))
    table = shape_of(state, TABLE, 3)
    if table and isqrt(table[1]) ** 2 == table[1]:
        found["grid_size"] = str((isqrt(table[1]), isqrt(table[1])))
    return found
