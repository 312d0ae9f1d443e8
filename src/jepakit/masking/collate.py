"""Masks in a `DataLoader`: drawn in the workers, the same however the loading is arranged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, default_collate

from jepakit._checks import check_images_finite, check_int, type_name
from jepakit.masking.base import MaskSampler, UniformSampler
from jepakit.masking._engine.random_numbers import derive_seed, keyed_uniforms

__all__ = ["Indexed", "IndexedDataset", "MaskCollator"]

M = TypeVar("M")  # `Masks`, or a list of them


@dataclass(frozen=True)
class Indexed:
    """A sample together with its index in the dataset, as `IndexedDataset` gives it.

    Args:
        index: Position of the sample in the dataset.
        sample: What the dataset holds there.
        epoch: Number of the pass over the data, where the index knew it (`EpochIndex`).

    Example:
        >>> from jepakit.masking import Indexed
        >>> Indexed(3, "image").index
        3

    Source:
        jepakit's own.
    """

    index: int
    sample: Any
    epoch: int | None = field(default=None, repr=False)


class IndexedDataset(Dataset[Indexed]):
    """A map-style dataset that hands on each sample's index, for `MaskCollator`.

    Wrap last, after `Subset` and the like: they number samples anew, and their indices know no pass
    (see `EpochIndex`).

    Args:
        dataset: Anything with `__len__` and `__getitem__`.

    Raises:
        TypeError: If `dataset` lacks one of the two.

    Example:
        >>> from jepakit.masking import IndexedDataset
        >>> IndexedDataset(["a", "b"])[1]
        Indexed(index=1, sample='b')

    Source:
        jepakit's own.
    """

    def __init__(self, dataset: Any) -> None:
        for method in ("__len__", "__getitem__"):
            if not hasattr(dataset, method):
                raise TypeError(
                    f"dataset={type(dataset).__name__}: must have {method}; iterable datasets have "
                    "no index to hand on"
                )
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Indexed:
        """The sample and its index."""
        return Indexed(int(index), self.dataset[index], getattr(index, "epoch", None))


class MaskCollator(Generic[M]):
    r"""Collate a batch and draw its masks, by (seed, epoch, sample index).

    Where a sampler's `per_sample` is True, the masks of sample $i$ depend on
    $(\mathrm{seed}, \mathrm{epoch}, i)$ alone: the same for any number of workers or ranks, any
    batch size, and after a resume. So it is wherever samples share neither a size nor a length:
    without `target_size_per="batch"` and `context_length="trim"`, where a sampler has these arguments;
    always for `RandomMask`, `BlockMask` and `InverseBlockMask`; for samplers made of others if it
    is so for all of them; never for `ReferenceMultiBlockMask`. Otherwise, and for any other
    callable, a batch's masks depend on $(\mathrm{seed}, \mathrm{epoch}, i_1, \dots, i_b)$, the
    indices of the batch in order.

    The epoch is that of the indices, where these know it, as those of `ResumableBatches` do. Else
    call `set_epoch` before each epoch, as with `DistributedSampler`: it lies in shared memory, so
    it reaches persistent workers. Without either, every epoch repeats the masks of epoch 0.

    Args:
        sampler: What draws masks.
        seed: Any int; runs that should differ need different ones.
        collate_fn: What collates the samples themselves.

    Raises:
        TypeError: If a sample does not come from `IndexedDataset`, or the loader's `batch_size` is
            None.
        ValueError: If the batch is empty or a floating tensor in it holds NaN or infinity; if
            indices say another epoch than `set_epoch`, or several epochs in one batch.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from jepakit import IndexedDataset, MaskCollator, MultiBlockMask
        >>> dataset = IndexedDataset(TensorDataset(torch.zeros(8, 3, 64, 64), torch.arange(8)))
        >>> collate = MaskCollator(MultiBlockMask((16, 16), target_size_per="sample"), seed=1)
        >>> loader = DataLoader(dataset, batch_size=4, collate_fn=collate)
        >>> for epoch in range(2):
        ...     collate.set_epoch(epoch)
        ...     for (images, labels), masks in loader:
        ...         pass
        >>> images.shape, masks.targets.shape[:2]
        (torch.Size([4, 3, 64, 64]), torch.Size([4, 4]))

    Source:
        jepakit's own. I-JEPA's published collator seeds block sizes by a counter shared between
        workers, in the order in which they happen to come, and places from the global generator.
    """

    def __init__(
        self,
        sampler: MaskSampler[M],
        *,
        seed: int = 0,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        if not callable(sampler):
            raise TypeError(f"sampler={sampler!r}: must be callable as sampler(batch_size)")
        check_int("seed", seed, minimum=-(2**63))
        if seed >= 2**63:
            raise ValueError(f"seed={seed}: must fit 64 bits, so be below 2**63")
        self.sampler = sampler
        self.seed = seed
        self.collate_fn = collate_fn
        epoch = torch.zeros((), dtype=torch.int64, device="cpu")
        self._epoch = epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch that masks are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw the masks of another epoch from the next iteration of the loader on.

        Args:
            epoch: Number of the epoch, from 0.
        """
        check_int("epoch", epoch, minimum=0)
        self._epoch.fill_(epoch)

    def __call__(self, samples: Sequence[Indexed]) -> tuple[Any, M]:
        """The collated samples and their masks.

        Args:
            samples: Of an `IndexedDataset`.
        """
        if not isinstance(samples, Sequence):
            raise TypeError(
                f"samples: must be a list of samples, got a single {type_name(samples)}; give the "
                "DataLoader a batch_size, since batch_size=None collates one sample at a time"
            )
        if len(samples) == 0:
            raise ValueError("samples=[]: the batch must not be empty")
        for sample in samples:
            if not isinstance(sample, Indexed):
                raise TypeError(
                    f"samples: must come from IndexedDataset, got {type(sample).__name__}; wrap "
                    "the dataset: DataLoader(IndexedDataset(dataset), collate_fn=MaskCollator(...))"
                )
        batch = self.collate_fn([sample.sample for sample in samples])
        for leaf in pytree.tree_leaves(batch):
            if isinstance(leaf, Tensor):
                check_images_finite("samples", leaf)
        return batch, self._draw(samples)

    def _draw(self, samples: Sequence[Indexed]) -> M:
        sampler, seed, epoch = self.sampler, self.seed, self._epoch_of(samples)
        indices = [sample.index for sample in samples]
        if isinstance(sampler, UniformSampler) and sampler.per_sample:
            keys = [derive_seed(seed, epoch, index) for index in indices]
            masks: M = sampler.from_uniforms(keyed_uniforms(keys, sampler.num_uniforms))
            return masks
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch, *indices))
        return sampler(len(indices), generator=generator)

    def _epoch_of(self, samples: Sequence[Indexed]) -> int:
        told = {sample.epoch for sample in samples}
        if told == {None}:
            return self.epoch
        if len(told) > 1:
            raise ValueError(f"samples: must be of one epoch, got some of {told}")
        (epoch,) = told
        if self.epoch not in (0, epoch):
            raise ValueError(
                f"set_epoch({self.epoch}): has no effect, the indices say that they are of epoch "
                f"{epoch}; with ResumableBatches leave it out"
            )
        return cast(int, epoch)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A pickled copy would else hold an epoch that its own workers cannot see change.
        self._epoch.share_memory_()

    def __repr__(self) -> str:
        collate = "" if self.collate_fn is default_collate else f", collate_fn={self.collate_fn!r}"
        return f"MaskCollator({self.sampler!r}, seed={self.seed}{collate})"
