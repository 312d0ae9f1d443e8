"""Weights: read from a checkpoint, matched with the tensors of a user's modules, copied to them.

Loading is all or nothing: every name, shape and type is compared before the first tensor is
written.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from jepakit._checks import as_int, check_floating, type_name
from jepakit._saved_file import read_saved
from jepakit._wrapped import clean_names, fsdp_parts, loaded_type, name_difference, unwrap
from jepakit.nn import MaskedViT

_Part = TypeVar("_Part", bound=nn.Module)


# Checkpoints


def read_checkpoint(checkpoint: Mapping[str, Any] | str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return a checkpoint's mapping; of a file, without running code, and on the CPU."""
    if isinstance(checkpoint, Mapping):
        return checkpoint
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(f"checkpoint: must be a mapping or a path, got {type_name(checkpoint)}")
    path = os.fspath(checkpoint)
    # Most of a published file is the state of the optimiser, which `mmap` leaves unread.
    loaded = read_saved("checkpoint", path, map_location="cpu", mmap=True)
    if not isinstance(loaded, Mapping):
        kind = type_name(loaded)
        raise TypeError(f"checkpoint={path!r}: must hold a dict of names, got {kind}")
    return loaded


def state_of(checkpoint: Mapping[str, Any], key: str) -> Any:
    """Return one state dict of a published checkpoint, without the prefixes of wrappers."""
    if key not in checkpoint:
        names = ", ".join(sorted(map(str, checkpoint))[:5])
        raise ValueError(
            f"checkpoint: must hold {key!r}, but has {names or 'nothing'} ...; a plain state dict "
            f"is passed as {{{key!r}: state_dict}}"
        )
    state = checkpoint[key]
    for prefix in ("module.", "backbone."):  # of DDP, and of the published code for video
        if isinstance(state, Mapping) and all(str(name).startswith(prefix) for name in state):
            state = {str(name).removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def teacher_step(
    checkpoint: Mapping[str, Any], teacher: nn.Module | None, steps_per_epoch: int | None
) -> int | None:
    """Return the step at which a teacher continues; None to leave it as it is."""
    if steps_per_epoch is None:
        return None
    steps_per_epoch = as_int("steps_per_epoch", steps_per_epoch, minimum=1)
    if teacher is None:
        raise ValueError(f"steps_per_epoch={steps_per_epoch}: must come with a teacher")
    if "epoch" not in checkpoint:
        raise ValueError(f"steps_per_epoch={steps_per_epoch}: the checkpoint has no 'epoch'")
    return steps_per_epoch * as_int("checkpoint['epoch']", checkpoint["epoch"], minimum=0)


# The user's modules


def unwrapped(name: str, module: nn.Module, kind: type[_Part]) -> _Part:
    """Return the module of a class of jepakit's within wrappers."""
    inner = unwrap(module)
    if not isinstance(inner, kind):
        raise TypeError(f"{name}={type_name(inner)}: must be the {kind.__name__}, wrapped or not")
    return inner


def backbone_tensors(name: str, encoder: MaskedViT) -> dict[str, Tensor]:
    """Return the state of an encoder's backbone under timm's names; shares memory."""
    return tensors_of(name, unwrap(encoder.backbone))


def tensors_of(name: str, module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state, which must be whole and on a real device; shares memory."""
    tensors: dict[str, Any] = clean_names(module.state_dict().items())
    dtensor = loaded_type("torch.distributed.tensor", "DTensor")
    if fsdp_parts(module) or any(isinstance(tensor, dtensor) for tensor in tensors.values()):
        raise ValueError(f"{name}: must not be sharded yet; load weights before fully_shard")
    for key, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{name}: {key} is on the meta device; use to_empty(device=...) first")
    return tensors


def cpu_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


# From one to the other

# What `adapt=True` can give another shape, under the published names.
ADAPTABLE = {"patch_embed.proj.weight", "pos_embed", "predictor_pos_embed"}


class Adaptation(NamedTuple):
    """A weight that was adapted to the shape that a module has.

    Args:
        part: The module that was loaded: `"encoder"`, `"predictor"` or `"teacher"`.
        name: The tensor, under its published name.
        published: Its shape in the checkpoint.
        loaded: The shape that it was adapted to.
        method: How.
    """

    part: str
    name: str
    published: tuple[int, ...]
    loaded: tuple[int, ...]
    method: str


class Assignment(NamedTuple):
    """A module's tensor and the weight to be copied into it."""

    tensor: Tensor
    weight: Tensor


def match(
    source: str,
    part: str,
    tensors: Mapping[str, Tensor],
    weights: Any,
    arguments_of: Callable[[Mapping[str, Any]], dict[str, str]],
    adaptable: Collection[str] = ADAPTABLE,
) -> dict[str, Assignment]:
    """Match each tensor of a part with its weight; raise unless all names and shapes fit.

    `source` (of the weights) and `part` (the owner of the tensors) are for errors. `arguments_of`
    infers from tensors the arguments that build the part for them; an error recommends those that
    differ, or `adapt=True` if that can give all of the `adaptable` tensors their shapes.
    """
    if not isinstance(weights, Mapping):
        kind = type_name(weights)
        raise TypeError(f"{source}: must be a mapping from names to tensors, got {kind}")

    def advice() -> str:
        have, want = arguments_of(tensors), arguments_of(weights)
        changes = [f"{name}={value}" for name, value in want.items() if have.get(name) != value]
        return f"; build the {part} with {', '.join(changes)}" if changes else ""

    if difference := name_difference(tensors.keys(), weights.keys()):
        raise ValueError(f"{source}: must have the names of the {part}, but {difference}{advice()}")
    assignments, differing = {}, {}
    for name, tensor in tensors.items():
        weight = weights[name]
        check_floating(f"{source}: {name}", weight)
        if weight.is_meta:
            raise ValueError(f"{source}: {name} is on the meta device and holds nothing")
        if weight.layout != torch.strided:
            raise ValueError(f"{source}: {name} must be a dense tensor, got {weight.layout}")
        if not torch.isfinite(weight).all():
            hint = "take an earlier checkpoint of the run"
            raise ValueError(f"{source}: {name} holds NaN or infinity, must be finite; {hint}")
        if weight.shape != tensor.shape:
            differing[name] = f"{name} {tuple(weight.shape)} against {tuple(tensor.shape)}"
        assignments[name] = Assignment(tensor, weight)
    if differing:
        hint = "" if set(differing) - set(adaptable) else ", or pass adapt=True"
        raise ValueError(
            f"{source}: must have the shapes of the {part}, but differs in {len(differing)}: "
            f"{', '.join(list(differing.values())[:3])}{advice()}{hint}"
        )
    return assignments


@torch.no_grad()
def assign(assignments: Iterable[Assignment]) -> None:
    for tensor, weight in assignments:
        tensor.copy_(weight)
