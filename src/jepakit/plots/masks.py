"""`plot_masks`: contexts and targets on images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import as_int, check_tensor, type_name
from jepakit.plots._figures import (
    TARGET_COLOURS,
    dimmed,
    hide_ticks,
    new_figure,
    outline,
    pixel_masks,
    to_pixels,
)
from jepakit.tokens import Masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_masks", "plot_masks"]


def plot_masks(
    images: Float[Tensor, "b c h w"],
    masks: Masks,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    num_images: int = 6,
) -> "Figure":
    """Plot images as they are, below them what the context shows of them, and their targets.

    What is hidden is grey. Each target block has an outline of its own colour, so that overlaps
    stay visible.

    Args:
        images: One or three channels; values in [0, 1], or standardised by `mean` and `std`.
        masks: Masks of the same batch, on a two-dimensional grid.
        mean, std: One number for each channel, as in `PixelStatistics`, if the images were
            standardised by them.
        num_images: Largest number of images to show, each in a column of its own.

    Raises:
        ValueError: If the grid is not two-dimensional, the batch sizes differ, or the images are
            outside of [0, 1] without `mean` and `std`.

    Example:
        >>> import torch
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.plots import plot_masks
        >>> figure = plot_masks(torch.rand(2, 3, 48, 48), MultiBlockMask((12, 12))(2))
        >>> len(figure.axes)
        6

    Source:
        After figure 4 of I-JEPA (arXiv:2301.08243).
    """
    num_images = as_int("num_images", num_images, minimum=1)
    check_masks(images, masks)
    pixels = to_pixels("images", images[:num_images], mean, std)
    count, height, width = pixels.shape[:3]
    contexts = pixel_masks(masks.context[:count], (height, width))
    targets = pixel_masks(masks.targets[:count], (height, width))
    size = 1.6 * count + 0.4, 1.6 * 3 * height / width + 0.2
    figure, axes = new_figure(3, count, *size)
    grey = dimmed(pixels)
    for column in range(count):
        image, context, blocks = axes[:, column]
        shown = targets[column].any(dim=0)
        image.imshow(pixels[column].numpy())
        for ax, mask in ((context, contexts[column]), (blocks, shown)):
            ax.imshow(torch.where(mask.unsqueeze(-1), pixels[column], grey[column]).numpy())
        for number, block in enumerate(targets[column]):
            outline(blocks, block, TARGET_COLOURS[number % len(TARGET_COLOURS)])
    for row, label in enumerate(("image", "context", "targets")):
        axes[row, 0].set_ylabel(label)
    hide_ticks(axes.flat)
    return figure


def check_masks(images: Tensor, masks: Masks) -> None:
    """Raise unless these are masks of the images, on a two-dimensional grid."""
    check_tensor("images", images)
    if not isinstance(masks, Masks):
        raise TypeError(f"masks: must be jepakit.Masks, got {type_name(masks)}")
    if len(masks.grid_size) != 2 or len(images) != len(masks):
        raise ValueError(
            f"masks on the grid {masks.grid_size} for a batch of {len(masks)}: "
            f"must be two-dimensional, for the {len(images)} images"
        )
