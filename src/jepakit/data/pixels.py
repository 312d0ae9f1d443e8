"""`PixelStatistics`: mean and deviation of a dataset's channels, to standardise images with."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from jepakit._checks import check_int
from jepakit.data._drawn import drawn_indices

__all__ = ["PixelStatistics"]

_LEAST_STD = 1e-3  # a channel that never changes is centred, not blown up


@dataclass(frozen=True)
class PixelStatistics:
    r"""Standardise `uint8` images by their channels' mean and deviation.

    $$y_c = \frac{x_c / 255 - \mu_c}{\sigma_c}$$

    Args:
        mean: $\mu$ of each channel, of pixels in 0 to 1.
        std: $\sigma$ of each channel.

    Raises:
        ValueError: If there are not as many means as deviations, or a deviation is not above 0.

    Example:
        >>> import torch
        >>> from jepakit.data import PixelStatistics
        >>> standardise = PixelStatistics(mean=(0.5,), std=(0.25,))
        >>> standardise(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)).unique()
        tensor([2.])

    Source:
        jepakit's own.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean={self.mean}, std={self.std}: must be one number each for every channel"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std}: must be above 0")

    @classmethod
    def of(cls, dataset: Dataset[Any], *, num_images: int = 500) -> "PixelStatistics":
        """The statistics of some images of a dataset.

        Args:
            dataset: `(uint8 image [c h w], label)` pairs, all images of one size.
            num_images: How many to take at most, drawn at random from all over it, the same in
                every call.
        """
        check_int("num_images", num_images, minimum=1)
        size = len(dataset)  # type: ignore[arg-type]  # a map-style dataset has a length
        chosen = [dataset[index][0] for index in drawn_indices(size, num_images)]
        pixels = torch.stack(chosen).double() / 255
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(_LEAST_STD)
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Standardised images in float32, where the images are.

        Args:
            images: Pictures with as many channels as there are means.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images: must be uint8, got {images.dtype}")
        if images.dim() != 4 or images.shape[1] != len(self.mean):
            raise ValueError(
                f"images {tuple(images.shape)}: must have the shape [b, c, h, w] with "
                f"{len(self.mean)} channels"
            )
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=images.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images.float() / 255 - mean) / std
