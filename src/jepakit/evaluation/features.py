"""Features of labelled images from a frozen encoder."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from jepakit._checks import as_grid_size, as_int, check_floating, check_tensor, type_name
from jepakit._wrapped import eval_mode
from jepakit.data._subset import stratified_indices
from jepakit.tokens import TokenSet

__all__ = [
    "Features",
    "check_same_width",
    "check_shared_classes",
    "encode_batches",
    "extract_features",
    "subset_loader",
]


@dataclass(frozen=True, eq=False)
class Features:
    """Feature vectors with their labels, one row per image.

    Args:
        x: Feature vectors, finite.
        y: Class labels; any integers, not necessarily consecutive.

    Raises:
        ValueError: If the shapes do not fit, there are no rows, or `x` is not finite.

    Example:
        >>> import torch
        >>> len(Features(x=torch.randn(5, 3), y=torch.tensor([0, 0, 1, 1, 2])))
        5
    """

    x: Float[Tensor, "n d"]
    y: Integer[Tensor, "n"]

    def __post_init__(self) -> None:
        check_floating("x", self.x)
        check_tensor("y", self.y)
        if not _is_integer(self.y):
            raise TypeError(f"y: must be of an integer type, got {self.y.dtype}")
        shapes = f"x {tuple(self.x.shape)} and y {tuple(self.y.shape)}"
        if self.x.dim() != 2 or self.x.numel() == 0 or self.y.shape != self.x.shape[:1]:
            raise ValueError(f"{shapes}: must have the shapes [n, d] and [n], n and d at least 1")
        bad = ~torch.isfinite(self.x).all(dim=1)
        if bad.any():
            first = int(bad.nonzero()[0, 0])
            raise ValueError(f"x: must be finite, but {int(bad.sum())} rows are not, first {first}")

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        rows, dim = self.x.shape
        return f"<Features: {rows} rows of {dim}, {len(torch.unique(self.y))} classes>"


def extract_features(
    encode: Callable[..., Tensor],
    loader: Iterable[Any],
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | int | None = None,
    grid_size: Sequence[int] | None = None,
) -> Features:
    """Run an encoder over labelled images and collect its features on the CPU in float32.

    Runs without gradients. If `encode` or `prepare` is an `nn.Module`, a bound method of one, or a
    `functools.partial` of these, the module is in eval mode meanwhile, and every submodule gets its
    own mode back. A lambda hides its module, whose mode is then not changed: pass preprocessing as
    `prepare` instead of wrapping the encoder.

    Args:
        encode: Maps a batch of images to one vector each, `[b, ...]` to `[b, d]`, such as
            `encoder.extract_features`.
        loader: Yields pairs `(images, labels)`, with `labels` an integer tensor `[b]`. Best without
            shuffling or random augmentation.
        prepare: Preprocessing of the images on `device`, such as a `PixelStatistics`, which turns
            stored bytes into standardised floats.
        device: Device to encode on; None leaves the images where they are.
        grid_size: For images with padding: the loader yields `(images, labels, valid)`, with
            `valid` True where a position of this grid holds data, a bool tensor `[b N]`, and
            `encode(images, TokenSet.from_mask(valid, grid_size))` sees and pools these only.

    A batch of another kind, and features of another shape or not finite, raise an error
    that names the batch.

    Example:
        >>> import torch
        >>> loader = [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))]
        >>> extract_features(lambda images: images.mean(dim=(2, 3)), loader)
        <Features: 4 rows of 3, 2 classes>
    """
    x, y = encode_batches(
        encode, loader, prepare=prepare, device=device, axes=("b", "d"), grid_size=grid_size
    )
    return Features(x=x, y=y)


def encode_batches(
    encode: Callable[..., Tensor],
    loader: Iterable[Any],
    *,
    prepare: Callable[[Tensor], Tensor] | None,
    device: torch.device | str | int | None,
    axes: tuple[str, ...],
    grid_size: Sequence[int] | None = None,
    views: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the outputs of `encode`, which must have these axes, and the labels, on the CPU.

    With `views` images are `[b v ...]`. Every view is prepared and encoded as an image of its own
    and has a row of its own in the outputs, not in the labels.
    """
    grid = None if grid_size is None else as_grid_size("grid_size", grid_size)
    outputs: list[Tensor] = []
    all_labels: list[Tensor] = []
    with torch.no_grad(), _eval_mode(encode), _eval_mode(prepare):
        for number, batch in enumerate(loader):
            images, labels, *valid = _checked_batch(batch, number, grid)
            moved = images if device is None else images.to(device, non_blocking=True)
            # Trimmed to the batch's longest: what is not seen costs nothing.
            context = [TokenSet.from_mask(mask, grid).to(moved.device) for mask in valid if grid]
            if views:
                if moved.dim() < 3:
                    shape = tuple(moved.shape)
                    raise ValueError(f"loader: must yield several views [b v ...], got {shape}")
                moved = moved.flatten(0, 1)
            output = encode(moved if prepare is None else prepare(moved), *context)
            _check_output(output, moved, number, axes, first=outputs[0] if outputs else None)
            outputs.append(output.to("cpu", torch.float32))
            all_labels.append(labels.to("cpu", torch.int64))
    if not outputs:
        raise ValueError("loader: must yield at least one batch, got none")
    return torch.cat(outputs), torch.cat(all_labels)


def subset_loader(
    dataset: Dataset[Any], num_images: int, batch_size: int, num_workers: int
) -> DataLoader[Any]:
    """Load at most `num_images` images, drawn from all over a data set, the same in every call."""
    num_images = as_int("num_images", num_images, minimum=1)
    batch_size = as_int("batch_size", batch_size, minimum=1)
    num_workers = as_int("num_workers", num_workers, minimum=0)
    size = len(dataset)  # type: ignore[arg-type]  # a map-style dataset has a length
    subset = Subset(dataset, stratified_indices(size, num_images))
    # Without a generator a loader draws the seed of its workers from torch's global one, and an
    # evaluation would change the training that follows. The seed is drawn on the default device.
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    return DataLoader(subset, batch_size, num_workers=num_workers, generator=generator)


def check_same_width(train: Features, test: Features) -> None:
    """Raise unless both sets are `Features` of one width."""
    for name, features in (("train", train), ("test", test)):
        if not isinstance(features, Features):
            raise TypeError(f"{name}: must be Features(x, y), got {type_name(features)}")
    shapes = tuple(train.x.shape), tuple(test.x.shape)
    if shapes[0][1] != shapes[1][1]:
        raise ValueError(f"train.x {shapes[0]} and test.x {shapes[1]}: must be equally wide")


def check_shared_classes(train: Tensor, test: Tensor) -> None:
    """Raise if no test label occurs among the training labels."""
    if not torch.isin(test, train).any():
        few, in_train = (sorted(set(labels.tolist()))[:5] for labels in (test, train))
        labels = f"got labels like {few}, in train {in_train}"
        raise ValueError(f"test: must share classes with train, {labels}")


def _is_integer(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def _checked_batch(batch: object, number: int, grid: tuple[int, ...] | None) -> tuple[Tensor, ...]:
    parts = tuple(batch) if isinstance(batch, tuple | list) else ()
    if len(parts) == 1:
        hint = "a folder needs a subfolder for each class"
        raise TypeError(f"loader: labels are needed, batch {number} has images alone; {hint}")
    if not all(isinstance(part, Tensor) for part in parts) or len(parts) != 2 + (grid is not None):
        kind = (
            "pairs of tensors (images, labels)"
            if grid is None
            else ("three tensors (images, labels, valid), as grid_size is given")
        )
        hint = "; give the grid_size of valid" if grid is None and len(parts) == 3 else ""
        raise TypeError(f"loader: must yield {kind}, not batch {number}{hint}")
    images, labels = parts[:2]
    if not _is_integer(labels):
        raise TypeError(f"loader: labels must be integers, batch {number} has {labels.dtype}")
    if images.dim() < 1 or labels.shape != images.shape[:1]:
        shapes = f"{tuple(labels.shape)} for images {tuple(images.shape)}"
        raise ValueError(f"loader: labels must be one for each image, batch {number} has {shapes}")
    if grid is not None:
        check_tensor("valid", parts[2], torch.bool)
        if parts[2].shape != (len(images), math.prod(grid)):
            shapes = f"{tuple(parts[2].shape)}, must be {(len(images), math.prod(grid))}"
            raise ValueError(f"loader: valid of batch {number} is {shapes} for the grid {grid}")
    return parts


def _check_output(
    output: object, images: Tensor, number: int, axes: tuple[str, ...], *, first: Tensor | None
) -> None:
    """Raise unless an output of `encode` has the named axes and the shape of the first one."""
    if not isinstance(output, Tensor):
        raise TypeError(f"encode: must return a tensor, got {type_name(output)}")
    got = f"got {tuple(output.shape)} for batch {number}"
    if output.dim() != len(axes) or len(output) != len(images):
        hint = "; pool patch features into one vector first" if len(axes) == 2 else ""
        rule = f"must return [{', '.join(axes)}] with b = {len(images)}"
        raise ValueError(f"encode: {rule}, {got}{hint}")
    if first is not None and output.shape[1:] != first.shape[1:]:
        raise ValueError(f"encode: must return {list(first.shape[1:])} for every image, {got}")
    if not torch.isfinite(output).all():
        raise ValueError(f"encode: returned NaN or infinity for batch {number}, must be finite")


def _eval_mode(function: object) -> AbstractContextManager[None]:
    """Put the module behind a callable in eval mode, if there is one."""
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", function)  # the object of a bound method
    return eval_mode(owner) if isinstance(owner, nn.Module) else nullcontext()
