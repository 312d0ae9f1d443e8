"""Checkpoints of the published V-JEPA and V-JEPA 2: load them, and save yours in their layout."""

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from jepakit._checks import as_int
from jepakit.interop._video_layout import (
    check_names,
    encoder_tensors,
    match_video,
    predictor_tensors,
)
from jepakit.interop._weights import (
    Assignment,
    assign,
    cpu_copy,
    read_checkpoint,
    state_of,
    teacher_step,
    unwrapped,
)
from jepakit.nn import MaskedPredictor, TokenViT
from jepakit.teacher import EMATeacher

__all__ = ["load_vjepa", "load_vjepa2", "vjepa2_checkpoint", "vjepa_checkpoint"]


def load_vjepa(
    checkpoint: Mapping[str, Any] | str | os.PathLike[str],
    *,
    encoder: nn.Module | None = None,
    predictor: nn.Module | None = None,
    teacher: nn.Module | None = None,
    steps_per_epoch: int | None = None,
) -> None:
    """Load a published V-JEPA checkpoint into an encoder, a predictor and a teacher.

    The checkpoint's `target_encoder` is loaded into `teacher`. Everything is compared first: if a
    name, a shape or a table of positions does not fit, this raises and nothing is changed. The
    published tables of sines and cosines are not copied but compared with the modules' own.

    The file does not hold the number of attention heads (16 in ViT-L and ViT-H; the published
    predictors have as many as the encoder), `joint` and `drop_path`: they stay as you built them.

    Args:
        checkpoint: The path of a file, or the result of `torch.load`. To load the weights of one
            part into another, rename the key: `{"encoder": checkpoint["target_encoder"]}`.
        encoder: A `TokenViT` with `Tubelets`, without registers, on the grid of the published
            clips, with position `"sincos"`; or `"learned"` for any table. Wrapped or not.
        predictor: A `MaskedPredictor` on the same grid, with position `"sincos"` or `"learned"` and
            two mask tokens.
        teacher: An `EMATeacher` of such an encoder.
        steps_per_epoch: Optimiser steps in an epoch of the run that continues. `teacher.step`
            becomes the checkpoint's `epoch` times this, so that the momentum schedule continues;
            None leaves it as it is.

    Raises:
        ValueError: If the checkpoint does not fit a part or holds NaN, a part is sharded, or the
            file is damaged or holds more than tensors and plain containers.

    Example:
        >>> from jepakit import EMATeacher, MaskedPredictor
        >>> from jepakit.interop import load_vjepa, vjepa_checkpoint
        >>> from jepakit.nn import TokenViT, Tubelets
        >>> grid, embed = (2, 4, 4), Tubelets((2, 4, 4), 24)
        >>> encoder = TokenViT(grid, 24, depth=1, num_heads=2, embed=embed, position="sincos")
        >>> predictor = MaskedPredictor(
        ...     grid, 24, predictor_embed_dim=12, depth=1, num_heads=2, num_mask_tokens=2
        ... )
        >>> parts = dict(encoder=encoder, predictor=predictor, teacher=EMATeacher(encoder, 0.998))
        >>> checkpoint = vjepa_checkpoint(**parts, epoch=3)
        >>> load_vjepa(checkpoint, **parts, steps_per_epoch=300)
        >>> parts["teacher"].step
        900

    Source:
        Bardes et al., V-JEPA (arXiv:2404.08471), and the layout of its published checkpoints.
        Difference: everything must fit or nothing is loaded.
    """
    _load(checkpoint, encoder, predictor, teacher, steps_per_epoch, rotary=False)


def load_vjepa2(
    checkpoint: Mapping[str, Any] | str | os.PathLike[str],
    *,
    encoder: nn.Module | None = None,
    predictor: nn.Module | None = None,
    teacher: nn.Module | None = None,
    steps_per_epoch: int | None = None,
) -> None:
    """Load a published V-JEPA 2 checkpoint into an encoder, a predictor and a teacher.

    As `load_vjepa`, with rotary positions. So `grid_size` need not be that of the published
    clips, and a table of positions in a checkpoint, which the published models do not use, is left
    out. Nothing else distinguishes the encoders of V-JEPA from those of V-JEPA 2: take care to
    load each with its own function.

    The file does not hold the number of attention heads, from which rotary positions follow too: 16
    in ViT-L and ViT-H, 22 in ViT-g, 12 in the predictors.

    Args:
        checkpoint: As in `load_vjepa`.
        encoder: A `TokenViT` with `Tubelets`, without registers, with position `"rope-vjepa2"`;
            wrapped or not.
        predictor: A `MaskedPredictor` with position `"rope-vjepa2"` and ten mask tokens.
        teacher: An `EMATeacher` of such an encoder.
        steps_per_epoch: As in `load_vjepa`.

    Raises:
        ValueError: As in `load_vjepa`. Checkpoints of V-JEPA 2.1 and V-JEPA 2-AC have other parts
            and are refused.

    Example:
        >>> from jepakit import EMATeacher, MaskedPredictor
        >>> from jepakit.interop import load_vjepa2, vjepa2_checkpoint
        >>> from jepakit.nn import TokenViT, Tubelets
        >>> grid, embed, position = (2, 4, 4), Tubelets((2, 4, 4), 24), "rope-vjepa2"
        >>> encoder = TokenViT(grid, 24, depth=1, num_heads=2, embed=embed, position=position)
        >>> predictor = MaskedPredictor(
        ...     grid, 24, predictor_embed_dim=12, depth=1, num_heads=1, position=position
        ... )
        >>> parts = dict(encoder=encoder, predictor=predictor, teacher=EMATeacher(encoder, 0.999))
        >>> load_vjepa2(vjepa2_checkpoint(**parts, epoch=3), **parts)

    Source:
        Assran et al., V-JEPA 2 (arXiv:2506.09985), and the layout of its published checkpoints.
        Difference: everything must fit or nothing is loaded.
    """
    _load(checkpoint, encoder, predictor, teacher, steps_per_epoch, rotary=True)


def vjepa_checkpoint(
    encoder: nn.Module, predictor: nn.Module, teacher: nn.Module, *, epoch: int
) -> dict[str, Any]:
    """Checkpoint in the layout of the published V-JEPA, for `torch.save`.

    Tensors are copies on the CPU. There is no `opt` and no `scaler`. To resume a run of your own,
    save the `state_dict` of the parts and of the optimiser instead.

    Args:
        encoder: A `TokenViT` with `Tubelets` and position `"sincos"` or `"learned"`; wrapped or
            not.
        predictor: A `MaskedPredictor` with position `"sincos"` or `"learned"`.
        teacher: The `EMATeacher` of the encoder.
        epoch: Finished epochs; `load_vjepa` computes the teacher's step from them.

    Raises:
        ValueError: If a part has something that the layout has not, such as registers, layer
            scales, rotary positions or a grid other than `(T, H, H)`.

    Example:
        >>> from jepakit import EMATeacher, MaskedPredictor
        >>> from jepakit.interop import vjepa_checkpoint
        >>> from jepakit.nn import TokenViT, Tubelets
        >>> grid, embed = (2, 4, 4), Tubelets((2, 4, 4), 24)
        >>> encoder = TokenViT(grid, 24, depth=1, num_heads=2, embed=embed, position="sincos")
        >>> predictor = MaskedPredictor(grid, 24, predictor_embed_dim=12, depth=1, num_heads=2)
        >>> checkpoint = vjepa_checkpoint(encoder, predictor, EMATeacher(encoder, 0.998), epoch=1)
        >>> sorted(checkpoint)
        ['encoder', 'epoch', 'predictor', 'target_encoder']
        >>> checkpoint["encoder"]["module.backbone.pos_embed"].shape
        torch.Size([1, 32, 24])

    Source:
        Published checkpoints of Bardes et al., V-JEPA (arXiv:2404.08471), without `opt`.
    """
    return _checkpoint(encoder, predictor, teacher, epoch, rotary=False)


def vjepa2_checkpoint(
    encoder: nn.Module, predictor: nn.Module, teacher: nn.Module, *, epoch: int
) -> dict[str, Any]:
    """Checkpoint in the layout of the published V-JEPA 2, for `torch.save`.

    As `vjepa_checkpoint`, without tables of positions.

    Args:
        encoder: A `TokenViT` with `Tubelets` and position `"rope-vjepa2"`; wrapped or not.
        predictor: A `MaskedPredictor` with position `"rope-vjepa2"`.
        teacher: The `EMATeacher` of the encoder.
        epoch: Finished epochs; `load_vjepa2` computes the teacher's step from them.

    Raises:
        ValueError: If a part has something that the layout has not.

    Example:
        >>> from jepakit import EMATeacher, MaskedPredictor
        >>> from jepakit.interop import vjepa2_checkpoint
        >>> from jepakit.nn import TokenViT, Tubelets
        >>> grid, embed, position = (2, 4, 4), Tubelets((2, 4, 4), 24), "rope-vjepa2"
        >>> encoder = TokenViT(grid, 24, depth=1, num_heads=2, embed=embed, position=position)
        >>> predictor = MaskedPredictor(
        ...     grid, 24, predictor_embed_dim=12, depth=1, num_heads=1, position=position
        ... )
        >>> checkpoint = vjepa2_checkpoint(encoder, predictor, EMATeacher(encoder, 0.999), epoch=1)
        >>> checkpoint["predictor"]["module.backbone.mask_tokens.0"].shape
        torch.Size([1, 1, 12])

    Source:
        Published checkpoints of Assran et al., V-JEPA 2 (arXiv:2506.09985), without `opt`.
    """
    return _checkpoint(encoder, predictor, teacher, epoch, rotary=True)


def _load(
    checkpoint: Mapping[str, Any] | str | os.PathLike[str],
    encoder: nn.Module | None,
    predictor: nn.Module | None,
    teacher: nn.Module | None,
    steps_per_epoch: int | None,
    *,
    rotary: bool,
) -> None:
    if encoder is None and predictor is None and teacher is None:
        raise ValueError("encoder, predictor, teacher: at least one must be given")
    file = None if isinstance(checkpoint, Mapping) else checkpoint
    checkpoint = read_checkpoint(checkpoint)
    try:
        _load_parts(checkpoint, encoder, predictor, teacher, steps_per_epoch, rotary=rotary)
    except (TypeError, ValueError) as error:
        if file is not None:
            error.add_note(f"The checkpoint is the file {os.fspath(file)!r}; nothing was changed.")
        raise


def _load_parts(
    checkpoint: Mapping[str, Any],
    encoder: nn.Module | None,
    predictor: nn.Module | None,
    teacher: nn.Module | None,
    steps_per_epoch: int | None,
    *,
    rotary: bool,
) -> None:
    step = teacher_step(checkpoint, teacher, steps_per_epoch)
    average = None if teacher is None else unwrapped("teacher", teacher, EMATeacher)
    parts: dict[str, tuple[str, nn.Module]] = {}  # name of the part: key, module
    if encoder is not None:
        parts["encoder"] = "encoder", unwrapped("encoder", encoder, TokenViT)
    if predictor is not None:
        parts["predictor"] = "predictor", unwrapped("predictor", predictor, MaskedPredictor)
    if average is not None:
        inner = unwrapped("teacher.module", average.module, TokenViT)
        parts["teacher"] = "target_encoder", inner
    assignments: list[Assignment] = []
    for name, (key, module) in parts.items():
        weights = state_of(checkpoint, key)
        assignments += match_video(f"checkpoint[{key!r}]", name, module, weights, rotary=rotary)
    assign(assignments)
    if average is not None and step is not None:
        average.step = step


def _checkpoint(
    encoder: nn.Module, predictor: nn.Module, teacher: nn.Module, epoch: int, *, rotary: bool
) -> dict[str, Any]:
    epoch = as_int("epoch", epoch, minimum=0)
    student = unwrapped("encoder", encoder, TokenViT)
    plain = unwrapped("predictor", predictor, MaskedPredictor)
    average = unwrapped("teacher", teacher, EMATeacher)
    inner = unwrapped("teacher.module", average.module, TokenViT)
    parts = {
        "encoder": ("encoder", encoder_tensors("encoder", student, rotary=rotary)),
        "predictor": ("predictor", predictor_tensors("predictor", plain, rotary=rotary)),
        "target_encoder": ("teacher", encoder_tensors("teacher", inner, rotary=rotary)),
    }
    states: dict[str, Any] = {}
    for key, (name, tensors) in parts.items():
        check_names(name, tensors)
        states[key] = {f"module.backbone.{n}": cpu_copy(tensor) for n, tensor in tensors.items()}
    return states | {"epoch": epoch}
