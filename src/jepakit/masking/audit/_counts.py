"""Counts over many batches of masks, from which an audit is computed."""

from collections import Counter

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jepakit.masking.audit.report import MaskAudit, Spread
from jepakit.tokens import Masks


class MaskCounts:
    """Running counts over batches of masks on one grid.

    Args:
        grid_size: The grid in patches.
        min_context_tokens: Contexts with fewer tokens are counted as undersized.
    """

    def __init__(self, grid_size: tuple[int, ...], min_context_tokens: int) -> None:
        self.grid_size = grid_size
        self.min_context_tokens = min_context_tokens
        size = torch.Size(grid_size).numel()
        # Per position: samples with it in their context, and targets that contain it.
        self.context_hits = torch.zeros(size, dtype=torch.int64, device="cpu")
        self.target_hits = torch.zeros(size, dtype=torch.int64, device="cpu")
        self.context_lengths: list[Tensor] = []
        self.leaking_samples = 0
        self.targets = self.empty_targets = self.duplicate_targets = self.partial_targets = 0
        self.target_sizes: Counter[tuple[int, ...]] = Counter()
        self.trimmed_tokens: int | None = 0

    def add(self, masks: Masks, untrimmed: Masks | None) -> None:
        """Count a batch; `untrimmed` is the same draw before contexts got a common length."""
        if masks.grid_size != self.grid_size:
            raise ValueError(
                f"sampler returned masks on the grid {masks.grid_size}, before on "
                f"{self.grid_size}: must be on one grid"
            )
        context, targets = masks.context.to_mask().cpu(), masks.targets.to_mask().cpu()
        self._add_context(context, untrimmed)
        self.leaking_samples += int((context & targets.any(dim=1)).any(dim=1).sum())
        self._add_targets(targets)

    def _add_context(self, context: Bool[Tensor, "b N"], untrimmed: Masks | None) -> None:
        self.context_hits += context.sum(dim=0)
        self.context_lengths.append(context.sum(dim=1))
        before = None if untrimmed is None else untrimmed.context.to_mask().cpu()
        # If the trimmed context is not a subset of the untrimmed one, it was drawn in another way,
        # and the difference of their counts says nothing.
        if self.trimmed_tokens is None or before is None or (context & ~before).any():
            self.trimmed_tokens = None
        else:
            self.trimmed_tokens += int(before.sum() - context.sum())

    def _add_targets(self, targets: Bool[Tensor, "b m N"]) -> None:
        counts = targets.sum(dim=2)
        self.target_hits += targets.sum(dim=(0, 1))
        self.targets += counts.numel()
        self.empty_targets += int((counts == 0).sum())
        self.duplicate_targets += int(_has_duplicate(targets, counts).sum())
        boxes = _bounding_boxes(targets[counts > 0], self.grid_size)
        self.partial_targets += int((boxes.prod(dim=1) != counts[counts > 0]).sum())
        self.target_sizes.update(map(tuple, boxes.tolist()))

    def to_audit(self, sampler: str, batch_size: int, seconds_per_image: float) -> MaskAudit:
        """The counts as fractions and means."""
        lengths = torch.cat(self.context_lengths)
        samples, size, targets = len(lengths), len(self.context_hits), max(1, self.targets)
        return MaskAudit(
            sampler=sampler,
            grid_size=self.grid_size,
            num_batches=samples // batch_size,
            batch_size=batch_size,
            context_frequency=(self.context_hits.double() / samples).float(),
            target_frequency=(self.target_hits.double() / targets).float(),
            context_coverage=Spread(
                int(lengths.min()) / size,
                int(lengths.sum()) / (samples * size),
                int(lengths.max()) / size,
            ),
            min_context_tokens=self.min_context_tokens,
            undersized_context_ratio=int((lengths < self.min_context_tokens).sum()) / samples,
            leak_ratio=self.leaking_samples / samples,
            mean_trimmed_tokens=None
            if self.trimmed_tokens is None
            else self.trimmed_tokens / samples,
            empty_target_ratio=self.empty_targets / targets,
            duplicate_target_ratio=self.duplicate_targets / targets,
            partial_target_ratio=self.partial_targets / targets,
            # The most frequent first; equally frequent ones by size.
            target_sizes=dict(sorted(self.target_sizes.items(), key=lambda e: (-e[1], e[0]))),
            seconds_per_image=seconds_per_image,
        )


def _has_duplicate(
    targets: Bool[Tensor, "b m N"], counts: Int[Tensor, "b m"]
) -> Bool[Tensor, "b m"]:
    """True for non-empty targets that equal another target of the same sample.

    Two sets are equal if both have as many members as their intersection.
    """
    # In float64: autocast would round counts in float32, and products of integers are slow.
    members = targets.double()
    intersection = members @ members.mT
    equal = (intersection == counts[:, :, None]) & (intersection == counts[:, None])
    # Every set equals itself.
    return (equal.sum(dim=2) > 1) & (counts > 0)


def _bounding_boxes(sets: Bool[Tensor, "k N"], grid_size: tuple[int, ...]) -> Int[Tensor, "k axes"]:
    """Sides of the smallest box around each set, none of which is empty."""
    cells = sets.view(-1, *grid_size)
    sides = []
    for axis, length in enumerate(grid_size, start=1):
        others = [other for other in range(1, cells.dim()) if other != axis]
        occupied = cells.any(dim=others) if others else cells  # [k length]
        coordinate = torch.arange(length, device="cpu")
        last = torch.where(occupied, coordinate, -1).amax(dim=1)
        first = torch.where(occupied, coordinate, length).amin(dim=1)
        sides.append(last - first + 1)
    return torch.stack(sides, dim=1)
