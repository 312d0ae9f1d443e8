"""`load_images`: training and test images of a named set, an `.npz` file or a folder."""

import os
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from jepakit._checks import as_int, type_name
from jepakit.data._folders import load_folder
from jepakit.data._image_arrays import load_arrays, to_dataset
from jepakit.data._image_files import IMAGES, ImageFiles
from jepakit.data._split import Split
from jepakit.data.textures import textured_shapes

__all__ = ["load_images"]

_TORCHVISION = {"cifar10": "CIFAR10", "fashion_mnist": "FashionMNIST"}


def load_images(
    source: str | os.PathLike[str], *, image_size: int | None = None
) -> tuple[Dataset[Any], Dataset[Any]]:
    """Load training and test images from a named set, an `.npz` file or a folder.

    Both are datasets of `(image [c h w] in uint8, label)`; of a folder without classes, of
    `(image,)`. An image file of a folder is read when its item is.

    Args:
        source: One of:

            - `"textures"`: `textured_shapes`.
            - `"cifar10"`, `"fashion_mnist"`: downloaded by torchvision into the folder `data`.
            - An `.npz` file with `x_train, y_train, x_test, y_test`, images as uint8 `[n h w]`,
              `[n h w c]` or (for 1 or 3 channels) `[n c h w]`, shuffled already, labels as
              integers `[n]`. Encoded images, concatenated, go into `bytes_train` instead of
              `x_train`, with the `n + 1` offsets at which each begins and the last ends in
              `off_train`; likewise for test.
            - A folder with a subfolder for each class, or with images alone, which then have no
              label; within `train` and one of `val`, `validation` and `test` if there are such;
              else a fifth of the images is held out for test. The images are in a fixed random
              order.

            A `Path` is always a file or a folder. Image files become red, green and blue: upright
            as their EXIF data say, transparent pixels over white, 16-bit grey scaled to 8 bits.
        image_size: Resize to a square of this many pixels. None keeps the size of a named set or
            file; a folder needs a number, and its images are cropped to a square first.

    Raises:
        ValueError: If there is no such source, a file lacks an array or cannot be read, arrays are
            of another kind, a class is empty, the parts of a folder have different classes, or
            `image_size` is missing or cannot take effect. Reading an item raises it for an image
            file that is broken, with its path.

    Example:
        >>> from jepakit.data import load_images
        >>> train, test = load_images("textures")
        >>> len(train), len(test)
        (10000, 2000)
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source={source!r}: must be a str or a path, got {type_name(source)}")
    if image_size is not None:
        image_size = as_int("image_size", image_size, minimum=1)
    if source == "textures":
        if image_size is not None:
            raise ValueError(f"image_size={image_size}: textures are 48 x 48, must be None")
        return textured_shapes()
    if isinstance(source, str) and source in _TORCHVISION:
        return _download(source, image_size)
    path = Path(source)
    if path.suffix.lower() == ".npz" and not path.is_dir():
        if not path.is_file():
            raise ValueError(f"source={str(path)!r}: there is no such file")
        return load_arrays(str(path), image_size)
    if not path.is_dir():
        named = ", ".join(map(repr, _TORCHVISION))
        rule = f"must be 'textures', {named}, an .npz file or a folder that exists"
        raise ValueError(f"source={str(path)!r}: {rule}")
    if image_size is None:
        raise ValueError("image_size=None: images of a folder differ in size, must be a number")
    return load_folder(path, IMAGES, lambda paths, labels: ImageFiles(paths, labels, image_size))


def _download(name: str, image_size: int | None) -> Split:
    import torchvision.datasets  # type: ignore[import-untyped]

    load = getattr(torchvision.datasets, _TORCHVISION[name])
    parts = [load("data", train=train, download=True) for train in (True, False)]
    return Split(*(to_dataset(part.data, part.targets, image_size) for part in parts))
