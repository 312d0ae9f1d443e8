"""`PixelStatistics`: mean and standard deviation of a dataset's channels."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from jepakit._checks import as_int, as_numbers, check_tensor, store_fields
from jepakit.data._subset import stratified_indices

__all__ = ["PixelStatistics"]

_MIN_STD = 1e-3  # a constant channel is centred, not divided by 0


@dataclass(frozen=True)
class PixelStatistics:
    r"""Standardise `uint8` images by the mean and standard deviation of each channel.

    $$y_c = \frac{x_c / 255 - \mu_c}{\sigma_c}$$

    Args:
        mean: $\mu$ of each channel, for pixels in 0 to 1.
        std: $\sigma$ of each channel, above 0.

    Raises:
        ValueError: If `mean` and `std` differ in length or are empty, a number is not finite, a
            mean is outside of 0 to 1, or a std is not above 0.

    Example:
        >>> import torch
        >>> from jepakit.data import PixelStatistics
        >>> standardise = PixelStatistics(mean=(0.5,), std=(0.25,))
        >>> standardise(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)).unique()
        tensor([2.])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        mean, std = as_numbers("mean", self.mean), as_numbers("std", self.std, positive=True)
        if len(mean) != len(std) or not mean:
            raise ValueError(f"mean={mean}, std={std}: must be one number each for every channel")
        if max(mean) > 1 or min(mean) < 0:
            hint = "divide statistics of 0 to 255 by 255"
            raise ValueError(f"mean={mean}: must lie in [0, 1], as pixels do; {hint}")
        store_fields(self, mean=mean, std=std)

    @classmethod
    def from_dataset(cls, dataset: Dataset[Any], *, num_images: int = 500) -> "PixelStatistics":
        """Compute the statistics of a subset of a dataset.

        Args:
            dataset: `(uint8 image [c h w], label)` pairs, all images of one size.
            num_images: Most images to use. They are drawn from the whole dataset, the same in every
                call.

        Raises:
            ValueError: If the dataset is empty, or its images are of different sizes.
        """
        size = len(dataset)  # type: ignore[arg-type]  # a map-style dataset has a length
        indices = stratified_indices(size, as_int("num_images", num_images, minimum=1))
        if not indices:
            raise ValueError("dataset: must hold at least one image, is empty")
        images: list[Tensor] = []
        for index in indices:
            image = dataset[index][0]
            check_tensor(f"image {index} of the dataset", image, torch.uint8)
            shape, first = tuple(image.shape), tuple(images[0].shape if images else image.shape)
            if len(shape) != 3 or 0 in shape or shape != first:
                rule = "must be [c, h, w], not empty, all of one size"
                raise ValueError(f"image {index} of the dataset {shape}: {rule}, before it {first}")
            images.append(image)
        pixels = torch.stack(images).double() / 255
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(_MIN_STD)
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return standardised images in float32, on the device of `images`.

        Args:
            images: Images with one channel for each mean.
        """
        check_tensor("images", images, torch.uint8)
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
