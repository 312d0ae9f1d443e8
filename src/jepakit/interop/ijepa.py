"""Checkpoints of the published I-JEPA: `load_ijepa` and `ijepa_checkpoint`."""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from jepakit._checks import as_int
from jepakit._wrapped import clean_names, name_difference
from jepakit.interop._encoder_layout import (
    backbone_arguments,
    check_arithmetic,
    check_square_grid,
    depth_of,
    published_names,
)
from jepakit.interop._predictor_layout import (
    TABLE,
    check_table,
    predictor_arguments,
    published_table,
    published_tensors,
    swap_halves,
)
from jepakit.interop._weights import (
    Assignment,
    assign,
    backbone_tensors,
    cpu_copy,
    match,
    read_checkpoint,
    state_of,
    unwrapped,
)
from jepakit.nn import MaskedPredictor, MaskedViT
from jepakit.teacher import EMATeacher

__all__ = ["ijepa_checkpoint", "load_ijepa"]

_EPS = 1e-6  # of every norm in the published models


def load_ijepa(
    checkpoint: Mapping[str, Any] | str | os.PathLike[str],
    *,
    encoder: nn.Module | None = None,
    predictor: nn.Module | None = None,
    teacher: nn.Module | None = None,
    steps_per_epoch: int | None = None,
) -> None:
    r"""Load a published I-JEPA checkpoint into an encoder, a predictor and a teacher.

    The checkpoint's `target_encoder` is loaded into `teacher`. Everything is compared first: if a
    name, a shape or a grid does not fit, this raises and nothing is changed.

    The published predictor adds the position table $[c \Vert r]$ of columns and rows,
    `MaskedPredictor` adds $[r \Vert c]$. With $S$, which swaps the halves of a vector, every map
    $W$ into the predictor's residual stream becomes $SW$ and every map out of it $WS$; norms
    commute with $S$. So the loaded predictor computes the same as the published one, up to the
    rounding of floats.

    The file does not hold the number of attention heads (the published predictors have as many as
    the encoder), `joint` and `drop_path`: they stay as you built them. The encoder's positions,
    fixed in the published code, are a parameter of timm's;
    `encoder.backbone.pos_embed.requires_grad_(False)` keeps them.

    To load the weights of one part into another, rename the key:
    `load_ijepa({"encoder": checkpoint["target_encoder"]}, encoder=encoder)`.

    Args:
        checkpoint: The path of a file, or the result of `torch.load`. Names may start with
            `module.` or not.
        encoder: A `MaskedViT` around a timm model without class token, such as
            `vit_huge_patch14_gap_224` with `num_classes=0`; wrapped or not.
        predictor: A `MaskedPredictor` with position `"sincos"`, or `"learned"` for a checkpoint
            with another table.
        teacher: An `EMATeacher` of such an encoder.
        steps_per_epoch: Optimiser steps in an epoch of the run that continues. `teacher.step`
            becomes the checkpoint's `epoch` times this, so that the momentum schedule continues;
            None leaves it as it is.

    Raises:
        ValueError: If the checkpoint does not fit a part, a part is sharded, or the file holds more
            than tensors and plain containers.

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
        >>> teacher.step, teacher.momentum
        (500, 0.998)

    Source:
        Assran et al., I-JEPA (arXiv:2301.08243), and the layout of its published checkpoints.
        Difference: everything must fit or nothing is loaded; the published loader continues from
        epoch 0 after any error.
    """
    if encoder is None and predictor is None and teacher is None:
        raise ValueError("encoder, predictor, teacher: at least one must be given")
    checkpoint = read_checkpoint(checkpoint)
    step = _teacher_step(checkpoint, teacher, steps_per_epoch)
    assignments: list[Assignment] = []
    if encoder is not None:
        student = unwrapped("encoder", encoder, MaskedViT)
        assignments += _match_encoder("encoder", student, checkpoint, "encoder")
    if predictor is not None:
        plain = unwrapped("predictor", predictor, MaskedPredictor)
        assignments += _match_predictor(plain, checkpoint)
    average = None if teacher is None else unwrapped("teacher", teacher, EMATeacher)
    if average is not None:
        inner = unwrapped("teacher.module", average.module, MaskedViT)
        assignments += _match_encoder("teacher", inner, checkpoint, "target_encoder")
    assign(assignments)
    if average is not None and step is not None:
        average.step = step


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


def _teacher_step(
    checkpoint: Mapping[str, Any], teacher: nn.Module | None, steps_per_epoch: int | None
) -> int | None:
    if steps_per_epoch is None:
        return None
    steps_per_epoch = as_int("steps_per_epoch", steps_per_epoch, minimum=1)
    if teacher is None:
        raise ValueError(f"steps_per_epoch={steps_per_epoch}: must come with a teacher")
    if "epoch" not in checkpoint:
        raise ValueError(f"steps_per_epoch={steps_per_epoch}: the checkpoint has no 'epoch'")
    return steps_per_epoch * as_int("checkpoint['epoch']", checkpoint["epoch"], minimum=0)


def _match_encoder(
    name: str, encoder: MaskedViT, checkpoint: Mapping[str, Any], key: str
) -> list[Assignment]:
    tensors, weights = backbone_tensors(name, encoder), state_of(checkpoint, key)
    part = f"{name}'s backbone"
    matched = match(f"checkpoint[{key!r}]", part, tensors, weights, backbone_arguments)
    _check_computation(name, encoder)
    return list(matched.values())


def _match_predictor(predictor: MaskedPredictor, checkpoint: Mapping[str, Any]) -> list[Assignment]:
    source = "checkpoint['predictor']"
    tensors = _with_table(predictor, published_tensors("predictor", predictor))
    weights = state_of(checkpoint, "predictor")
    matched = match(source, "predictor", tensors, weights, predictor_arguments)
    if predictor.position == "sincos":
        check_table(source, predictor, matched.pop(TABLE).weight)
    return [
        Assignment(tensor, swap_halves(predictor, name, weight))
        for name, (tensor, weight) in matched.items()
    ]


def _published_encoder(name: str, encoder: MaskedViT) -> dict[str, Tensor]:
    tensors = backbone_tensors(name, encoder)
    if difference := name_difference(published_names(depth_of(tensors)), tensors.keys()):
        raise ValueError(f"{name}: must have the names of the published layout, but {difference}")
    _check_computation(name, encoder)
    return tensors


def _published_predictor(predictor: MaskedPredictor) -> dict[str, Tensor]:
    tensors = published_tensors("predictor", predictor)
    swapped = {name: swap_halves(predictor, name, tensor) for name, tensor in tensors.items()}
    return _with_table(predictor, swapped)


def _with_table(predictor: MaskedPredictor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the fixed position table, which the published layout stores and ours computes."""
    if predictor.position != "sincos":
        return tensors
    return tensors | {TABLE: published_table(predictor)}


def _check_computation(name: str, encoder: MaskedViT) -> None:
    """Raise if an encoder computes something else, though the names and shapes of tensors fit."""
    check_square_grid(name, encoder.grid_size)
    check_arithmetic(name, encoder, _EPS)
    extra = [key for key in clean_names(encoder.state_dict().items()) if "backbone." not in key]
    if extra:
        raise ValueError(f"{name}: holds {extra} beside its backbone; use mask_mode='drop'")
