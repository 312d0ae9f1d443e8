"""Image files as uint8 tensors, and as a dataset."""

import io
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from jepakit.data._folders import FileKind

IMAGES = FileKind(
    "images", (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
)
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
