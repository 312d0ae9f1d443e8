"""`ResumableBatches`: shuffled batches of a whole run or of one pass, from any step on."""

import warnings
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch.utils.data import BatchSampler

from jepakit._checks import as_bool, as_int

__all__ = ["EpochIndex", "ResumableBatches"]

# Epoch e of seed s is shuffled with the seed s + e * stride. A large prime keeps the small seeds
# that users choose from reaching each other's epochs.
_EPOCH_STRIDE = 1_000_003


class EpochIndex(int):
    """A sample index that carries the number of its epoch and of its step.

    Datasets take it as a plain int; `MaskCollator` draws the masks of its epoch and step.

    Args:
        index: Position of the sample in the dataset.
        epoch: Number of the pass over the data, from 0.
        step: Number of the batch in the whole run, from 0, the same on every rank; None if unknown.

    Example:
        >>> from jepakit.data import EpochIndex
        >>> index = EpochIndex(3, epoch=1, step=7)
        >>> "abcd"[index], index.epoch, index.step
        ('d', 1, 7)
    """

    epoch: int
    step: int | None

    def __new__(cls, index: int, epoch: int, step: int | None = None) -> "EpochIndex":
        """Build an int with attributes, which is possible in `__new__` only."""
        self = super().__new__(cls, as_int("index", index, minimum=0))
        self.epoch = as_int("epoch", epoch, minimum=0)
        self.step = None if step is None else as_int("step", step, minimum=0)
        return self

    def __reduce__(self) -> tuple[type["EpochIndex"], tuple[int, int, int | None]]:
        # An int is pickled without its attributes, and a loader's workers get pickled copies.
        return EpochIndex, (int(self), self.epoch, self.step)


class ResumableBatches(BatchSampler):
    r"""Shuffled batches of indices, the same for any number of ranks, from any step on.

    For `DataLoader(batch_sampler=...)`. The order of an epoch, a pass over the data, is a function
    of `seed` and its number. Every step takes the next `batch_size * world_size` indices of it, and
    each rank a part of them, so that $N$ ranks see in each step what one rank sees with the
    $N$-fold `batch_size`, and no two ranks the same image. A run that is resumed at a step gets the
    batches that it would have got uninterrupted, also on another number of ranks.

    Indices are `EpochIndex`: they carry their epoch and step, so that a `MaskCollator` draws new
    masks in every epoch, and the same ones on any number of ranks.

    Args:
        size: Images in the dataset.
        batch_size: Images in a batch of one rank.
        steps: Batches of the whole run, those before `first_step` included. One iteration then goes
            through all epochs, and `set_epoch` has no effect. With None, an iteration is one epoch,
            whose number `set_epoch` sets.
        seed: Seed of the shuffling.
        rank: Number of this process, from 0.
        world_size: Number of processes that share the data.
        drop_last: Leave out the rest of an epoch after its last full batch; each epoch leaves out
            other images. With False it is a smaller batch, divided over the ranks as evenly as
            possible.
        first_step: Step to begin at: the number of steps that are done. With `steps=None`, the
            first iteration begins within its epoch.

    Raises:
        ValueError: If `batch_size * world_size` is above `size`; if `first_step` is above `steps`;
            if the smaller last batch has fewer images than there are ranks.

    Warns:
        UserWarning: If an epoch or run that was iterated over begins again without `set_epoch`,
            since batches and masks repeat; if `world_size` is 1 in a process group of several
            ranks, which then all get the same batches.

    Example:
        >>> from jepakit.data import ResumableBatches
        >>> whole = list(ResumableBatches(10, 4, steps=5, seed=0))
        >>> list(ResumableBatches(10, 4, steps=5, seed=0, first_step=3)) == whole[3:]
        True

        Two ranks share each batch:

        >>> ranks = [ResumableBatches(10, 2, steps=5, seed=0, rank=r, world_size=2) for r in (0, 1)]
        >>> [mine + other for mine, other in zip(*ranks)] == whole
        True

        One epoch in each iteration:

        >>> batches = ResumableBatches(10, 4, seed=0)
        >>> for epoch in range(2):
        ...     batches.set_epoch(epoch)
        ...     for indices in batches:
        ...         pass
        >>> indices[0].epoch, indices[0].step
        (1, 3)
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        steps: int | None = None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        first_step: int = 0,
    ) -> None:
        # Without the constructor of `BatchSampler`, which asks for a sampler of single indices.
        # Nor is there an attribute `sampler`: Lightning and Fabric call `sampler.set_epoch`, Fabric
        # with the passes since the process began, which after a restart is not the epoch.
        self.size = as_int("size", size, minimum=1)
        self.batch_size = as_int("batch_size", batch_size, minimum=1)
        self.steps = None if steps is None else as_int("steps", steps, minimum=0)
        self.seed = as_int("seed", seed, minimum=0)
        self.world_size = as_int("world_size", world_size, minimum=1)
        self.rank = as_int("rank", rank, minimum=0, maximum=self.world_size - 1)
        self.drop_last = as_bool("drop_last", drop_last)
        self.first_step = as_int("first_step", first_step, minimum=0)
        if self.drop_last and self._global_batch_size > self.size:
            ranks = "" if self.world_size == 1 else f" on {self.world_size} ranks"
            raise ValueError(
                f"batch_size={batch_size}{ranks}: must be at most size={size} in all, or drop_last "
                "must be False"
            )
        rest = self.size % self._global_batch_size
        if not self.drop_last and 0 < rest < self.world_size:
            raise ValueError(
                f"drop_last=False: the last batch of an epoch has {rest} image(s), must have at "
                f"least 1 for each of world_size={self.world_size} ranks; change batch_size, or "
                "drop_last to True"
            )
        if self.steps is not None and self.first_step > self.steps:
            raise ValueError(f"first_step={first_step}: must be at most steps={steps}")
        self._begin_next_at(self.first_step)

    @property
    def _global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    @property
    def _steps_per_epoch(self) -> int:
        full, rest = divmod(self.size, self._global_batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    def _begin_next_at(self, step: int) -> None:
        self._next_step = step  # where the next iteration begins
        self._num_done = step  # batches of the run that were yielded, for `state_dict`
        self._passes_begun = 0  # from there; one that was finished counts twice

    def set_epoch(self, epoch: int) -> None:
        """Set the `epoch`, from 0, of the next iteration; it has no effect if `steps` is given.

        The epoch in which a resumed run continues is continued, others begin at their start.
        """
        epoch = as_int("epoch", epoch, minimum=0)
        if self.steps is None:
            resumed = self._next_step // self._steps_per_epoch == epoch
            self._begin_next_at(self._next_step if resumed else epoch * self._steps_per_epoch)

    def state_dict(self) -> dict[str, int]:
        """The number of batches that were yielded, and what the order of batches depends on.

        Where the workers of a `DataLoader` fetch in advance, it is ahead of the training;
        torchdata's `StatefulDataLoader` takes that into account. All ranks have the same state.
        """
        return {"step": self._num_done} | self._order

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Begin the next iteration after the batches of `state_dict`, on any number of ranks.

        Raises:
            ValueError: If size, seed, `drop_last` or the batch size of all ranks together differ.
        """
        for name, value in self._order.items():
            if (found := state_dict.get(name)) != value:
                raise ValueError(
                    f"state_dict: {name} is {found}, must be {value}, since the order of batches "
                    "depends on it"
                )
        self._begin_next_at(as_int("step", state_dict.get("step"), minimum=0, maximum=self.steps))

    @property
    def _order(self) -> dict[str, int]:
        return {
            "size": self.size,
            "seed": self.seed,
            "drop_last": self.drop_last,
            "global_batch_size": self._global_batch_size,
        }

    def __len__(self) -> int:
        """Number of batches from `first_step` on; those of an epoch if `steps` is None."""
        return self._steps_per_epoch if self.steps is None else self.steps - self.first_step

    def __iter__(self) -> Iterator[list[EpochIndex]]:  # type: ignore[override]
        self._warn_if_repeated()
        first, per_epoch = self._next_step, self._steps_per_epoch
        begin_of_epoch = first - first % per_epoch
        end = begin_of_epoch + per_epoch if self.steps is None else self.steps
        self._passes_begun += 1
        shuffled_epoch, order = -1, [0]
        for step in range(first, end):
            epoch, batch = divmod(step, per_epoch)
            if epoch != shuffled_epoch:
                generator = torch.Generator().manual_seed(self.seed + _EPOCH_STRIDE * epoch)
                order = torch.randperm(self.size, generator=generator, device="cpu").tolist()
                shuffled_epoch = epoch
            self._num_done = step + 1
            # A loop that knows the length never asks for more than the last batch. Until then a
            # resumed pass keeps its place: a look at the first batch is no pass.
            if step + 1 == end:
                self._passes_begun += 1
                if self.steps is None:
                    self._next_step = begin_of_epoch
            yield [EpochIndex(index, epoch, step) for index in self._share(order, batch)]

    def _share(self, order: list[int], batch: int) -> list[int]:
        """The part of one batch that this rank takes: the first parts are the larger ones."""
        start = batch * self._global_batch_size
        stop = min(start + self._global_batch_size, self.size)
        each, larger = divmod(stop - start, self.world_size)
        begin = start + self.rank * each + min(self.rank, larger)
        return order[begin : begin + each + (self.rank < larger)]

    def _warn_if_repeated(self) -> None:
        if self._passes_begun > 1:
            if self.steps is None:
                repeated = f"epoch {self._next_step // self._steps_per_epoch}"
                remedy = "call set_epoch(epoch) before each iteration"
            else:
                repeated = f"the run of {self.steps} steps"
                remedy = "raise steps to those of all epochs"
            warnings.warn(
                f"ResumableBatches: {repeated} begins again, so batches and masks repeat; {remedy}",
                stacklevel=3,
            )
        num_ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if self.world_size == 1 < num_ranks:
            warnings.warn(
                f"ResumableBatches: world_size=1 in a process group of {num_ranks} ranks, which "
                "get the same batches; pass rank and world_size",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        return (
            f"ResumableBatches({self.size}, {self.batch_size}, steps={self.steps}, "
            f"seed={self.seed}, rank={self.rank}, world_size={self.world_size}, "
            f"drop_last={self.drop_last}, first_step={self.first_step})"
        )
