"""`MaskAudit`: what was found out about a sampler, and how it is told."""

import textwrap
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

__all__ = ["MaskAudit", "Spread"]

_AXES = {1: ("position",), 2: ("row", "column"), 3: ("frame", "row", "column")}
# Block sizes that the table lists; the field holds all.
_SHOWN = 4


class Spread(NamedTuple):
    """The least, the mean and the largest of some values.

    Example:
        >>> from jepakit.masking import Spread
        >>> Spread(0.25, 0.4, 0.5).mean
        0.4

    Source:
        jepakit's own.
    """

    min: float
    mean: float
    max: float


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskAudit:
    """What `audit_masks` found; `print` it for a table, or read the fields.

    Shares are fractions. Everything is as a training step gets it: after trimming and batching.

    Args:
        sampler: What was audited.
        grid_size: The grid in patches.
        batches: Batches that were drawn.
        batch_size: Samples in each.
        context_frequency: For each position, the share of samples in which it is context.
        target_frequency: For each position, the share of targets that hold it.
        context_coverage: Fraction of the grid that a context covers.
        min_context_tokens: Context tokens that the sampler promises (its attribute of this name),
            else 1.
        undersized_contexts: Share of contexts with fewer than `min_context_tokens`.
        leak_rate: Share of samples whose context meets one of their targets.
        discarded: Mean number of context tokens that a batch's common length, or an int one, cost
            a sample; 0 where nothing is ever trimmed. Found by drawing the same masks once more
            without it, so known for jepakit's samplers only, and None for all others.
        empty_targets: Share of targets without a token.
        duplicate_targets: Share of targets that equal another target of the same sample (and are
            not empty).
        partial_targets: Share of targets that do not fill their bounding box: blocks that were cut,
            or targets that never were blocks.
        block_sizes: Sides of the targets' bounding boxes, with the number of targets of each, the
            most frequent first.
        seconds_per_image: Time of the sampler's call, for one image.

    Example:
        >>> import torch
        >>> from jepakit.masking import RandomMask, audit_masks
        >>> print(audit_masks(RandomMask((4, 4)), batches=10))
        RandomMask(grid_size=(4, 4), target_ratio=0.75, context_length='pad')
        640 samples, in batches of 64, on the grid (4, 4)
        ...

    Source:
        jepakit's own.
    """

    sampler: str
    grid_size: tuple[int, ...]
    batches: int
    batch_size: int
    context_frequency: Float[Tensor, " N"] = field(repr=False)
    target_frequency: Float[Tensor, " N"] = field(repr=False)
    context_coverage: Spread
    min_context_tokens: int
    undersized_contexts: float
    leak_rate: float
    discarded: float | None
    empty_targets: float
    duplicate_targets: float
    partial_targets: float
    block_sizes: dict[tuple[int, ...], int] = field(repr=False)
    seconds_per_image: float

    def __str__(self) -> str:
        name = textwrap.fill(self.sampler, 79, subsequent_indent="    ")
        head = (
            f"{self.batches * self.batch_size} samples, in batches of {self.batch_size}, on the "
            f"grid {self.grid_size}"
        )
        return "\n".join([name, head, "", *self._figures(), "", *self._places()])

    def _figures(self) -> list[str]:
        low, mean, high = self.context_coverage
        tokens = mean * self.context_frequency.numel()
        dropped = "not known" if self.discarded is None else f"{self.discarded:.1f}"
        before = "" if self.discarded is None else f"of {tokens + self.discarded:.1f}"
        short = (
            "empty contexts"
            if self.min_context_tokens == 1
            else f"contexts below {self.min_context_tokens} tokens"
        )
        rows = [
            ("context, mean", _percent(mean), f"{tokens:.1f} tokens"),
            ("context, least", _percent(low), ""),
            ("context, most", _percent(high), ""),
            (short, _percent(self.undersized_contexts), ""),
            ("contexts that meet a target", _percent(self.leak_rate), ""),
            ("context tokens trimmed away", dropped, before),
            ("empty targets", _percent(self.empty_targets), ""),
            ("duplicate targets", _percent(self.duplicate_targets), ""),
            ("targets that are no full block", _percent(self.partial_targets), ""),
            ("target sizes", str(len(self.block_sizes)), self._sizes()),
            ("time for an image", f"{self.seconds_per_image * 1e6:.1f}", "microseconds"),
        ]
        return [f"{label:<31} {value:>9}  {note}".rstrip() for label, value, note in rows]

    def _sizes(self) -> str:
        total = max(1, sum(self.block_sizes.values()))
        shown = [
            f"{'x'.join(map(str, size))} ({count / total:.0%})"
            for size, count in list(self.block_sizes.items())[:_SHOWN]
        ]
        return ", ".join([*shown, *(["..."] if len(self.block_sizes) > _SHOWN else [])])

    def _places(self) -> list[str]:
        """How often the first, the middle and the last slice along each axis have a role."""
        context = self.context_frequency.view(self.grid_size)
        target = self.target_frequency.view(self.grid_size)
        lines = [f"{'how often':<22} {'context':>9} {'target':>9}"]
        for axis, name in enumerate(_AXES[len(self.grid_size)]):
            side = self.grid_size[axis]
            middle = side // 2 - (side % 2 == 0)
            parts = {"first": (0, 1), "middle": (middle, side // 2 + 1), "last": (side - 1, side)}
            for where, (start, end) in parts.items():
                shares = (
                    _percent(float(role.narrow(axis, start, end - start).mean()))
                    for role in (context, target)
                )
                lines.append(f"{where + ' ' + name:<22} " + " ".join(f"{s:>9}" for s in shares))
        return lines


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
