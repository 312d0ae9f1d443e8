"""`load_images`: training and test images from wherever they are, as `(uint8 image, label)`."""

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from jepakit._checks import check_int
from jepakit.data.digits import digit_canvases

__all__ = ["load_images"]

_DOWNLOADED = {"cifar10": "CIFAR10", "fashion_mnist": "FashionMNIST"}  # torchvision's names
_HELD_OUT = ("val", "validation", "test")
_TEST_FRACTION = 5  # one image in so many, of a folder that has no test part of its own

Pair = tuple[Dataset[Any], Dataset[Any]]


def load_images(source: str, *, image_size: int | None = None) -> Pair:
    """Training and test images of a named set, of an `.npz` file, or of a folder.

    Args:
        source: `"digits"` for `digit_canvases`; `"cifar10"` or `"fashion_mnist"`, which torchvision
            downloads into the folder `data`; the path of an `.npz` file with the arrays `x_train,
            y_train, x_test, y_test` (images `[n h w]` or `[n h w c]`, uint8), or with encoded
            images one after another as `bytes_train` and where each begins and the last ends as
            `off_train` instead of `x_train`, likewise for test; or the path of a folder with a
            subfolder for each class, within `train` and `val`, `validation` or `test` if it has
            them, else a fifth is held out. Arrays stay in their order: shuffle them first if they
            are sorted by class.
        image_size: Resize to a square of this many pixels. None keeps the size of a named set or
            file; a folder needs one.

    Raises:
        ValueError: If there is nothing of this name, a file lacks an array, the parts of a folder
            have other classes, or `image_size` is missing or could not take effect.

    Returns:
        Two datasets of `(image [c h w] in uint8, label)`. Those of a folder are in a fixed random
        order, so that the first images are of every class.

    Example:
        >>> from jepakit.data import load_images
        >>> train, test = load_images("digits")
        >>> len(train), len(test)
        (6000, 1500)

    Source:
        jepakit's own.
    """
    if image_size is not None:
        check_int("image_size", image_size, minimum=1)
    if source == "digits":
        if image_size is not None:
            raise ValueError(f"image_size={image_size}: digits are 32 x 32, must be None")
        return digit_canvases()
    if source.endswith(".npz"):
        return _from_arrays(source, image_size)
    if source in _DOWNLOADED:
        import torchvision.datasets  # type: ignore[import-untyped]

        kind = getattr(torchvision.datasets, _DOWNLOADED[source])
        parts = [kind("data", train=train, download=True) for train in (True, False)]
        train, test = (_dataset(part.data, part.targets, image_size) for part in parts)
        return train, test
    return _from_folder(Path(source), image_size)


def _from_folder(root: Path, image_size: int | None) -> Pair:
    if not root.is_dir():
        raise ValueError(
            f"source={str(root)!r}: must be 'digits', {', '.join(map(repr, _DOWNLOADED))}, an .npz "
            "file or a folder that exists"
        )
    if image_size is None:
        raise ValueError("image_size=None: images of a folder differ in size, must be a number")
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    square = [v2.Resize(image_size), v2.CenterCrop(image_size)]
    transform = v2.Compose([*square, v2.PILToTensor()])
    if (root / "train").is_dir():
        held_out = next((root / name for name in _HELD_OUT if (root / name).is_dir()), None)
        if held_out is None:
            raise ValueError(
                f"source={str(root)!r}: has a folder train, must have one of {_HELD_OUT} too"
            )
        train, test = ImageFolder(root / "train", transform), ImageFolder(held_out, transform)
        if train.classes != test.classes:
            raise ValueError(
                f"source={str(root)!r}: train and {held_out.name} must have folders for the same "
                f"classes, {sorted(set(train.classes) ^ set(test.classes))} are in one of them only"
            )
        return _shuffled(train), _shuffled(test)
    everything = _shuffled(ImageFolder(root, transform))
    held = max(1, len(everything) // _TEST_FRACTION)
    return Subset(everything, range(held, len(everything))), Subset(everything, range(held))


def _shuffled(dataset: Any) -> Subset[Any]:
    """In a fixed random order: folders are sorted by class, and some images stand for all."""
    own = torch.Generator().manual_seed(0)
    order = torch.randperm(len(dataset), generator=own, device="cpu")
    return Subset(dataset, order.tolist())


def _from_arrays(path: str, image_size: int | None) -> Pair:
    if not Path(path).is_file():
        raise ValueError(f"source={path!r}: there is no such file")
    with np.load(path) as arrays:
        return _part(path, arrays, "train", image_size), _part(path, arrays, "test", image_size)


def _part(path: str, arrays: Any, part: str, image_size: int | None) -> TensorDataset:
    encoded = f"bytes_{part}" in arrays
    needed = [f"bytes_{part}", f"off_{part}"] if encoded else [f"x_{part}"]
    for name in (*needed, f"y_{part}"):
        if name not in arrays:
            raise ValueError(
                f"source={path!r}: must hold the array {name!r}, it holds {sorted(arrays.files)}"
            )
    images = _decoded(*(arrays[name] for name in needed)) if encoded else arrays[needed[0]]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"source={path!r}: {needed[0]} must be uint8 of shape [n, h, w] or [n, h, w, c], got "
            f"{images.dtype} {images.shape}"
        )
    return _dataset(images, arrays[f"y_{part}"], image_size)


def _dataset(images: Any, labels: Any, image_size: int | None) -> TensorDataset:
    """Of images `[n h w]` or `[n h w c]` in uint8."""
    tensor = torch.from_numpy(np.asarray(images))
    tensor = tensor[:, None] if tensor.dim() == 3 else tensor.permute(0, 3, 1, 2)
    if image_size is not None and tensor.shape[-2:] != (image_size, image_size):
        tensor = _resized(tensor, image_size)
    return TensorDataset(tensor, torch.from_numpy(np.asarray(labels)).long())


def _decoded(raw: Any, offsets: Any) -> Any:
    from PIL import Image

    files = [io.BytesIO(raw[start:end].tobytes()) for start, end in pairwise(offsets)]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def _resized(images: Tensor, size: int) -> Tensor:
    parts = [
        F.interpolate(part.float(), (size, size), mode="area") for part in torch.split(images, 512)
    ]
    return torch.cat(parts).round().to(torch.uint8)
