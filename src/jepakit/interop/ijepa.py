"""Checkpoints of the published I-JEPA: `load_ijepa` and `ijepa_checkpoint`."""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from jepakit._checks import check_int
from jepakit._wrapped import clean_names
from jepakit.interop.assignment import Pairs, assign, copied, pair
from jepakit.interop.backbones import (
    backbone_arguments,
    check_arithmetic,
    depth_of,
    published_names,
)
from jepakit.interop.checkpoint_file import part_of, read
from jepakit.interop.parts import (
    as_encoder,
    as_predictor,
    as_teacher,
    backbone_tensors,
    square_side,
)
from jepakit.interop.published_predictor import (
    TABLE,
    check_table,
    predictor_arguments,
    published_table,
    published_tensors,
    reorder,
)
from jepakit.nn import MaskedPredictor, MaskedViT

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
    r"""Load a published I-JEPA checkpoint into the parts that you built.

    The checkpoint's `encoder` goes into `encoder`, `predictor` into `predictor`, and
    `target_encoder` into `teacher`. Everything is compared first: where a name, a shape or a grid
    does not fit, this raises and no part has changed.

    The published predictor adds the table $[c \Vert r]$ of columns and rows, `MaskedPredictor`
    adds $[r \Vert c]$. With $S$, which swaps the halves of a vector, every map $W$ into the
    predictor's residual stream becomes $SW$ and every map out of it $WS$; norms commute with $S$.
    So the loaded predictor is the published one exactly, up to the rounding of floats.

    Not in the file, so taken from your parts and not checked: the number of attention heads (in
    the published models the predictor has as many as the encoder), `joint` and `drop_path`. The
    state of the optimiser is not read. The positions of the encoder, fixed in the published code,
    are a parameter of timm's; `encoder.backbone.pos_embed.requires_grad_(False)` keeps them.

    For the weights of one part in another, rename the key:
    `load_ijepa({"encoder": checkpoint["target_encoder"]}, encoder=encoder)`.

    Args:
        checkpoint: What `torch.load` gives for the file, or its path. Names may start with
            `module.` or not.
        encoder: A `MaskedViT` around a timm model without class token, such as
            `vit_huge_patch14_gap_224` with `num_classes=0`; wrapped or not. None leaves it out.
        predictor: A `MaskedPredictor` with position `"sincos"`, or `"learned"` for a checkpoint
            with another table. None leaves it out.
        teacher: An `EMATeacher` of such an encoder. None leaves it out.
        steps_per_epoch: Optimiser steps in an epoch of the run that goes on. `teacher.step`
            becomes the checkpoint's `epoch` times this, so that the momentum schedule goes on;
            None leaves `teacher.step` as it is.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If a part is of another class, or the checkpoint or something in it is.
        ValueError: If the file holds more than tensors and plain containers, or the checkpoint
            does not fit a part, or a part is sharded; if no part is given; if `steps_per_epoch` is
            given without `teacher`.

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
        Differences: everything must fit or nothing is loaded, where the published loader goes on
        from epoch 0 after any error.
    """
    given = {"encoder": encoder, "predictor": predictor, "teacher": teacher}
    if all(part is None for part in given.values()):
        raise ValueError("encoder, predictor, teacher: at least one must be given")
    checkpoint = read(checkpoint)
    step = _step(checkpoint, teacher, steps_per_epoch)
    pairs: list[tuple[Tensor, Tensor]] = []
    if encoder is not None:
        pairs += _encoder_pairs("encoder", as_encoder("encoder", encoder), checkpoint, "encoder")
    if predictor is not None:
        pairs += _predictor_pairs(as_predictor("predictor", predictor), checkpoint)
    average = None if teacher is None else as_teacher("teacher", teacher)
    if average is not None:
        inner = as_encoder("teacher.module", average.module)
        pairs += _encoder_pairs("teacher", inner, checkpoint, "target_encoder")
    assign(pairs)
    if average is not None and step is not None:
        average.step = step


def ijepa_checkpoint(
    encoder: nn.Module, predictor: nn.Module, teacher: nn.Module, *, epoch: int
) -> dict[str, Any]:
    """A checkpoint in the layout of the published I-JEPA, to give to `torch.save`.

    It has `encoder`, `predictor` and `target_encoder`, whose names start with `module.`, and
    `epoch`. Tensors are copies on the CPU. There is no `opt` and no `scaler`: the published code
    loads the weights, says that `opt` is missing, and starts at epoch 0. To go on with a run of
    your own, save the `state_dict` of the parts and of the optimiser instead.

    Args:
        encoder: A `MaskedViT` around a plain timm model without class token; wrapped or not.
        predictor: A `MaskedPredictor` with position `"sincos"` or `"learned"`.
        teacher: The `EMATeacher` of the encoder.
        epoch: Finished epochs; `load_ijepa` computes the teacher's step from them.

    Raises:
        TypeError: If a part is of another class.
        ValueError: If the layout has no place for something in a part, such as a class token,
            layer scales, rotary positions or a grid that is not square; if norms or activations
            are not the published ones; if a part is sharded.

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
        The layout of the checkpoints of Assran et al., I-JEPA (arXiv:2301.08243). Difference: no
        state of an optimiser.
    """
    check_int("epoch", epoch, minimum=0)
    inner = as_encoder("teacher.module", as_teacher("teacher", teacher).module)
    parts = {
        "encoder": _published_encoder("encoder", as_encoder("encoder", encoder)),
        "predictor": _published_predictor(as_predictor("predictor", predictor)),
        "target_encoder": _published_encoder("teacher", inner),
    }
    states: dict[str, Any] = {
        key: {f"module.{name}": copied(tensor) for name, tensor in state.items()}
        for key, state in parts.items()
    }
    return states | {"epoch": epoch}


def _step(
    checkpoint: Mapping[str, Any], teacher: nn.Module | None, steps_per_epoch: int | None
) -> int | None:
    if steps_per_epoch is None:
        return None
    check_int("steps_per_epoch", steps_per_epoch, minimum=1)
    if teacher is None:
        raise ValueError(
            f"steps_per_epoch={steps_per_epoch}: must come with a teacher, whose step it sets"
        )
    if "epoch" not in checkpoint:
        raise ValueError(
            f"steps_per_epoch={steps_per_epoch}: the checkpoint has no 'epoch' to multiply it by; "
            "leave it out and set teacher.step"
        )
    check_int("checkpoint['epoch']", checkpoint["epoch"], minimum=0)
    return steps_per_epoch * int(checkpoint["epoch"])


def _encoder_pairs(
    name: str, encoder: MaskedViT, checkpoint: Mapping[str, Any], key: str
) -> list[tuple[Tensor, Tensor]]:
    ours = backbone_tensors(name, encoder)
    theirs = part_of(checkpoint, key)
    pairs = pair(f"checkpoint[{key!r}]", f"{name}'s backbone", ours, theirs, backbone_arguments)
    _check_plain(name, encoder)
    return list(pairs.values())


def _predictor_pairs(
    predictor: MaskedPredictor, checkpoint: Mapping[str, Any]
) -> list[tuple[Tensor, Tensor]]:
    ours = _published_predictor(predictor, reordered=False)
    source = "checkpoint['predictor']"
    theirs = part_of(checkpoint, "predictor")
    pairs: Pairs = pair(source, "predictor", ours, theirs, predictor_arguments)
    if predictor.position == "sincos":
        check_table(source, predictor, pairs.pop(TABLE)[1])
    return [(mine, reorder(predictor, name, tensor)) for name, (mine, tensor) in pairs.items()]


def _check_plain(name: str, encoder: MaskedViT) -> None:
    """What neither names nor shapes of the backbone's tensors tell."""
    square_side(name, encoder.grid_size)
    check_arithmetic(name, encoder, _EPS)
    beside = [key for key in clean_names(encoder.state_dict().items()) if "backbone." not in key]
    if beside:
        raise ValueError(
            f"{name}: holds {beside} beside its backbone, for which the published layout has no "
            "place; it leaves hidden patches out, as MaskedViT does with mask_mode='drop'"
        )


def _published_encoder(name: str, encoder: MaskedViT) -> dict[str, Tensor]:
    tensors = backbone_tensors(name, encoder)
    names = published_names(depth_of(tensors))
    lacks, adds = sorted(names - tensors.keys()), sorted(tensors.keys() - names)
    if lacks or adds:
        raise ValueError(
            f"{name}: must have the names of the published layout, but lacks {lacks[:5] or 'none'} "
            f"and adds {adds[:5] or 'none'} ({len(lacks)} missing, {len(adds)} extra); "
            "timm_state_dict saves any backbone"
        )
    _check_plain(name, encoder)
    return tensors


def _published_predictor(
    predictor: MaskedPredictor, *, reordered: bool = True
) -> dict[str, Tensor]:
    tensors = published_tensors("predictor", predictor)
    if reordered:
        tensors = {name: reorder(predictor, name, tensor) for name, tensor in tensors.items()}
    if predictor.position == "sincos":
        tensors[TABLE] = published_table(predictor)
    return tensors
