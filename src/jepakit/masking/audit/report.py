"""`MaskAudit`: the result of `audit_masks`, printed as a table."""

import textwrap
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

__all__ = ["MaskAudit", "Spread"]

_AXIS_NAMES = {1: ("position",), 2: ("row", "column"), 3: ("frame", "row", "column")}
_MAX_SIZES_SHOWN = 4  # target sizes in the table; the field holds all


class Spread(NamedTuple):
    """Minimum, mean and maximum of some values."""

    min: float
    mean: float
    max: float


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskAudit:
    """Statistics of a sampler's masks, from `audit_masks`; `print` shows them as a table.

    Rates, frequencies and coverage are fractions. Contexts are counted as a training step gets
    them: after trimming and batching.

    Args:
        sampler: Name or repr of the sampler.
        grid_size: The grid in patches.
        num_batches: Number of batches drawn.
        batch_size: Samples in a batch.
        context_frequency: For each position, the fraction of samples with it in their context.
        target_frequency: For each position, the fraction of targets that contain it.
        context_coverage: Fraction of the grid that a context covers.
        min_context_tokens: The sampler's attribute of this name: tokens that it promises for every
            context. 1 where there is no such attribute.
        undersized_context_ratio: Fraction of contexts with fewer than `min_context_tokens`.
        leak_ratio: Fraction of samples whose context overlaps one of their targets.
        mean_trimmed_tokens: Mean number of context tokens that a sample loses to a common length
            (`context_length="trim"` or an int); 0 where nothing is trimmed. It is found by drawing
            the same masks again without trimming, so it is known for jepakit's samplers only, and
            None for others.
        empty_target_ratio: Fraction of targets without a token.
        duplicate_target_ratio: Fraction of targets that are not empty and equal another target of
            the same sample.
        partial_target_ratio: Fraction of targets that do not fill their bounding box: blocks that
            were cut, or targets that are no blocks.
        target_sizes: Sides of the targets' bounding boxes, with the number of targets of each size,
            the most frequent first.
        seconds_per_image: Time of the sampler's call for one image.

    Example:
        >>> import torch
        >>> from jepakit.masking import RandomMask, audit_masks
        >>> print(audit_masks(RandomMask((4, 4)), num_batches=10))
        RandomMask(grid_size=(4, 4), target_ratio=0.75, context_length='pad')
        640 samples, in batches of 64, on the grid (4, 4)
        ...
    """

    sampler: str
    grid_size: tuple[int, ...]
    num_batches: int
    batch_size: int
    context_frequency: Float[Tensor, " N"] = field(repr=False)
    target_frequency: Float[Tensor, " N"] = field(repr=False)
    context_coverage: Spread
    min_context_tokens: int
    undersized_context_ratio: float
    leak_ratio: float
    mean_trimmed_tokens: float | None
    empty_target_ratio: float
    duplicate_target_ratio: float
    partial_target_ratio: float
    target_sizes: dict[tuple[int, ...], int] = field(repr=False)
    seconds_per_image: float

    def __str__(self) -> str:
        name = textwrap.fill(self.sampler, 79, subsequent_indent="    ")
        head = (
            f"{self.num_batches * self.batch_size} samples, in batches of {self.batch_size}, on "
            f"the grid {self.grid_size}"
        )
        return "\n".join([name, head, "", *self._totals(), "", *self._frequencies()])

    def _totals(self) -> list[str]:
        """Lines of the upper table: label, value, note."""
        low, mean, high = self.context_coverage
        tokens = mean * self.context_frequency.numel()
        if self.mean_trimmed_tokens is None:
            trimmed, before = "unknown", ""
        else:
            trimmed = f"{self.mean_trimmed_tokens:.1f}"
            before = f"of {tokens + self.mean_trimmed_tokens:.1f}"
        undersized = (
            "empty contexts"
            if self.min_context_tokens == 1
            else f"contexts below {self.min_context_tokens} tokens"
        )
        rows = [
            ("context, mean", _percent(mean), f"{tokens:.1f} tokens"),
            ("context, least", _percent(low), ""),
            ("context, most", _percent(high), ""),
            (undersized, _percent(self.undersized_context_ratio), ""),
            ("contexts that overlap a target", _percent(self.leak_ratio), ""),
            ("context tokens trimmed", trimmed, before),
            ("empty targets", _percent(self.empty_target_ratio), ""),
            ("duplicate targets", _percent(self.duplicate_target_ratio), ""),
            ("targets that are no full block", _percent(self.partial_target_ratio), ""),
            ("target sizes", str(len(self.target_sizes)), self._most_frequent_sizes()),
            ("time for an image", f"{self.seconds_per_image * 1e6:.1f}", "microseconds"),
        ]
        return [f"{label:<31} {value:>9}  {note}".rstrip() for label, value, note in rows]

    def _most_frequent_sizes(self) -> str:
        total = max(1, sum(self.target_sizes.values()))
        shown = [
            f"{'x'.join(map(str, size))} ({count / total:.0%})"
            for size, count in list(self.target_sizes.items())[:_MAX_SIZES_SHOWN]
        ]
        return ", ".join([*shown, *(["..."] if len(self.target_sizes) > _MAX_SIZES_SHOWN else [])])

    def _frequencies(self) -> list[str]:
        """Lines of the lower table: mean frequencies in the first, middle and last slice per axis.

        The middle of an axis is one slice if its length is odd and two if it is even.
        """
        context = self.context_frequency.view(self.grid_size)
        target = self.target_frequency.view(self.grid_size)
        lines = [f"{'frequency':<22} {'context':>9} {'target':>9}"]
        for axis, name in enumerate(_AXIS_NAMES[len(self.grid_size)]):
            side = self.grid_size[axis]
            slices = {"first": (0, 1), "middle": ((side - 1) // 2, side // 2 + 1)}
            slices["last"] = (side - 1, side)
            for label, (start, end) in slices.items():
                values = [
                    _percent(float(frequency.narrow(axis, start, end - start).mean()))
                    for frequency in (context, target)
                ]
                lines.append(f"{label + ' ' + name:<22} {values[0]:>9} {values[1]:>9}")
        return lines


def _percent(fraction: float) -> str:
    return f"{fraction:.1%}".replace("%", " %")
