"""`load_images`: training and test images of a named set, an `.npz` file or a folder."""

import io
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Subset, TensorDataset

from jepakit._checks import as_int, type_name
from jepakit.data.textures import textured_shapes

__all__ = ["load_images"]

_TORCHVISION = {"cifar10": "CIFAR10", "fashion_mnist": "FashionMNIST"}
_TEST_FOLDERS = ("val", "validation", "test")
_TEST_FRACTION = 5  # of a folder without a test part, one image in so many is a test image


class _Split(NamedTuple):
    train: Dataset[Any]
    test: Dataset[Any]


def load_images(
    source: str | os.PathLike[str], *, image_size: int | None = None
) -> tuple[Dataset[Any], Dataset[Any]]:
    """Load training and test images from a named set, an `.npz` file or a folder.

    Both are datasets of `(image [c h w] in uint8, label)`.

    Args:
        source: One of:

            - `"textures"`: `textured_shapes`.
            - `"cifar10"`, `"fashion_mnist"`: downloaded by torchvision into the folder `data`.
            - An `.npz` file with `x_train, y_train, x_test, y_test`, images as uint8 `[n h w]` or
              `[n h w c]`, shuffled already. Encoded images, concatenated, go into `bytes_train`
              instead of `x_train`, with the `n + 1` offsets at which each begins and the last
              ends in `off_train`; likewise for test.
            - A folder with a subfolder for each class, within `train` and one of `val`,
              `validation` and `test` if there are such; else a fifth of the images is held out
              for test. The images are in a fixed random order.
        image_size: Resize to a square of this many pixels. None keeps the size of a named set or
            file; a folder needs a number.

    Raises:
        ValueError: If there is no such source, a file lacks an array, the parts of a folder have
            different classes, or `image_size` is missing or cannot take effect.

    Example:
        >>> from jepakit.data import load_images
        >>> train, test = load_images("textures")
        >>> len(train), len(test)
        (10000, 2000)
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source={source!r}: must be a str or a path, got {type_name(source)}")
    source = os.fspath(source)
    if image_size is not None:
        image_size = as_int("image_size", image_size, minimum=1)
    if source == "textures":
        if image_size is not None:
            raise ValueError(f"image_size={image_size}: textures are 48 x 48, must be None")
        return textured_shapes()
    if source.endswith(".npz"):
        return _load_arrays(source, image_size)
    if source in _TORCHVISION:
        return _download(source, image_size)
    return _load_folder(Path(source), image_size)


def _download(name: str, image_size: int | None) -> _Split:
    import torchvision.datasets  # type: ignore[import-untyped]

    load = getattr(torchvision.datasets, _TORCHVISION[name])
    parts = [load("data", train=train, download=True) for train in (True, False)]
    return _Split(*(_to_dataset(part.data, part.targets, image_size) for part in parts))


def _load_folder(root: Path, image_size: int | None) -> _Split:
    if not root.is_dir():
        named = ", ".join(map(repr, _TORCHVISION))
        rule = f"must be 'textures', {named}, an .npz file or a folder that exists"
        raise ValueError(f"source={str(root)!r}: {rule}")
    if image_size is None:
        raise ValueError("image_size=None: images of a folder differ in size, must be a number")
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    transform = v2.Compose([v2.Resize(image_size), v2.CenterCrop(image_size), v2.PILToTensor()])
    if not (root / "train").is_dir():
        images = _shuffled(ImageFolder(root, transform))
        num_test = max(1, len(images) // _TEST_FRACTION)
        return _Split(Subset(images, range(num_test, len(images))), Subset(images, range(num_test)))
    test_root = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if test_root is None:
        rule = f"has a folder train, must have one of {_TEST_FOLDERS} too"
        raise ValueError(f"source={str(root)!r}: {rule}")
    train, test = ImageFolder(root / "train", transform), ImageFolder(test_root, transform)
    if train.classes != test.classes:
        raise ValueError(
            f"source={str(root)!r}: train and {test_root.name} must have folders for the same "
            f"classes, {sorted(set(train.classes) ^ set(test.classes))} are in one of them only"
        )
    return _Split(_shuffled(train), _shuffled(test))


def _shuffled(dataset: Any) -> Subset[Any]:
    """The dataset in a fixed random order: folders are sorted by class."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(dataset), generator=generator, device="cpu")
    return Subset(dataset, order.tolist())


def _load_arrays(path: str, image_size: int | None) -> _Split:
    if not Path(path).is_file():
        raise ValueError(f"source={path!r}: there is no such file")
    with np.load(path) as arrays:
        return _Split(*(_load_part(path, arrays, part, image_size) for part in ("train", "test")))


def _load_part(path: str, arrays: Any, part: str, image_size: int | None) -> TensorDataset:
    encoded = f"bytes_{part}" in arrays
    needed = [f"bytes_{part}", f"off_{part}"] if encoded else [f"x_{part}"]
    for name in (*needed, f"y_{part}"):
        if name not in arrays:
            held = sorted(arrays.files)
            raise ValueError(f"source={path!r}: must hold the array {name!r}, it holds {held}")
    images = _decode(*(arrays[name] for name in needed)) if encoded else arrays[needed[0]]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"source={path!r}: {needed[0]} must be uint8 of shape [n, h, w] or [n, h, w, c], got "
            f"{images.dtype} {images.shape}"
        )
    return _to_dataset(images, arrays[f"y_{part}"], image_size)


def _decode(encoded: Any, offsets: Any) -> Any:
    """Images `[n h w 3]` from their files, concatenated as bytes."""
    from PIL import Image

    files = [io.BytesIO(encoded[start:end].tobytes()) for start, end in pairwise(offsets)]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def _to_dataset(images: Any, labels: Any, image_size: int | None) -> TensorDataset:
    """A dataset of uint8 images `[n h w]` or `[n h w c]`."""
    tensor = torch.from_numpy(np.asarray(images))
    tensor = tensor[:, None] if tensor.dim() == 3 else tensor.permute(0, 3, 1, 2)
    if image_size is not None and tensor.shape[-2:] != (image_size, image_size):
        size = (image_size, image_size)
        # In chunks: as floats all images at once would take four times the memory of the set.
        chunks = [F.interpolate(c.float(), size, mode="area") for c in torch.split(tensor, 512)]
        tensor = torch.cat(chunks).round().to(torch.uint8)
    return TensorDataset(tensor, torch.from_numpy(np.asarray(labels)).long())
