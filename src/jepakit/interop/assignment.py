"""All or nothing: every name, shape and type is compared before the first tensor is written."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from jepakit._checks import check_floating, type_name

__all__: list[str] = []

Pairs = dict[str, tuple[Tensor, Tensor]]


def pair(
    source: str,
    part: str,
    ours: Mapping[str, Tensor],
    theirs: Any,
    arguments_of: Callable[[Mapping[str, Any]], dict[str, str]],
) -> Pairs:
    """Each of a part's tensors with the one that it is to become; raises unless all fit.

    `source` says where `theirs` is from, `part` whose `ours` are, and `arguments_of` reads off
    tensors how a part is built for them, which is what an error recommends.
    """
    if not isinstance(theirs, Mapping):
        raise TypeError(
            f"{source}: must be a mapping from names to tensors, got {type_name(theirs)}"
        )
    _check_names(source, part, ours, theirs, arguments_of)
    other = []
    for name, mine in ours.items():
        tensor = theirs[name]
        check_floating(f"{source}: {name}", tensor)
        if tensor.is_meta:
            raise ValueError(f"{source}: {name} is on the meta device and holds nothing")
        if tensor.layout != torch.strided:
            raise ValueError(f"{source}: {name} must be a dense tensor, got {tensor.layout}")
        if tensor.shape != mine.shape:
            other.append(f"{name} {tuple(tensor.shape)} against {tuple(mine.shape)}")
    if other:
        raise ValueError(
            f"{source}: must have the shapes of the {part}, but differs in {len(other)}: "
            f"{', '.join(other[:3])}{_advice(part, ours, theirs, arguments_of)}"
        )
    return {name: (mine, theirs[name]) for name, mine in ours.items()}


def _check_names(
    source: str,
    part: str,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Any],
    arguments_of: Callable[[Mapping[str, Any]], dict[str, str]],
) -> None:
    lacks, adds = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if lacks or adds:
        raise ValueError(
            f"{source}: must have the names of the {part}, but lacks {lacks[:5] or 'none'} and "
            f"adds {adds[:5] or 'none'} ({len(lacks)} missing, {len(adds)} extra)"
            f"{_advice(part, ours, theirs, arguments_of)}"
        )


def _advice(
    part: str,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    arguments_of: Callable[[Mapping[str, Any]], dict[str, str]],
) -> str:
    have, want = arguments_of(ours), arguments_of(theirs)
    changes = [f"{name}={value}" for name, value in want.items() if have.get(name) != value]
    return f"; build the {part} with {', '.join(changes)}" if changes else ""


@torch.no_grad()
def assign(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Write the second of each pair into the first."""
    for mine, source in pairs:
        mine.copy_(source)


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU: what is saved does not change when training goes on."""
    return tensor.detach().to("cpu", copy=True).contiguous()
