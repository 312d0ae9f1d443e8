"""Masks in a `DataLoader`: drawn in its workers, reproducible for any number of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, default_collate

from jepakit._checks import as_int, check_images_finite, type_name
from jepakit.masking._engine.random_numbers import derive_seed, keyed_uniforms
from jepakit.masking.base import InfeasibleMaskError, MaskSampler, UniformSampler

__all__ = ["Indexed", "IndexedDataset", "MaskCollator"]

M = TypeVar("M")  # `Masks`, or a list of them


@dataclass(frozen=True)
class Indexed:
    """A sample and its index in the dataset; `IndexedDataset` returns it.

    Args:
        index: Position of the sample in the dataset.
        sample: The sample, such as `(image, label)`.
        epoch: Number of the pass over the data, if the index carries it (`EpochIndex`).

    Example:
        >>> from jepakit.masking import Indexed
        >>> Indexed(3, "image").index
        3
    """

    index: int
    sample: Any
    epoch: int | None = field(default=None, repr=False)


class IndexedDataset(Dataset[Indexed]):
    """A map-style dataset that returns each sample with its index, for `MaskCollator`.

    Wrap last, after `Subset` and the like: they renumber samples, and pass on indices without an
    epoch (see `EpochIndex`).

    Args:
        dataset: Anything with `__len__` and `__getitem__`.

    Raises:
        TypeError: If `dataset` lacks one of the two, as iterable datasets do.

    Example:
        >>> from jepakit.masking import IndexedDataset
        >>> IndexedDataset(["a", "b"])[1]
        Indexed(index=1, sample='b')
    """

    def __init__(self, dataset: Any) -> None:
        for method in ("__len__", "__getitem__"):
            if not hasattr(dataset, method):
                raise TypeError(
                    f"dataset={type(dataset).__name__}: must have {method}; samples of iterable "
                    "datasets have no index"
                )
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Indexed:
        """The sample and its index."""
        return Indexed(int(index), self.dataset[index], getattr(index, "epoch", None))


class MaskCollator(Generic[M]):
    r"""Collate a batch and draw its masks from the seed, the epoch and the sample indices.

    If the sampler's `per_sample` is True, the masks of sample $i$ are a function of
    $(\mathrm{seed}, \mathrm{epoch}, i)$: the same for any number of workers or ranks, any batch
    size, and after a resume. Otherwise, and for callables that are not jepakit's, the masks of a
    batch are a function of $(\mathrm{seed}, \mathrm{epoch}, i_1, \dots, i_b)$, the indices of the
    batch in order.

    `per_sample` is False where the samples of a batch share a size (`target_size_per="batch"`) or a
    length (`context_length="trim"`), for samplers that wrap such a sampler, and for
    `ReferenceMultiBlockMask`.

    The epoch is read from the indices if they carry it, as those of `ResumableBatches` do. If not,
    call `set_epoch` before each epoch, as with `DistributedSampler`; the epoch is kept in shared
    memory, so that it reaches persistent workers. Without either, every epoch repeats the masks of
    epoch 0.

    Args:
        sampler: A mask sampler.
        seed: Any 64-bit int; use different ones for runs that should differ.
        collate_fn: Collates the samples themselves; pads them to one size where they differ.
        valid: Where a sample holds data: the name of a field (a key of a mapping, an attribute
            otherwise), or a function of the sample. It gives a bool mask with one entry for each
            position of the sampler's grid, which the sampler gets as `valid`.

    Raises:
        TypeError: If a sample does not come from `IndexedDataset`, or has no field `valid`.
        ValueError: If a floating tensor of the batch holds NaN or infinity; if indices are of
            several epochs, or of another epoch than that of `set_epoch`.
        InfeasibleMaskError: If a sample holds too few `valid` positions for its masks.

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

        Spectrograms of different lengths, padded to 32 columns, on a grid of 4 x 8 patches:

        >>> lengths = [8, 3]
        >>> samples = [{"x": torch.zeros(1, 16, 32), "columns": n} for n in lengths]
        >>> def has_data(sample):
        ...     return (torch.arange(8) < sample["columns"]).expand(4, 8)
        >>> collate = MaskCollator(MultiBlockMask((4, 8)), valid=has_data)
        >>> loader = DataLoader(IndexedDataset(samples), batch_size=2, collate_fn=collate)
        >>> batch, masks = next(iter(loader))
        >>> masks.context.counts()  # a quarter of 32 and of 12
        tensor([8, 3])

    Source:
        The published code of I-JEPA (arXiv:2301.08243) collates in the workers too. Difference:
        it seeds block sizes from a counter that the workers share, in the order in which they
        happen to run, and draws places from the global generator.
    """

    def __init__(
        self,
        sampler: MaskSampler[M],
        *,
        seed: int = 0,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        valid: str | Callable[[Any], Tensor] | None = None,
    ) -> None:
        if not callable(sampler) or isinstance(sampler, type):
            raise TypeError(f"sampler={sampler!r}: must be callable as sampler(batch_size)")
        if not callable(collate_fn):
            raise TypeError(f"collate_fn={collate_fn!r}: must be callable as collate_fn(samples)")
        if not (valid is None or isinstance(valid, str) or callable(valid)):
            raise TypeError(f"valid={valid!r}: must be the name of a field or valid(sample)")
        self.sampler = sampler
        self.valid = valid
        self.seed = as_int("seed", seed, minimum=-(2**63), maximum=2**63 - 1)
        self.collate_fn = collate_fn
        epoch = torch.zeros((), dtype=torch.int64, device="cpu")
        self._epoch = epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """Epoch that masks are drawn for, unless the indices carry one."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the `epoch`, counted from 0, from the next iteration of the loader on."""
        self._epoch.fill_(as_int("epoch", epoch, minimum=0, maximum=2**63 - 1))

    def __call__(self, samples: Sequence[Indexed]) -> tuple[Any, M]:
        """Collate `samples` of an `IndexedDataset` and draw their masks."""
        if not isinstance(samples, Sequence):
            raise TypeError(
                f"samples: must be a list of samples, got a single {type_name(samples)}; give the "
                "DataLoader a batch_size"
            )
        if len(samples) == 0:
            raise ValueError("samples=[]: the batch must not be empty")
        for sample in samples:
            if not isinstance(sample, Indexed):
                raise TypeError(
                    f"samples: must come from IndexedDataset, got {type(sample).__name__}; wrap "
                    "the dataset: DataLoader(IndexedDataset(dataset), collate_fn=MaskCollator(...))"
                )
        # A sampler of the user's own need not take `valid`.
        options: dict[str, Any] = {}
        if self.valid is not None:
            options["valid"] = self._stack_valid(samples)
        batch = self.collate_fn([sample.sample for sample in samples])
        for leaf in pytree.tree_leaves(batch):
            if isinstance(leaf, Tensor):
                check_images_finite("samples", leaf)
        try:
            return batch, self._draw(samples, options)
        except InfeasibleMaskError as error:
            indices = [sample.index for sample in samples]
            raise InfeasibleMaskError(f"{error}; the batch has the samples {indices}") from error

    def _draw(self, samples: Sequence[Indexed], options: dict[str, Any]) -> M:
        seed, epoch = self.seed, self._epoch_of(samples)
        indices = [sample.index for sample in samples]
        if isinstance(self.sampler, UniformSampler) and self.sampler.per_sample:
            keys = [derive_seed(seed, epoch, index) for index in indices]
            uniforms = keyed_uniforms(keys, self.sampler.num_uniforms)
            masks: M = self.sampler.from_uniforms(uniforms, **options)
            return masks
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch, *indices))
        return self.sampler(len(indices), generator=generator, **options)

    def _stack_valid(self, samples: Sequence[Indexed]) -> Bool[Tensor, "b N"]:
        """The masks of all samples, flat over the grid."""
        masks = [self._valid_of(sample).flatten() for sample in samples]
        for sample, mask in zip(samples, masks, strict=True):
            if mask.dtype != torch.bool or len(mask) != len(masks[0]):
                raise ValueError(
                    f"valid of sample {sample.index}: must be bool, with one entry for each "
                    f"position of the grid, got {len(mask)} of {mask.dtype}"
                )
        return torch.stack(masks)

    def _valid_of(self, sample: Indexed) -> Tensor:
        mask = self._field_of(sample)
        try:
            return torch.as_tensor(mask, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"valid of sample {sample.index}: must be a bool mask, got {type_name(mask)}"
            ) from error

    def _field_of(self, sample: Indexed) -> Any:
        if callable(self.valid):
            return self.valid(sample.sample)
        name = str(self.valid)
        is_mapping = isinstance(sample.sample, Mapping)
        if name not in sample.sample if is_mapping else not hasattr(sample.sample, name):
            raise TypeError(
                f"valid={name!r}: must name a field of every sample; sample {sample.index} is "
                f"{type_name(sample.sample)} without it"
            )
        return sample.sample[name] if is_mapping else getattr(sample.sample, name)

    def _epoch_of(self, samples: Sequence[Indexed]) -> int:
        epoch, *others = {sample.epoch for sample in samples}
        if others:
            raise ValueError(f"samples: must be of one epoch, got some of {[epoch, *others]}")
        if epoch is None:
            return self.epoch
        if self.epoch not in (0, epoch):
            raise ValueError(
                f"set_epoch({self.epoch}): has no effect, since the indices are of epoch {epoch}; "
                "do not call set_epoch with ResumableBatches"
            )
        return epoch

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Unpickled memory is not shared: without this, `set_epoch` on a copy would not reach the
        # copy's workers.
        self._epoch.share_memory_()

    def __repr__(self) -> str:
        collate = "" if self.collate_fn is default_collate else f", collate_fn={self.collate_fn!r}"
        valid = "" if self.valid is None else f", valid={self.valid!r}"
        return f"MaskCollator({self.sampler!r}, seed={self.seed}{collate}{valid})"
