"""`random_crops`: random resized crops and mirror images of a batch, on its device."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import as_bool, as_range, check_floating
from jepakit._precision import float32_or_wider, full_precision

__all__ = ["random_crops"]


def random_crops(
    images: Float[Tensor, "b c h w"],
    scale: Sequence[float],
    *,
    flip: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b c h w"]:
    r"""Crop each image at random, with its own aspect ratio, and resize the crop to its size.

    $$\text{side} = \sqrt{s}, \qquad s \sim U(\text{low}, \text{high})$$

    as a fraction of both height and width; the crop's centre is uniform among those that keep it
    inside the image. Each image of the batch has its own crop. Interpolation is bilinear. To give
    all frames of a clip the same crop, fold the frames into the channels.

    Args:
        images: Images, of any range of values.
        scale: Lowest and highest area of a crop, as a fraction of the image; `(1, 1)`: no crop.
        flip: Mirror each image horizontally with probability 1/2.
        generator: A CPU generator, so that crops are the same on every device; torch's global one
            if None.

    Raises:
        ValueError: If `images` is not `[b, c, h, w]`.

    Example:
        >>> import torch
        >>> from jepakit.data import random_crops
        >>> random_crops(torch.rand(8, 3, 32, 32), (0.5, 1.0), flip=True).shape
        torch.Size([8, 3, 32, 32])

    Source:
        The crop of the Inception network (arXiv:1409.4842), as in I-JEPA (arXiv:2301.08243).
        Difference: the crop has the image's own aspect ratio, where I-JEPA draws one in [3/4, 4/3].
    """
    check_floating("images", images)
    if images.dim() != 4:
        raise ValueError(f"images {tuple(images.shape)}: must have the shape [b, c, h, w]")
    low, high = as_range("scale", scale, high=1.0)
    as_bool("flip", flip)
    if low == high == 1 and not flip:
        return images
    count = len(images)
    # With dtype and device given, torch's defaults do not change the numbers.
    draw = partial(torch.rand, generator=generator, dtype=torch.float32, device="cpu")
    side = (low + (high - low) * draw(count)).sqrt()
    # `affine_grid` maps output coordinates to input coordinates; both run from -1 to 1, so a crop
    # with half the image's sides and its centre at 0.3 is the map x -> 0.5 x + 0.3. Centres within
    # +-(1 - side) keep the crop inside the image.
    affine = torch.zeros(count, 2, 3, dtype=torch.float32, device="cpu")
    affine[:, 0, 0] = affine[:, 1, 1] = side
    affine[:, :, 2] = (2 * draw(count, 2) - 1) * (1 - side[:, None])
    if flip:
        affine[:, 0] *= torch.where(draw(count) < 0.5, -1.0, 1.0)[:, None]
    pixels = float32_or_wider(images)
    with full_precision(pixels):  # coordinates in half precision would be off by parts of a pixel
        grid = F.affine_grid(affine.to(pixels), list(images.shape), align_corners=False)
        # A crop that touches the border samples up to half a pixel outside of the pixel centres.
        crops = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    return crops.to(images.dtype)
