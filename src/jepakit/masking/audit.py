"""`audit`: what any sampler's masks really look like, in numbers."""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, overload

import torch
from jaxtyping import Int
from torch import Tensor

from jepakit._checks import check_grid_size, check_int
from jepakit.masking.report import MaskAudit
from jepakit.masking.sampler import UniformSampler
from jepakit.masking.tally import Tally
from jepakit.masking.uniforms import draw_uniforms
from jepakit.tokens import Masks, TokenSet

__all__ = ["audit", "masks_from_indices"]


@overload
def audit(
    sampler: Callable[..., Masks],
    *,
    batches: int = 100,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> MaskAudit: ...


@overload
def audit(
    sampler: Callable[..., list[Masks]],
    *,
    batches: int = 100,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> list[MaskAudit]: ...


def audit(
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
        sampler: Called as `sampler(batch_size, generator=generator)`. It returns `Masks`, or a list
            of them where an image has several contexts. Index tensors of other people's samplers
            become masks through `masks_from_indices`.
        batches: How many batches to draw.
        batch_size: Samples in each. Where a batch is cut to one length the result depends on it.
        generator: Handed to the sampler, which may ignore it.

    Returns:
        What was found, to print or to read field by field; one for each member where the sampler
        returns lists.

    Raises:
        TypeError: If the sampler returns something else.
        ValueError: If `batches` or `batch_size` is below 1, if the sampler returns another batch
            size, or lists of changing length.

    Example:
        >>> import torch
        >>> from jepakit.masking import MultiBlockMask, audit
        >>> found = audit(MultiBlockMask((14, 14)), generator=torch.Generator().manual_seed(0))
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
    whole_masks = _before_trimming(sampler)
    for _ in range(batches):
        start = time.perf_counter()
        if isinstance(sampler, UniformSampler):
            # As the sampler does itself; kept, to see the same draw before it is trimmed.
            uniforms = draw_uniforms(batch_size, sampler.num_draws, generator=generator)
            drawn = sampler.from_uniforms(uniforms)
        else:
            uniforms, drawn = None, sampler(batch_size, generator=generator)
        seconds += time.perf_counter() - start
        listed = isinstance(drawn, list)
        members = _members(drawn, batch_size)
        if not tallies:
            tallies = [Tally(masks, _need_of(sampler)) for masks in members]
        if len(members) != len(tallies):
            raise ValueError(
                f"sampler returned {len(members)} Masks, {len(tallies)} before: must be as many "
                "for every batch"
            )
        wholes: list[Masks | None] = [None] * len(members)
        if whole_masks is not None and uniforms is not None:
            wholes = [*_members(whole_masks(uniforms), batch_size)]
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


def masks_from_indices(
    context: Int[Tensor, "b n"],
    targets: Sequence[Int[Tensor, "b _"]],
    grid_size: tuple[int, ...],
) -> Masks:
    """Masks from bare index tensors, as other people's samplers and collators return them.

    An index that is listed twice counts once. Indices that only pad cannot be told from members
    here; where a sampler pads, build its masks with `TokenSet` and say which entries are valid.

    Args:
        context: Positions that the student sees, in any order.
        targets: For each target block its positions; blocks may differ in length.
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches; indices count row-major.

    Raises:
        ValueError: If there is no target, or an index lies off the grid.

    Example:
        A collator in I-JEPA's style returns the batch, one index tensor for each context and one
        for each target:

        >>> import torch
        >>> from jepakit.masking import audit, masks_from_indices
        >>> def collate(samples):
        ...     n = len(samples)
        ...     seen, hidden = torch.arange(6).expand(n, -1), torch.tensor([8, 9]).expand(n, -1)
        ...     return torch.stack(samples), [seen], [hidden, hidden + 4]
        >>> def sampler(batch_size, *, generator=None):
        ...     _, contexts, targets = collate([torch.zeros(1)] * batch_size)
        ...     return masks_from_indices(contexts[0], targets, (4, 4))
        >>> audit(sampler, batches=2).context_frequency.view(4, 4)
        tensor([[1., 1., 1., 1.],
                [1., 1., 0., 0.],
                [0., 0., 0., 0.],
                [0., 0., 0., 0.]])

    Source:
        jepakit's own.
    """
    check_grid_size("grid_size", grid_size)
    if len(targets) == 0:
        raise ValueError("targets=[]: must hold at least one index tensor")
    sets = [_to_set(f"targets[{k}]", idx, grid_size) for k, idx in enumerate(targets)]
    return Masks(
        TokenSet.from_mask(_to_set("context", context, grid_size), grid_size),
        TokenSet.from_mask(torch.stack(sets, dim=1), grid_size),
    )


def _to_set(name: str, idx: Tensor, grid_size: tuple[int, ...]) -> Tensor:
    size = torch.Size(grid_size).numel()
    if idx.numel() and not 0 <= int(idx.min()) <= int(idx.max()) < size:
        raise ValueError(
            f"{name}: must lie on the grid {grid_size}, in [0, {size - 1}], got values from "
            f"{int(idx.min())} to {int(idx.max())}"
        )
    mask = torch.zeros(len(idx), size, dtype=torch.bool, device=idx.device)
    return mask.scatter_(1, idx.long(), True)


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


def _before_trimming(sampler: object) -> Callable[[Tensor], object] | None:
    """The sampler's masks for a table of uniforms before contexts are cut; None if not known."""
    if not isinstance(sampler, UniformSampler):
        return None
    if hasattr(sampler, "_untrimmed"):
        untrimmed: Callable[[Tensor], object] = sampler._untrimmed
        return untrimmed
    if not is_dataclass(sampler) or "context_length" not in {f.name for f in fields(sampler)}:
        return None
    twin: Any = replace(sampler, context_length="pad")
    if twin.num_draws > sampler.num_draws:
        return None
    return lambda uniforms: twin.from_uniforms(uniforms[:, : twin.num_draws])


def _need_of(sampler: object) -> int:
    need = getattr(sampler, "need", 1)
    length = getattr(sampler, "context_length", None)
    if not isinstance(need, int):
        return 1
    # With an int length that number is what is promised.
    return min(need, length) if isinstance(length, int) else need


def _name_of(sampler: object) -> str:
    if is_dataclass(sampler):
        return repr(sampler)
    return getattr(sampler, "__name__", type(sampler).__name__)
