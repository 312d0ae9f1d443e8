"""Features of labelled images from a frozen encoder."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

__all__ = ["Features", "check_same_width", "collect", "extract_features"]


@dataclass(frozen=True, eq=False)
class Features:
    """Feature vectors with their labels, one row per image.

    Args:
        x: Feature vectors, finite.
        y: Class labels; any integers, they need not be consecutive.

    Raises:
        TypeError: If `x` is not floating point or `y` not of an integer type.
        ValueError: If shapes do not fit, there are no rows, or `x` is not finite.

    Example:
        >>> import torch
        >>> len(Features(x=torch.randn(5, 3), y=torch.tensor([0, 0, 1, 1, 2])))
        5

    Source:
        jepakit's own.
    """

    x: Float[Tensor, "n d"]
    y: Integer[Tensor, "n"]

    def __post_init__(self) -> None:
        if not self.x.is_floating_point():
            raise TypeError(f"x: must be floating point, got {self.x.dtype}")
        if not _is_integer(self.y):
            raise TypeError(f"y: must be of an integer type, got {self.y.dtype}")
        shapes = f"x {tuple(self.x.shape)} and y {tuple(self.y.shape)}"
        if self.x.dim() != 2 or self.y.dim() != 1 or len(self.x) != len(self.y):
            raise ValueError(f"{shapes}: must have the shapes [n, d] and [n]")
        if self.x.numel() == 0:
            raise ValueError(f"{shapes}: must have at least one row and one column")
        bad = ~torch.isfinite(self.x).all(dim=1)
        if bad.any():
            raise ValueError(
                f"x {tuple(self.x.shape)}: must be finite, but {int(bad.sum())} rows hold NaN or "
                f"infinity (the first at row {int(bad.nonzero()[0, 0])})"
            )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        rows, dim = self.x.shape
        return f"<Features: {rows} rows of {dim}, {len(torch.unique(self.y))} classes>"


def extract_features(
    encode: Callable[[Tensor], Tensor],
    loader: Iterable[Any],
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
) -> Features:
    """Run an encoder over labelled images and collect its features on the CPU in float32.

    Runs without gradients. If `encode` or `prepare` is an `nn.Module`, a bound method of one, or a
    `functools.partial` of these, the module is in eval mode meanwhile and every submodule gets its
    own mode back, also after an error. For anything else, such as a lambda, that is up to you: what
    is to be done with the images first, hand over as `prepare`.

    Args:
        encode: Maps a batch of images to one vector each, `[b, ...]` to `[b, d]`, such as
            `encoder.extract_features`.
        loader: Yields pairs `(images, labels)`, with `labels` an integer tensor `[b]`. Best without
            shuffling or random augmentation.
        prepare: What happens to the images before that, on `device`: such as a `PixelStatistics`,
            which makes stored bytes the numbers that an encoder was trained on.
        device: Where images go before they are encoded; `None` leaves them where they are.

    Raises:
        TypeError: If a batch is no pair of tensors, or labels are not of an integer type.
        ValueError: If the loader is empty, `encode` does not return `[b, d]`, the width changes
            between batches, labels do not fit, or features are not finite.

    Example:
        >>> import torch
        >>> loader = [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))]
        >>> extract_features(lambda images: images.mean(dim=(2, 3)), loader)
        <Features: 4 rows of 3, 2 classes>

    Source:
        jepakit's own.
    """
    x, y = collect(encode, loader, prepare=prepare, device=device, axes=("b", "d"))
    return Features(x=x, y=y)


def collect(
    encode: Callable[[Tensor], Tensor],
    loader: Iterable[Any],
    *,
    prepare: Callable[[Tensor], Tensor] | None,
    device: torch.device | str | None,
    axes: tuple[str, ...],
) -> tuple[Tensor, Tensor]:
    """What `encode` makes of all images, of the named axes, and their labels; on the CPU."""
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    with torch.no_grad(), _eval_mode(encode), _eval_mode(prepare):
        for number, batch in enumerate(loader):
            images, labels = _pair(batch, number)
            moved = images if device is None else images.to(device, non_blocking=True)
            x = encode(moved if prepare is None else prepare(moved))
            _check_encoded(x, images, number, axes, first=xs[0] if xs else None)
            xs.append(x.to("cpu", torch.float32))
            ys.append(labels.to("cpu", torch.int64))
    if not xs:
        raise ValueError("loader: must yield at least one batch, got none")
    return torch.cat(xs), torch.cat(ys)


def check_same_width(train: Features, test: Features) -> None:
    """Raise unless both sets have equally wide features."""
    if train.x.shape[1] != test.x.shape[1]:
        raise ValueError(
            f"train.x {tuple(train.x.shape)} and test.x {tuple(test.x.shape)}: must be equally wide"
        )


def _is_integer(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def _pair(batch: object, number: int) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        length = f" of length {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise TypeError(
            f"loader: must yield pairs (images, labels), batch {number} is a "
            f"{type(batch).__name__}{length}"
        )
    images, labels = batch
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(
            f"loader: must yield pairs of tensors, batch {number} holds a "
            f"{type(images).__name__} and a {type(labels).__name__}"
        )
    if not _is_integer(labels):
        raise TypeError(
            f"loader: labels must be of an integer type, batch {number} has {labels.dtype}"
        )
    if images.dim() < 1 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"loader: labels {tuple(labels.shape)} of batch {number} must be one integer for each "
            f"of the images {tuple(images.shape)}"
        )
    return images, labels


def _check_encoded(
    x: object, images: Tensor, number: int, axes: tuple[str, ...], *, first: Tensor | None
) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"encode: must return a tensor, got {type(x).__name__}")
    shape = tuple(x.shape)
    if x.dim() != len(axes) or len(x) != len(images):
        asked, like = ", ".join(axes), ", ".join([str(len(images)), *axes[1:]])
        hint = "; pool patch tokens into one vector first" if len(axes) == 2 else ""
        raise ValueError(
            f"encode: must return [{asked}], so ({like}) for batch {number}, got {shape}{hint}"
        )
    if first is not None and x.shape[1:] != first.shape[1:]:
        was = tuple(first.shape[1:])
        raise ValueError(
            f"encode: returned {shape} for batch {number}, must have "
            + (f"width {was[0]}" if len(was) == 1 else f"{was[0]} tokens of {was[1]}")
        )
    if not torch.isfinite(x).all():
        raise ValueError(f"encode: returned NaN or infinity for batch {number}, must be finite")


@contextmanager
def _eval_mode(encode: object) -> Iterator[None]:
    while isinstance(encode, functools.partial):
        encode = encode.func
    owner = getattr(encode, "__self__", encode)  # a bound method's object
    if not isinstance(owner, nn.Module):
        yield
        return
    # A frozen part may stand in eval inside a training model: each gets its own mode back.
    modes = [(module, module.training) for module in owner.modules()]
    owner.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
