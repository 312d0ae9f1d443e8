"""Checkpoints of the published I-JEPA: `load_ijepa` and `ijepa_checkpoint`."""

import os
import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from jepakit._checks import as_bool, as_grid_size, as_int
from jepakit._wrapped import clean_names, name_difference
from jepakit.interop._encoder_layout import (
    adapt_encoder,
    backbone_arguments,
    check_arithmetic,
    check_square_grid,
    depth_of,
    mlp_ratio,
    published_names,
    shape_of,
)
from jepakit.interop._weights import (
    Adaptation,
    Assignment,
    assign,
    backbone_tensors,
    cpu_copy,
    match,
    read_checkpoint,
    state_of,
    teacher_step,
    tensors_of,
    unwrapped,
)
from jepakit.nn import MaskedPredictor, MaskedViT
from jepakit.nn._backbones.resample import adapt_positions
from jepakit.nn.positions import sincos_table
from jepakit.teacher import EMATeacher

__all__ = ["ijepa_checkpoint", "load_ijepa"]


def load_ijepa(
    checkpoint: Mapping[str, Any] | str | os.PathLike[str],
    *,
    encoder: nn.Module | None = None,
    predictor: nn.Module | None = None,
    teacher: nn.Module | None = None,
    steps_per_epoch: int | None = None,
    adapt: bool = False,
) -> list[Adaptation]:
    r"""Load a published I-JEPA checkpoint into an encoder, a predictor and a teacher.

    The checkpoint's `target_encoder` is loaded into `teacher`. Everything is compared first: if a
    name, a shape or a grid does not fit, this raises and nothing is changed.

    The published predictor adds the position table $[c \Vert r]$ of columns and rows,
    `MaskedPredictor` adds $[r \Vert c]$: the features of its residual stream are reordered, so that
    the loaded predictor computes the same as the published one, up to the rounding of floats.

    The file does not hold the number of attention heads (the published predictors have as many as
    the encoder), `joint` and `drop_path`: they stay as you built them. The encoder's positions,
    fixed in the published code, are a parameter of timm's;
    `encoder.backbone.pos_embed.requires_grad_(False)` keeps them.

    Args:
        checkpoint: The path of a file, or the result of `torch.load`. To load the weights of one
            part into another, rename the key: `{"encoder": checkpoint["target_encoder"]}`.
        encoder: A `MaskedViT` around a timm model without class token, such as
            `vit_huge_patch14_gap_224` with `num_classes=0`; wrapped or not.
        predictor: A `MaskedPredictor` with position `"sincos"`, or `"learned"` for a checkpoint
            with another table.
        teacher: An `EMATeacher` of such an encoder.
        steps_per_epoch: Optimiser steps in an epoch of the run that continues. `teacher.step`
            becomes the checkpoint's `epoch` times this, so that the momentum schedule continues;
            None leaves it as it is.
        adapt: Adapt the encoders' patch embedding to other channel counts and patch sizes, and
            positions to other grids, as timm does: a kernel for colours is summed for one channel
            and repeated for several, and resampled to a patch size; position tables are
            interpolated (bicubic). With False, every shape must fit.

    Returns:
        What was adapted; empty if everything fitted.

    Raises:
        ValueError: If the checkpoint does not fit a part or holds NaN, a part is sharded, or the
            file is damaged or holds more than tensors and plain containers.

    Example:
        >>> import timm
        >>> from jepakit import EMATeacher, MaskedPredictor, MaskedViT, linear
        >>> from jepakit.interop import ijepa_checkpoint, load_ijepa
        >>> arguments = dict(img_size=28, embed_dim=32, depth=1, num_heads=2, num_classes=0)
        >>> encoder = MaskedViT(timm.create_model("vit_huge_patch14_gap_224", **arguments))
        >>> predictor = MaskedPredictor((2, 2), 32, predictor_embed_dim=16, depth=1, num_heads=2)
        >>> teacher = EMATeacher(encoder, momentum=linear(0.996, 1.0, steps=1000))
        >>> parts = dict(encoder=encoder, predictor=predictor, teacher=teacher)
        >>> checkpoint = ijepa_checkpoint(**parts, epoch=5)
        >>> load_ijepa(checkpoint, **parts, steps_per_epoch=100)
        []
        >>> teacher.step, teacher.momentum
        (500, 0.998)

    Source:
        Assran et al., I-JEPA (arXiv:2301.08243), and the layout of its published checkpoints.
        Difference: everything must fit or nothing is loaded; the published loader continues from
        epoch 0 after any error.
    """
    if encoder is None and predictor is None and teacher is None:
        raise ValueError("encoder, predictor, teacher: at least one must be given")
    file = None if isinstance(checkpoint, Mapping) else checkpoint
    checkpoint = read_checkpoint(checkpoint)
    try:
        return _load(checkpoint, encoder, predictor, teacher, steps_per_epoch, adapt)
    except (TypeError, ValueError) as error:
        if file is not None:
            error.add_note(f"The checkpoint is the file {os.fspath(file)!r}; nothing was changed.")
        raise


def _load(
    checkpoint: Mapping[str, Any],
    encoder: nn.Module | None,
    predictor: nn.Module | None,
    teacher: nn.Module | None,
    steps_per_epoch: int | None,
    adapt: bool,
) -> list[Adaptation]:
    step = teacher_step(checkpoint, teacher, steps_per_epoch)
    assignments: list[Assignment] = []
    done: list[Adaptation] | None = [] if as_bool("adapt", adapt) else None
    if encoder is not None:
        student = unwrapped("encoder", encoder, MaskedViT)
        assignments += _match_encoder("encoder", student, checkpoint, "encoder", done)
    if predictor is not None:
        plain = unwrapped("predictor", predictor, MaskedPredictor)
        assignments += _match_predictor(plain, checkpoint, done)
    average = None if teacher is None else unwrapped("teacher", teacher, EMATeacher)
    if average is not None:
        inner = unwrapped("teacher.module", average.module, MaskedViT)
        assignments += _match_encoder("teacher", inner, checkpoint, "target_encoder", done)
    assign(assignments)
    if average is not None and step is not None:
        average.step = step
    return done or []


def ijepa_checkpoint(
    encoder: nn.Module, predictor: nn.Module, teacher: nn.Module, *, epoch: int
) -> dict[str, Any]:
    """Checkpoint in the layout of the published I-JEPA, for `torch.save`.

    Tensors are copies on the CPU. There is no `opt` and no `scaler`: the published code loads the
    weights, reports that `opt` is missing, and starts at epoch 0. To resume a run of your own, save
    the `state_dict` of the parts and of the optimiser instead.

    Args:
        encoder: A `MaskedViT` around a plain timm model without class token; wrapped or not.
        predictor: A `MaskedPredictor` with position `"sincos"` or `"learned"`.
        teacher: The `EMATeacher` of the encoder.
        epoch: Finished epochs; `load_ijepa` computes the teacher's step from them.

    Raises:
        ValueError: If a part has something that the layout has not, such as a class token, layer
            scales, rotary positions or a grid that is not square.

    Example:
        >>> import timm
        >>> from jepakit import EMATeacher, MaskedPredictor, MaskedViT
        >>> from jepakit.interop import ijepa_checkpoint
        >>> arguments = dict(img_size=28, embed_dim=32, depth=1, num_heads=2, num_classes=0)
        >>> encoder = MaskedViT(timm.create_model("vit_huge_patch14_gap_224", **arguments))
        >>> predictor = MaskedPredictor((2, 2), 32, predictor_embed_dim=16, depth=1, num_heads=2)
        >>> checkpoint = ijepa_checkpoint(encoder, predictor, EMATeacher(encoder, 0.996), epoch=1)
        >>> sorted(checkpoint)
        ['encoder', 'epoch', 'predictor', 'target_encoder']
        >>> checkpoint["predictor"]["module.predictor_pos_embed"].shape
        torch.Size([1, 4, 16])

    Source:
        Published checkpoints of Assran et al., I-JEPA (arXiv:2301.08243), without `opt`.
    """
    epoch = as_int("epoch", epoch, minimum=0)
    average = unwrapped("teacher", teacher, EMATeacher)
    inner = unwrapped("teacher.module", average.module, MaskedViT)
    tensors = {
        "encoder": _published_encoder("encoder", unwrapped("encoder", encoder, MaskedViT)),
        "predictor": _published_predictor(unwrapped("predictor", predictor, MaskedPredictor)),
        "target_encoder": _published_encoder("teacher", inner),
    }
    states: dict[str, Any] = {
        key: {f"module.{name}": cpu_copy(tensor) for name, tensor in state.items()}
        for key, state in tensors.items()
    }
    return states | {"epoch": epoch}


# The encoder


def _match_encoder(
    name: str,
    encoder: MaskedViT,
    checkpoint: Mapping[str, Any],
    key: str,
    done: list[Adaptation] | None,
) -> list[Assignment]:
    """Match an encoder; adapt weights and add to the report if there is one."""
    tensors, weights = backbone_tensors(name, encoder), state_of(checkpoint, key)
    if done is not None:
        weights, adaptations = adapt_encoder(name, weights, tensors, encoder.grid_size)
        done += adaptations
    part = f"{name}'s backbone"
    matched = match(f"checkpoint[{key!r}]", part, tensors, weights, backbone_arguments)
    _check_computation(name, encoder, any_grid=done is not None)
    return list(matched.values())


def _published_encoder(name: str, encoder: MaskedViT) -> dict[str, Tensor]:
    tensors = backbone_tensors(name, encoder)
    if difference := name_difference(published_names(depth_of(tensors)), tensors.keys()):
        raise ValueError(f"{name}: must have the names of the published layout, but {difference}")
    _check_computation(name, encoder, any_grid=False)
    return tensors


def _check_computation(name: str, encoder: MaskedViT, *, any_grid: bool) -> None:
    """Raise if an encoder computes something else, though the names and shapes of tensors fit."""
    if not any_grid:
        check_square_grid(name, encoder.grid_size)
    check_arithmetic(name, encoder, eps=1e-6)
    extra = [key for key in clean_names(encoder.state_dict().items()) if "backbone." not in key]
    if extra:
        raise ValueError(f"{name}: holds {extra} beside its backbone; use mask_mode='drop'")


# The predictor

_TABLE = "predictor_pos_embed"

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


def _match_predictor(
    predictor: MaskedPredictor, checkpoint: Mapping[str, Any], done: list[Adaptation] | None
) -> list[Assignment]:
    """Match the predictor; adapt its positions and add to the report if there is one."""
    tensors = _with_table(predictor, _predictor_tensors(predictor, any_grid=done is not None))
    weights, source = state_of(checkpoint, "predictor"), "checkpoint['predictor']"
    if done is not None:
        weights, adaptations = _adapt_predictor(source, predictor, weights)
        done += adaptations
    matched = match(source, "predictor", tensors, weights, _predictor_arguments)
    if predictor.position == "sincos":
        _check_table(source, predictor.grid_size, matched.pop(_TABLE).weight)
    return [
        Assignment(tensor, _swap_halves(predictor, name, weight))
        for name, (tensor, weight) in matched.items()
    ]


def _adapt_predictor(
    source: str, predictor: MaskedPredictor, weights: Any
) -> tuple[Any, list[Adaptation]]:
    shape = shape_of(weights, _TABLE, 3) if isinstance(weights, Mapping) else None
    side, grid = isqrt(shape[1]) if shape else 0, as_grid_size("grid_size", predictor.grid_size)
    if not shape or len(grid) != 2 or side**2 != shape[1] or grid == (side, side):
        return weights, []
    if predictor.position == "sincos":
        # Fixed tables are computed for any grid; the published one must be such a table.
        _check_table(source, (side, side), weights[_TABLE])
        table, method = _published_table(grid, shape[2]), f"computed for the grid {grid}"
    else:
        table = adapt_positions(weights[_TABLE], (grid[0], grid[1]))
        method = f"interpolated to the grid {grid}"
    adaptation = Adaptation("predictor", _TABLE, shape, tuple(table.shape), method)
    return {**weights, _TABLE: table}, [adaptation]


def _published_predictor(predictor: MaskedPredictor) -> dict[str, Tensor]:
    tensors = _predictor_tensors(predictor, any_grid=False)
    swapped = {name: _swap_halves(predictor, name, tensor) for name, tensor in tensors.items()}
    return _with_table(predictor, swapped)


def _predictor_tensors(predictor: MaskedPredictor, *, any_grid: bool) -> dict[str, Tensor]:
    """Return a predictor's tensors under the published names and shapes; shares memory.

    Features are in our order, and the fixed table of `position="sincos"` is not included.
    """
    levels, width = len(predictor.grid_sizes), predictor.embed.in_features
    out_width = predictor.proj.out_features
    if levels > 1 or out_width != width:
        raise ValueError(
            f"predictor: has {levels} levels and predictions of width {out_width} from features of "
            f"width {width}; the published layout has one level and one width"
        )
    if predictor.num_mask_tokens > 1:
        raise ValueError(
            f"predictor: has num_mask_tokens={predictor.num_mask_tokens}; the published layout has "
            "one mask token"
        )
    if predictor.position not in ("sincos", "learned"):
        raise ValueError(
            f"predictor: position={predictor.position!r} has no place in the published layout; "
            "build the predictor with position='sincos'"
        )
    if not any_grid:
        check_square_grid("predictor", predictor.grid_size)
    tensors = {}
    for key, tensor in tensors_of("predictor", predictor).items():
        if key == "mask_token":
            tensors[key] = tensor[None]
        elif key == "position_table":
            tensors[_TABLE] = tensor[None]
        else:
            tensors[f"predictor_{key}"] = tensor
    return tensors


def _swap_halves(predictor: MaskedPredictor, name: str, tensor: Tensor) -> Tensor:
    """Convert a tensor between the published order of features and ours; its own inverse."""
    axis = _STREAM_AXIS.get(re.sub(r"^predictor_blocks\.\d+\.", "", name))
    if axis is None or predictor.position != "sincos":
        return tensor
    return tensor.roll(tensor.shape[axis] // 2, dims=axis)


def _published_table(grid_size: tuple[int, ...], width: int) -> Tensor:
    """Return the fixed table of the published code, `[1 N width]`."""
    return sincos_table(grid_size, width).roll(width // 2, dims=-1)[None]


def _check_table(source: str, grid_size: tuple[int, ...], table: Tensor) -> None:
    """Raise unless `table` is the published one, which our fixed table replaces."""
    table = table.detach().cpu()
    tolerance = max(1e-5, torch.finfo(table.dtype).eps)
    error = (table.float() - _published_table(grid_size, table.shape[2])).abs().max().item()
    if not error <= tolerance:  # also for NaN
        raise ValueError(
            f"{source}: {_TABLE} differs from the published sine-cosine table by up to "
            f"{error:.2g}; build the predictor with position='learned', which takes any table"
        )


def _predictor_arguments(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments, as source code, of the predictor with these tensors."""
    arguments: dict[str, str] = {}
    if embed := shape_of(state, "predictor_embed.weight", 2):
        arguments |= {"encoder_dim": str(embed[1]), "predictor_embed_dim": str(embed[0])}
    if hidden := shape_of(state, "predictor_blocks.0.mlp.fc1.weight", 2):
        arguments["mlp_ratio"] = mlp_ratio(*hidden)
    arguments["depth"] = str(depth_of(state, "predictor_blocks"))
    table = shape_of(state, _TABLE, 3)
    if table and isqrt(table[1]) ** 2 == table[1]:
        arguments["grid_size"] = str((isqrt(table[1]), isqrt(table[1])))
    return arguments


def _with_table(predictor: MaskedPredictor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the fixed position table, which the published layout stores and ours computes."""
    if predictor.position != "sincos":
        return tensors
    width = predictor.embed.out_features
    return tensors | {_TABLE: _published_table(predictor.grid_size, width)}
