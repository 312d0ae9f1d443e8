"""`random_crops`: random resized crops and mirror images of a batch, where the batch is."""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import check_bool, check_floating, check_range
from jepakit._precision import float32_or_wider, full_precision

__all__ = ["random_crops"]


def random_crops(
    images: Float[Tensor, "b c h w"],
    scale: tuple[float, float],
    *,
    flip: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b c h w"]:
    r"""A random crop of each image, of the image's own shape, resized to its size.

    $$\text{side} = \sqrt{s}, \qquad s \sim U(\text{low}, \text{high})$$

    as a fraction of height and width alike, anywhere within the image. Every image of the batch is
    drawn on its own. Bilinear. Fold the frames of a clip into its channels: then all get one crop.

    Args:
        images: Pictures, of any range.
        scale: Area of a crop as a fraction of the image: lowest and highest. `(1, 1)` takes all.
        flip: Mirror every other image, by the toss of a coin.
        generator: A CPU generator; the numbers are drawn on the CPU, so crops are the same on every
            device. None for torch's own.

    Raises:
        TypeError: If `images` are not floating point or `scale` no pair of numbers.
        ValueError: If `images` have not 4 axes, or `scale` is not ascending within 0 to 1.

    Example:
        >>> import torch
        >>> from jepakit.data import random_crops
        >>> random_crops(torch.rand(8, 3, 32, 32), (0.5, 1.0), flip=True).shape
        torch.Size([8, 3, 32, 32])

    Source:
        The crop of the Inception network (arXiv:1409.4842) with the image's own aspect ratio, as
        I-JEPA (arXiv:2301.08243) crops, which also keeps aspects from 3/4 to 4/3.
    """
    check_floating("images", images)
    if images.dim() != 4:
        raise ValueError(f"images {tuple(images.shape)}: must have the shape [b, c, h, w]")
    check_range("scale", scale, high=1.0)
    check_bool("flip", flip)
    low, high = scale
    if low == high == 1 and not flip:
        return images
    count = len(images)
    # The same whatever the default type and device are.
    draw = partial(torch.rand, generator=generator, dtype=torch.float32, device="cpu")
    side = (low + (high - low) * draw(count)).sqrt()
    # Image coordinates run from -1 to 1.
    affine = torch.zeros(count, 2, 3, dtype=torch.float32, device="cpu")
    affine[:, 0, 0] = affine[:, 1, 1] = side
    centre = 2 * draw(count, 2) - 1
    affine[:, :, 2] = centre * (1 - side[:, None])
    if flip:
        mirrored = draw(count) < 0.5
        affine[:, 0] *= torch.where(mirrored, -1.0, 1.0)[:, None]
    pixels = float32_or_wider(images)
    with full_precision(pixels):  # places in a half type would be off by parts of a pixel
        grid = F.affine_grid(affine.to(pixels), list(images.shape), align_corners=False)
        # A crop of the whole image reaches half a pixel beyond the outermost pixels' centres.
        crops = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    return crops.to(images.dtype)
