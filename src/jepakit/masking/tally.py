"""Counts over many batches of masks, from which an audit is made."""

from collections import Counter

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jepakit.masking.report import MaskAudit, Spread
from jepakit.tokens import Masks

__all__: list[str] = []


class Tally:
    """What has been counted so far; the first masks only say what the grid is."""

    def __init__(self, masks: Masks, min_context_tokens: int) -> None:
        self.grid_size = masks.context.grid_size
        self.min_context_tokens = min_context_tokens
        size = masks.context.num_positions
        self.context = torch.zeros(size, dtype=torch.int64, device="cpu")
        self.target = torch.zeros(size, dtype=torch.int64, device="cpu")
        self.counts: list[Tensor] = []
        self.leaks = self.targets = self.empty = self.duplicate = self.partial = 0
        self.block_sizes: Counter[tuple[int, ...]] = Counter()
        self.discarded: int | None = 0

    def add(self, masks: Masks, whole: Masks | None) -> None:
        """Count a batch; `whole` is the same draw with contexts that nothing was cut from."""
        if masks.context.grid_size != self.grid_size:
            raise ValueError(
                f"sampler returned masks on the grid {masks.context.grid_size}, before on "
                f"{self.grid_size}: must be on one grid"
            )
        context, targets = masks.context.to_mask().cpu(), masks.targets.to_mask().cpu()
        self.context += context.sum(dim=0)
        self.target += targets.sum(dim=(0, 1))
        self.counts.append(context.sum(dim=1))
        self.leaks += int((context & targets.any(dim=1)).any(dim=1).sum())
        counts = targets.sum(dim=2)
        self.targets += counts.numel()
        self.empty += int((counts == 0).sum())
        self.duplicate += int(_repeated(targets, counts).sum())
        filled = targets[counts > 0]
        boxes = _bounding_boxes(filled, self.grid_size)
        self.partial += int((boxes.prod(dim=1) != counts[counts > 0]).sum())
        sizes, numbers = torch.unique(boxes, dim=0, return_counts=True)
        for box, number in zip(sizes.tolist(), numbers.tolist(), strict=True):
            self.block_sizes[tuple(box)] += number
        self._add_discarded(context, whole)

    def _add_discarded(self, context: Bool[Tensor, "b N"], whole: Masks | None) -> None:
        before = None if whole is None else whole.context.to_mask().cpu()
        # What is not a subset was drawn in another way, so the two cannot be compared.
        if self.discarded is None or before is None or (context & ~before).any():
            self.discarded = None
        else:
            self.discarded += int(before.sum() - context.sum())

    def result(self, name: str, batches: int, batch_size: int, seconds: float) -> MaskAudit:
        """The counts as shares and means."""
        samples = batches * batch_size
        counts = torch.cat(self.counts)
        size, targets = self.context.numel(), max(1, self.targets)
        return MaskAudit(
            sampler=name,
            grid_size=self.grid_size,
            batches=batches,
            batch_size=batch_size,
            context_frequency=(self.context.double() / samples).float(),
            target_frequency=(self.target.double() / targets).float(),
            context_coverage=Spread(
                int(counts.min()) / size,
                int(counts.sum()) / (samples * size),
                int(counts.max()) / size,
            ),
            min_context_tokens=self.min_context_tokens,
            undersized_contexts=int((counts < self.min_context_tokens).sum()) / samples,
            leak_rate=self.leaks / samples,
            discarded=None if self.discarded is None else self.discarded / samples,
            empty_targets=self.empty / targets,
            duplicate_targets=self.duplicate / targets,
            partial_targets=self.partial / targets,
            block_sizes=dict(sorted(self.block_sizes.items(), key=lambda e: (-e[1], e[0]))),
            seconds_per_image=seconds,
        )


def _repeated(targets: Bool[Tensor, "b m N"], counts: Int[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
    """Which non-empty targets another target of the same sample equals."""
    members = targets.double()  # autocast would round large counts of float32
    common = members @ members.mT
    same = (common == counts[:, :, None]) & (common == counts[:, None])
    return (same.sum(dim=2) > 1) & (counts > 0)


def _bounding_boxes(sets: Bool[Tensor, "k N"], grid_size: tuple[int, ...]) -> Int[Tensor, "k axes"]:
    """Sides of the smallest box around each set; no set is empty."""
    fields = sets.view(-1, *grid_size)
    sides = []
    for axis, length in enumerate(grid_size, start=1):
        others = [other for other in range(1, fields.dim()) if other != axis]
        used = fields.any(dim=others) if others else fields
        at = torch.arange(length, device="cpu")
        last = torch.where(used, at, -1).amax(dim=1)
        first = torch.where(used, at, length).amin(dim=1)
        sides.append(last - first + 1)
    return torch.stack(sides, dim=1)
