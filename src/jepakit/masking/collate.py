"""Masks in a `DataLoader`: drawn in its workers, reproducible for any number of them."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from numbers import Integral
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

_NUM_REMEMBERED = 64  # samples of the first batch of an epoch


@dataclass(frozen=True)
class Indexed:
    """A sample and its index in the dataset; `IndexedDataset` returns it.

    Args:
        index: Position of the sample in the dataset, or its key in a stream.
        sample: The sample, such as `(image, label)`.
        epoch: Number of the pass over the data, if the index carries it (`EpochIndex`).
        step: Number of the batch in the run, if the index carries it.

    Example:
        >>> from jepakit.masking import Indexed
        >>> Indexed(3, "image").index
        3
    """

    index: int | str | bytes
    sample: Any
    epoch: int | None = field(default=None, repr=False)
    step: int | None = field(default=None, repr=False)


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
                    "datasets have no index, give MaskCollator a key instead"
                )
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Indexed:
        """The sample and its index."""
        epoch, step = getattr(index, "epoch", None), getattr(index, "step", None)
        return Indexed(int(index), self.dataset[index], epoch, step)


class MaskCollator(Generic[M]):
    r"""Collate a batch and draw its masks from the seed, the epoch, the step and the samples.

    The masks of sample $i$ are a function of $(\mathrm{seed}, \mathrm{epoch}, i)$. Sizes that the
    samples of a batch share (`target_size_per="batch"`) are one of
    $(\mathrm{seed}, \mathrm{step})$. Indices of `ResumableBatches` carry epoch and step. With them
    masks are the same for any number of workers or ranks, and after a resume. Exempt are
    `context_length="trim"` and `ReferenceMultiBlockMask`, where a context is cut to the shortest of
    its batch, and callables that are not jepakit's, whose masks are a function of
    $(\mathrm{seed}, \mathrm{epoch}, i_1, \dots, i_b)$, the indices of the batch in order.

    With other batches call `set_epoch` before each epoch, as with `DistributedSampler`; the epoch
    is kept in shared memory, so that it reaches the workers. Sizes that a batch shares then follow
    from the indices of the batch in order. Without `set_epoch` every epoch would repeat the masks
    of epoch 0, which is noticed and warned of.

    Samples of streams have no index. With `key` their masks are a function of
    $(\mathrm{seed}, \mathrm{epoch}, \mathrm{key})$, in whatever order and batches they come.

    Args:
        sampler: A mask sampler.
        seed: Any 64-bit int; use different ones for runs that should differ.
        collate_fn: Collates the samples themselves; pads them to one size where they differ.
        valid: Where a sample holds data: the name of a field (a key of a mapping, an attribute
            otherwise), or a function of the sample. It gives a bool mask with one entry for each
            position of the sampler's grid, which the sampler gets as `valid`.
        key: What identifies a sample in every pass, such as its file name: the name of a field, or
            a function of the sample that returns a str, bytes or int. For datasets without indices;
            needs a sampler that is `per_sample`.

    Raises:
        TypeError: If a sample does not come from `IndexedDataset` and there is no `key`, or if it
            has no field `valid` or `key`.
        ValueError: If a floating tensor of the batch holds NaN or infinity; if indices are of
            several epochs or steps, or of another epoch than that of `set_epoch`; if `key` is given
            and samples of a batch share a size or length.
        InfeasibleMaskError: If a sample holds too few `valid` positions for its masks.

    Warns:
        UserWarning: If samples come again at an unchanged epoch; once, from the process that drew
            them (of workers that notice it at the same moment, from each). `ResumableBatches` warns
            of it itself.

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

        A stream, whose samples have names:

        >>> stream = [{"__key__": name, "x": torch.zeros(1, 64, 64)} for name in "abcd"]
        >>> sampler = MultiBlockMask((16, 16), target_size_per="sample")
        >>> collate = MaskCollator(sampler, key="__key__")
        >>> batch, masks = collate(stream)

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
        key: str | Callable[[Any], str | bytes | int] | None = None,
    ) -> None:
        if not callable(sampler) or isinstance(sampler, type):
            raise TypeError(f"sampler={sampler!r}: must be callable as sampler(batch_size)")
        if not callable(collate_fn):
            raise TypeError(f"collate_fn={collate_fn!r}: must be callable as collate_fn(samples)")
        if not (valid is None or isinstance(valid, str) or callable(valid)):
            raise TypeError(f"valid={valid!r}: must be the name of a field or valid(sample)")
        if not (key is None or isinstance(key, str) or callable(key)):
            raise TypeError(f"key={key!r}: must be the name of a field or key(sample)")
        per_sample = isinstance(sampler, UniformSampler) and sampler.per_sample
        if key is not None and not per_sample:
            raise ValueError(
                f"key={key!r}: needs a sampler that draws each sample's masks for itself, as with "
                f"target_size_per='sample' and no context_length='trim'; got {sampler!r}"
            )
        self.sampler = sampler
        self.valid = valid
        self.key = key
        self.seed = as_int("seed", seed, minimum=-(2**63), maximum=2**63 - 1)
        self.collate_fn = collate_fn
        # In shared memory, which workers read and write too, also those that are started for one
        # pass alone: the epoch; the epoch and samples of the first batch that was drawn for it;
        # whether a repetition was warned of.
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu")
        self._first_batch = torch.full((1 + _NUM_REMEMBERED,), -1, dtype=torch.int64, device="cpu")
        self._warned = torch.zeros((), dtype=torch.bool, device="cpu")
        self._share_memory()

    def _share_memory(self) -> None:
        for tensor in (self._epoch, self._first_batch, self._warned):
            tensor.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """Epoch that masks are drawn for, unless the indices carry one."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the `epoch`, counted from 0, from the next iteration of the loader on."""
        self._epoch.fill_(as_int("epoch", epoch, minimum=0, maximum=2**63 - 1))
        self._first_batch.fill_(-1)  # the same epoch may be wanted again

    def __call__(self, samples: Sequence[Any]) -> tuple[Any, M]:
        """Collate `samples`, of an `IndexedDataset` or with a `key`, and draw their masks."""
        if not isinstance(samples, Sequence):
            raise TypeError(
                f"samples: must be a list of samples, got a single {type_name(samples)}; give the "
                "DataLoader a batch_size"
            )
        if len(samples) == 0:
            raise ValueError("samples=[]: the batch must not be empty")
        samples = [self._indexed(sample) for sample in samples]
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

    def _indexed(self, sample: Any) -> Indexed:
        if self.key is None:
            if isinstance(sample, Indexed):
                return sample
            raise TypeError(
                f"samples: must come from IndexedDataset, got {type(sample).__name__}; wrap the "
                "dataset: DataLoader(IndexedDataset(dataset), collate_fn=MaskCollator(...)), or "
                "give MaskCollator a key"
            )
        inner = sample.sample if isinstance(sample, Indexed) else sample
        key = _field_of(inner, "key", self.key, "one")
        if isinstance(key, bool) or not isinstance(key, str | bytes | Integral):
            raise TypeError(f"key: must be a str, bytes or int, got {type_name(key)}")
        key = key if isinstance(key, str | bytes) else int(key)
        return replace(sample, index=key) if isinstance(sample, Indexed) else Indexed(key, sample)

    def _draw(self, samples: Sequence[Indexed], options: dict[str, Any]) -> M:
        seed, epoch, step = self.seed, self._epoch_of(samples), _common("step", samples)
        numbers = [_number_of(sample.index) for sample in samples]
        if step is None:
            self._warn_if_repeated(samples, numbers, epoch)
        of_batch = derive_seed(seed, epoch, *numbers)
        if not isinstance(self.sampler, UniformSampler):
            generator = torch.Generator().manual_seed(of_batch)
            return self.sampler(len(numbers), generator=generator, **options)
        keys = [derive_seed(seed, epoch, number) for number in numbers]
        uniforms = keyed_uniforms(keys, self.sampler.num_uniforms)
        if shared := self.sampler._shared_columns:
            of_batch = of_batch if step is None else derive_seed(seed, step)
            uniforms[:, shared] = keyed_uniforms([of_batch], self.sampler.num_uniforms)[:, shared]
        masks: M = self.sampler.from_uniforms(uniforms, **options)
        return masks

    def _warn_if_repeated(self, samples: Sequence[Indexed], numbers: list[int], epoch: int) -> None:
        """Warn if samples of the first batch of the epoch come again.

        Workers of one pass may take each other for the first; any of their batches will do.
        """
        if self._warned:
            return
        first_epoch, *first_numbers = self._first_batch.tolist()
        if first_epoch != epoch:
            remembered = [epoch, *islice(cycle(numbers), _NUM_REMEMBERED)]
            self._first_batch.copy_(torch.tensor(remembered, device="cpu"))
            return
        repeated = set(first_numbers).intersection(numbers)
        if repeated:
            self._warned.fill_(True)
            sample = samples[numbers.index(repeated.pop())].index
            warnings.warn(
                f"MaskCollator: sample {sample!r} was drawn twice at epoch {epoch}, with the same "
                "masks; call set_epoch(epoch) before each pass over the data, or use "
                "ResumableBatches, whose indices carry the epoch",
                stacklevel=2,
            )

    def _stack_valid(self, samples: Sequence[Indexed]) -> Bool[Tensor, "b N"]:
        """The masks of all samples, flat over the grid."""
        masks = [self._valid_of(sample).flatten() for sample in samples]
        for sample, mask in zip(samples, masks, strict=True):
            if mask.dtype != torch.bool or len(mask) != len(masks[0]):
                raise ValueError(
                    f"valid of sample {sample.index!r}: must be bool, with one entry for each "
                    f"position of the grid, got {len(mask)} of {mask.dtype}"
                )
        return torch.stack(masks)

    def _valid_of(self, sample: Indexed) -> Tensor:
        mask = _field_of(sample.sample, "valid", self.valid, f"sample {sample.index!r}")
        try:
            return torch.as_tensor(mask, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"valid of sample {sample.index!r}: must be a bool mask, got {type_name(mask)}"
            ) from error

    def _epoch_of(self, samples: Sequence[Indexed]) -> int:
        epoch = _common("epoch", samples)
        if epoch is None:
            return self.epoch
        if self.epoch not in (0, epoch):
            raise ValueError(
                f"set_epoch({self.epoch}): has no effect, since the indices are of epoch {epoch}; "
                "call set_epoch of ResumableBatches, not of MaskCollator"
            )
        return epoch

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Unpickled memory is not shared: without this, `set_epoch` on a copy would not reach the
        # copy's workers.
        self._share_memory()

    def __repr__(self) -> str:
        collate = "" if self.collate_fn is default_collate else f", collate_fn={self.collate_fn!r}"
        valid = "" if self.valid is None else f", valid={self.valid!r}"
        key = "" if self.key is None else f", key={self.key!r}"
        return f"MaskCollator({self.sampler!r}, seed={self.seed}{collate}{valid}{key})"


def _field_of(sample: Any, argument: str, field: Any, which: str) -> Any:
    """Return what `field`, the name of one or a function, gives of a sample."""
    if callable(field):
        return field(sample)
    is_mapping = isinstance(sample, Mapping)
    if field not in sample if is_mapping else not hasattr(sample, field):
        raise TypeError(
            f"{argument}={field!r}: must name a field of every sample; {which} is "
            f"{type_name(sample)} without it"
        )
    return sample[field] if is_mapping else getattr(sample, field)


def _common(name: str, samples: Sequence[Indexed]) -> int | None:
    """Return the epoch or step that all samples carry."""
    value, *others = {getattr(sample, name) for sample in samples}
    if others:
        raise ValueError(f"samples: must be of one {name}, got some of {[value, *others]}")
    found: int | None = value
    return found


def _number_of(index: int | str | bytes) -> int:
    """A signed 64-bit number for an index or key: an int is its own if it fits."""
    if isinstance(index, int):
        if -(2**63) <= index < 2**63:
            return index
        index = str(index)
    text = index.encode() if isinstance(index, str) else index
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
