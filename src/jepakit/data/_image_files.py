"""Image files as uint8 tensors, and a folder of them as a dataset."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_BACKGROUND = "white"  # behind transparent pixels


class ImageFiles(Dataset[tuple[Any, ...]]):
    """Images cropped to a square from their centre and resized: `(image,)` or `(image, label)`."""

    def __init__(self, paths: list[str], labels: list[int] | None, image_size: int) -> None:
        self.paths = paths
        self.labels = labels
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        path = self.paths[index]
        image = read_image(path, f"image file {path!r}", self.image_size)
        return (image,) if self.labels is None else (image, self.labels[index])


def list_images(root: Path, classes: Sequence[str]) -> tuple[list[str], list[int] | None]:
    """Return the image files of a folder, class after class, and their labels if it has classes."""
    if not classes:
        return _images_below(root), None
    paths = [_images_below(root / name) for name in classes]
    labels = [label for label, members in enumerate(paths) for _ in members]
    return [path for members in paths for path in members], labels


def find_classes(root: Path) -> list[str]:
    """Return the subfolders of a folder; raise if it holds no images, or such beside subfolders."""
    classes = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not _is_hidden(entry.name)
    )
    images = sorted(entry.name for entry in root.iterdir() if _is_image(entry.name))
    if classes and images:
        held = f"holds {images[0]!r} beside {classes[0]!r}"
        rule = f"must hold images or a subfolder for each class, {held}"
        raise ValueError(f"source={str(root)!r}: {rule}")
    if not any(_images_below(root / name) for name in classes or ["."]):
        raise ValueError(
            f"source={str(root)!r}: must hold images ({', '.join(_EXTENSIONS)}), holds none"
        )
    return classes


def _images_below(root: Path) -> list[str]:
    return [
        os.path.join(folder, name)
        for folder, _, names in sorted(os.walk(root, followlinks=True))
        if not any(map(_is_hidden, Path(folder).relative_to(root).parts))
        for name in sorted(names)
        if _is_image(name)
    ]


def _is_image(name: str) -> bool:
    return name.lower().endswith(_EXTENSIONS) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    # macOS writes ._1.jpg beside 1.jpg, which is no image, and Jupyter copies into a hidden folder.
    return name.startswith(".")


def read_image(
    file: str | bytes, name: str, image_size: int | None = None
) -> UInt8[Tensor, "3 h w"]:
    """Decode an image, from its path or its bytes, to red, green and blue as people see it.

    Args:
        file: Path, or the content of a file.
        name: What an error calls it.
        image_size: Side of the square to crop and resize to; None keeps the size.

    Raises:
        ValueError: If the file cannot be decoded.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            image = _to_rgb(ImageOps.exif_transpose(opened))
        if image_size is not None:
            # Cropped before it is resized: a strip of 1 x 50000 pixels would take gigabytes.
            image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: cannot be read, {reason}; replace or remove it") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _to_rgb(image: Any) -> Any:
    """Convert a PIL image of any mode to 8-bit RGB."""
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scaled_grey(image).convert("RGB")  # `convert` alone clips what is above 255
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range, must be integers")
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        # Without alpha, whatever colour lies below transparent pixels would appear.
        layer = image.convert("RGBA")
        background = Image.new("RGBA", layer.size, _BACKGROUND)
        return Image.alpha_composite(background, layer).convert("RGB")
    return image.convert("RGB")


def _scaled_grey(image: Any) -> Any:
    """8-bit grey from 16 bits: 65535 becomes 255."""
    from PIL import Image

    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        values = f"{pixels.min()} to {pixels.max()}"
        raise ValueError(f"its pixels are {values}, must be of 8 or 16 bits")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
