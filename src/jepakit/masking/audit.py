"""`audit_masks`: what any sampler's masks really look like, in numbers."""

import inspect
import time
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from typing import overload

import torch

from jepakit._checks import check_int
from jepakit.masking.report import MaskAudit
from jepakit.masking.base import UniformSampler, promised_tokens
from jepakit.masking.tally import Tally
from jepakit.masking._engine.random_numbers import draw_uniforms
from jepakit.tokens import Masks

__all__ = ["audit_masks"]


@overload
def audit_masks(
    sampler: Callable[..., Masks],
    *,
    batches: int = 100,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> MaskAudit: ...


@overload
def audit_masks(
    sampler: Callable[..., list[Masks]],
    *,
    batches: int = 100,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> list[MaskAudit]: ...


def audit_masks(
    sampler: Callable[..., Masks | list[Masks]],
    *,
    batches: int = 100,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> MaskAudit | list[MaskAudit]:
    """Draw many batches of masks and count what is in them.

    The share of samples in which position $p$ is context, and the share of targets that hold it,
    are means over all draws; nothing that the sampler says about itself is believed.

    Args:
        sampler: Called as `sampler(batch_size, generator=generator)`, or as `sampler(batch_size)`
            if it takes no `generator`. It returns `Masks`, or a list of them where an image has
            several contexts. Index tensors of other people's samplers become masks through
            `masks_from_indices`.
        batches: How many batches to draw.
        batch_size: Samples in each. Where a batch is cut to one length the result depends on it.
        generator: Handed to the sampler if it takes one, which it may ignore.

    Returns:
        What was found, to print or to read field by field; one for each member where the sampler
        returns lists.

    Raises:
        TypeError: If the sampler returns something else.
        ValueError: If `batches` or `batch_size` is below 1, if the sampler returns another batch
            size, or lists of changing length.

    Example:
        >>> import torch
        >>> from jepakit.masking import MultiBlockMask, audit_masks
        >>> found = audit_masks(MultiBlockMask((14, 14)), generator=torch.Generator().manual_seed(0))
        >>> found.leak_rate, found.context_coverage.min >= 0.25
        (0.0, True)

    Source:
        jepakit's own.
    """
    if not callable(sampler):
        raise TypeError(f"sampler={sampler!r}: must be callable as sampler(batch_size)")
    check_int("batches", batches, minimum=1)
    check_int("batch_size", batch_size, minimum=1)
    tallies: list[Tally] = []
    seconds, listed = 0.0, False
    draw = partial(sampler, generator=generator) if _takes_generator(sampler) else sampler
    for _ in range(batches):
        start = time.perf_counter()
        if isinstance(sampler, UniformSampler):
            # As the sampler does itself; kept, to see the same draw before it is trimmed.
            uniforms = draw_uniforms(batch_size, sampler.num_uniforms, generator=generator)
            drawn = sampler.from_uniforms(uniforms)
        else:
            uniforms, drawn = None, draw(batch_size)
        seconds += time.perf_counter() - start
        listed = isinstance(drawn, list)
        members = _members(drawn, batch_size)
        if not tallies:
            tallies = [
                Tally(masks, promised)
                for masks, promised in zip(
                    members, promised_tokens(sampler, len(members)), strict=True
                )
            ]
        if len(members) != len(tallies):
            raise ValueError(
                f"sampler returned {len(members)} Masks, {len(tallies)} before: must be as many "
                "for every batch"
            )
        wholes: list[Masks | None] = [None] * len(members)
        if isinstance(sampler, UniformSampler) and uniforms is not None:
            wholes = [*_members(sampler._untrimmed(uniforms), batch_size)]
        for tally, masks, whole in zip(tallies, members, wholes, strict=True):
            tally.add(masks, whole)
    per_image = seconds / (batches * batch_size)
    name = _name_of(sampler)
    if not listed:
        return tallies[0].result(name, batches, batch_size, per_image)
    return [
        tally.result(f"{name}[{k}]", batches, batch_size, per_image)
        for k, tally in enumerate(tallies)
    ]


def _members(drawn: object, batch_size: int) -> list[Masks]:
    members: list[Masks] = []
    for masks in drawn if isinstance(drawn, list) else [drawn]:
        if not isinstance(masks, Masks):
            raise TypeError(
                f"sampler returned {type(masks).__name__}: must be Masks or a list of them; index "
                "tensors become Masks through masks_from_indices"
            )
        if masks.context.shape[0] != batch_size:
            raise ValueError(
                f"sampler returned masks for {masks.context.shape[0]} samples: must be for the "
                f"{batch_size} that it was called for"
            )
        members.append(masks)
    if not members:
        raise ValueError("sampler returned []: must be at least one Masks")
    return members


def _takes_generator(sampler: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(sampler).parameters.values()
    except (TypeError, ValueError):  # some builtins tell none
        return True
    return any(p.name == "generator" or p.kind is p.VAR_KEYWORD for p in parameters)


def _name_of(sampler: object) -> str:
    if is_dataclass(sampler):
        return repr(sampler)
    return getattr(sampler, "__name__", type(sampler).__name__)
