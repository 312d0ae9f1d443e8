"""`ResumableBatches`: the batches of a whole run, from any step on."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from jepakit._checks import check_int

__all__ = ["EpochIndex", "ResumableBatches"]

_EPOCH_STRIDE = 1_000_003  # a prime: seeds that users choose do not meet each other's epochs


class EpochIndex(int):
    """The index of a sample that knows in which pass over the data it comes.

    A plain index for every dataset. `MaskCollator` draws the masks of that pass.

    Args:
        index: Position of the sample in the dataset.
        epoch: Number of the pass, from 0.

    Raises:
        TypeError: If one of them is not an int.
        ValueError: If one of them is below 0.

    Example:
        >>> from jepakit.data import EpochIndex
        >>> index = EpochIndex(3, epoch=1)
        >>> "abcd"[index], index.epoch
        ('d', 1)

    Source:
        jepakit's own.
    """

    epoch: int

    def __new__(cls, index: int, epoch: int) -> "EpochIndex":
        """An int with an attribute, which only `__new__` can give it."""
        check_int("index", index, minimum=0)
        check_int("epoch", epoch, minimum=0)
        self = super().__new__(cls, index)
        self.epoch = epoch
        return self

    def __reduce__(self) -> tuple[type["EpochIndex"], tuple[int, int]]:
        return EpochIndex, (int(self), self.epoch)  # a loader's workers get copies


class ResumableBatches(Sampler[list[EpochIndex]]):
    """Shuffled batches of a whole run, as indices, for `DataLoader(batch_sampler=...)`.

    Every pass over the data has an order of its own that follows from `seed` and the pass alone, so
    a run that goes on at step `first_step` sees what it would have seen uninterrupted. What is left
    of a pass after its last full batch is left out; another pass leaves out other images. Indices
    are of type `EpochIndex`, so that a `MaskCollator` draws new masks in every pass.

    Args:
        size: Images in the dataset.
        batch_size: Images in a batch.
        steps: Batches of the whole run, those before `first_step` included.
        seed: Of the orders.
        first_step: Where to begin, in steps: 0, or how many are done.

    Raises:
        TypeError: If an argument is not an int.
        ValueError: If `size` or `batch_size` is below 1, `steps`, `seed` or `first_step` below 0,
            `batch_size` is above `size`, or `first_step` above `steps`.

    Example:
        >>> from jepakit.data import ResumableBatches
        >>> whole = list(ResumableBatches(10, 4, steps=5, seed=0))
        >>> list(ResumableBatches(10, 4, steps=5, seed=0, first_step=3)) == whole[3:]
        True

    Source:
        jepakit's own.
    """

    def __init__(
        self, size: int, batch_size: int, *, steps: int, seed: int, first_step: int = 0
    ) -> None:
        check_int("size", size, minimum=1)
        check_int("batch_size", batch_size, minimum=1)
        check_int("steps", steps, minimum=0)
        check_int("seed", seed, minimum=0)
        check_int("first_step", first_step, minimum=0)
        if batch_size > size:
            raise ValueError(f"batch_size={batch_size}: must be at most size={size}")
        if first_step > steps:
            raise ValueError(f"first_step={first_step}: must be at most steps={steps}")
        self.size, self.batch_size, self.steps = size, batch_size, steps
        self.seed, self.first_step = seed, first_step

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        per_epoch = self.size // self.batch_size
        epoch, order = -1, [0]
        for step in range(self.first_step, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                generator = torch.Generator().manual_seed(self.seed + _EPOCH_STRIDE * epoch)
                order = torch.randperm(self.size, generator=generator, device="cpu").tolist()
            start = step % per_epoch * self.batch_size
            yield [EpochIndex(index, epoch) for index in order[start : start + self.batch_size]]

    def __repr__(self) -> str:
        return (
            f"ResumableBatches({self.size}, {self.batch_size}, steps={self.steps}, "
            f"seed={self.seed}, first_step={self.first_step})"
        )
