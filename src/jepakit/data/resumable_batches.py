"""`ResumableBatches`: shuffled batches of a whole run, from any step on."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from jepakit._checks import as_int

__all__ = ["EpochIndex", "ResumableBatches"]

# Epoch e of seed s is shuffled with the seed s + e * stride. A large prime keeps the small seeds
# that users choose from reaching each other's epochs.
_EPOCH_STRIDE = 1_000_003


class EpochIndex(int):
    """A sample index that carries the number of its epoch.

    Datasets take it as a plain int; `MaskCollator` draws the masks of its epoch.

    Args:
        index: Position of the sample in the dataset.
        epoch: Number of the pass over the data, from 0.

    Example:
        >>> from jepakit.data import EpochIndex
        >>> index = EpochIndex(3, epoch=1)
        >>> "abcd"[index], index.epoch
        ('d', 1)
    """

    epoch: int

    def __new__(cls, index: int, epoch: int) -> "EpochIndex":
        """Build an int with an attribute, which is possible in `__new__` only."""
        self = super().__new__(cls, as_int("index", index, minimum=0))
        self.epoch = as_int("epoch", epoch, minimum=0)
        return self

    def __reduce__(self) -> tuple[type["EpochIndex"], tuple[int, int]]:
        # An int is pickled without its attributes, and a loader's workers get pickled copies.
        return EpochIndex, (int(self), self.epoch)


class ResumableBatches(Sampler[list[EpochIndex]]):
    """Shuffled batches of indices for a whole run, for `DataLoader(batch_sampler=...)`.

    The order of an epoch is a function of `seed` and the number of the epoch, so a run that is
    resumed at step `first_step` gets the batches that it would have got uninterrupted. The rest of
    an epoch after its last full batch is dropped; each epoch drops other images. Indices are
    `EpochIndex`, so that a `MaskCollator` draws new masks in every epoch.

    Args:
        size: Images in the dataset.
        batch_size: Images in a batch.
        steps: Batches of the whole run, those before `first_step` included.
        seed: Seed of the shuffling.
        first_step: Step to begin at: the number of steps that are done.

    Raises:
        ValueError: If `batch_size` is above `size`, or `first_step` above `steps`.

    Example:
        >>> from jepakit.data import ResumableBatches
        >>> whole = list(ResumableBatches(10, 4, steps=5, seed=0))
        >>> list(ResumableBatches(10, 4, steps=5, seed=0, first_step=3)) == whole[3:]
        True
    """

    def __init__(
        self, size: int, batch_size: int, *, steps: int, seed: int, first_step: int = 0
    ) -> None:
        self.size = as_int("size", size, minimum=1)
        self.batch_size = as_int("batch_size", batch_size, minimum=1)
        self.steps = as_int("steps", steps, minimum=0)
        self.seed = as_int("seed", seed, minimum=0)
        self.first_step = as_int("first_step", first_step, minimum=0)
        if self.batch_size > self.size:
            raise ValueError(f"batch_size={batch_size}: must be at most size={size}")
        if self.first_step > self.steps:
            raise ValueError(f"first_step={first_step}: must be at most steps={steps}")

    def __len__(self) -> int:
        """Number of batches from `first_step` on."""
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        batches_per_epoch = self.size // self.batch_size
        shuffled_epoch, order = -1, [0]
        for step in range(self.first_step, self.steps):
            epoch, batch = divmod(step, batches_per_epoch)
            if epoch != shuffled_epoch:
                generator = torch.Generator().manual_seed(self.seed + _EPOCH_STRIDE * epoch)
                order = torch.randperm(self.size, generator=generator, device="cpu").tolist()
                shuffled_epoch = epoch
            start = batch * self.batch_size
            yield [EpochIndex(index, epoch) for index in order[start : start + self.batch_size]]

    def __repr__(self) -> str:
        return (
            f"ResumableBatches({self.size}, {self.batch_size}, steps={self.steps}, "
            f"seed={self.seed}, first_step={self.first_step})"
        )
