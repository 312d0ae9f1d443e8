"""`audit_masks`: statistics of the masks that a sampler returns."""

import inspect
import time
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, NamedTuple, overload

import torch

from jepakit._checks import as_int
from jepakit.masking._engine.random_numbers import draw_uniforms
from jepakit.masking.audit._counts import MaskCounts
from jepakit.masking.audit.report import MaskAudit
from jepakit.masking.base import UniformSampler, promised_tokens
from jepakit.tokens import Masks

__all__ = ["audit_masks"]


@overload
def audit_masks(
    sampler: Callable[..., Masks],
    *,
    num_batches: int = 100,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> MaskAudit: ...


@overload
def audit_masks(
    sampler: Callable[..., list[Masks]],
    *,
    num_batches: int = 100,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> list[MaskAudit]: ...


def audit_masks(
    sampler: Callable[..., Masks | list[Masks]],
    *,
    num_batches: int = 100,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> MaskAudit | list[MaskAudit]:
    """Draw many batches of masks and count what they contain.

    Everything is counted from the masks themselves; only `min_context_tokens` is read from the
    sampler, to compare its contexts with it.

    Args:
        sampler: Called as `sampler(batch_size, generator=generator)`, or as `sampler(batch_size)`
            if it takes no `generator`. It returns `Masks`, or a list of them where an image has
            several contexts. Index tensors of other libraries' samplers become `Masks` through
            `masks_from_indices`.
        num_batches: Number of batches to draw.
        batch_size: Samples in a batch; results depend on it where a batch is trimmed to one length.
        generator: Passed to the sampler if it takes one.

    Returns:
        The audit, to print or to read field by field; one for each member where the sampler returns
        lists.

    Raises:
        ValueError: If the sampler returns masks for another batch size, on another grid than
            before, or in a list of another length than before.

    Example:
        >>> import torch
        >>> from jepakit.masking import MultiBlockMask, audit_masks
        >>> generator = torch.Generator().manual_seed(0)
        >>> audit = audit_masks(MultiBlockMask((14, 14)), generator=generator)
        >>> audit.leak_ratio, audit.context_coverage.min >= 0.25
        (0.0, True)
    """
    if not callable(sampler):
        raise TypeError(f"sampler={sampler!r}: must be callable as sampler(batch_size)")
    num_batches = as_int("num_batches", num_batches, minimum=1)
    batch_size = as_int("batch_size", batch_size, minimum=1)
    counts: list[MaskCounts] = []
    seconds, returns_list = 0.0, False
    for _ in range(num_batches):
        drawn = _draw(sampler, batch_size, generator)
        members = _members(drawn.masks, batch_size)
        returns_list = isinstance(drawn.masks, list)
        seconds += drawn.seconds
        if not counts:
            promised = promised_tokens(sampler, len(members))
            counts = [
                MaskCounts(masks.grid_size, tokens)
                for masks, tokens in zip(members, promised, strict=True)
            ]
        if len(members) != len(counts):
            raise ValueError(
                f"sampler returned {len(members)} Masks, {len(counts)} before: must be as many "
                "for every batch"
            )
        untrimmed = drawn.untrimmed
        whole = [None] * len(members) if untrimmed is None else _members(untrimmed, batch_size)
        for count, masks, before in zip(counts, members, whole, strict=True):
            count.add(masks, before)
    name, per_image = _name_of(sampler), seconds / (num_batches * batch_size)
    if not returns_list:
        return counts[0].to_audit(name, batch_size, per_image)
    return [count.to_audit(f"{name}[{k}]", batch_size, per_image) for k, count in enumerate(counts)]


class _Draw(NamedTuple):
    masks: Masks | list[Masks]
    untrimmed: Masks | list[Masks] | None  # None if the sampler cannot draw them
    seconds: float


def _draw(
    sampler: Callable[..., Masks | list[Masks]], batch_size: int, generator: torch.Generator | None
) -> _Draw:
    """One batch of masks, the same masks before trimming where possible, and the sampling time."""
    start = time.perf_counter()
    if isinstance(sampler, UniformSampler):
        # What `sampler(batch_size, generator=generator)` does, in two steps: the random numbers are
        # needed a second time for the untrimmed masks.
        uniforms = draw_uniforms(batch_size, sampler.num_uniforms, generator=generator)
        masks = sampler.from_uniforms(uniforms)
        seconds = time.perf_counter() - start
        return _Draw(masks, sampler._untrimmed(uniforms), seconds)
    keywords = {"generator": generator} if _takes_generator(sampler) else {}
    masks = sampler(batch_size, **keywords)
    return _Draw(masks, None, time.perf_counter() - start)


def _members(masks: object, batch_size: int) -> list[Masks]:
    """The returned `Masks` as a list, checked."""
    members: list[Any] = masks if isinstance(masks, list) else [masks]
    for member in members:
        if not isinstance(member, Masks):
            raise TypeError(
                f"sampler returned {type(member).__name__}: must be Masks or a list of them; index "
                "tensors become Masks through masks_from_indices"
            )
        if len(member) != batch_size:
            raise ValueError(
                f"sampler returned masks for {len(member)} samples: must be for the "
                f"{batch_size} that it was called for"
            )
    if not members:
        raise ValueError("sampler returned []: must be at least one Masks")
    return members


def _takes_generator(sampler: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(sampler).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return True
    return any(p.name == "generator" or p.kind is p.VAR_KEYWORD for p in parameters)


def _name_of(sampler: object) -> str:
    if is_dataclass(sampler):
        return repr(sampler)
    return getattr(sampler, "__name__", type(sampler).__name__)
