"""`plot_masks`: contexts and targets on images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from jepakit._checks import as_int, check_tensor, type_name
from jepakit.plots._figures import TARGET_COLOURS, hide_ticks, new_figure, to_rgb
from jepakit.tokens import Masks, TokenSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_masks"]


def plot_masks(images: Float[Tensor, "b c h w"], masks: Masks, *, num_images: int = 6) -> "Figure":
    """Plot images as they are, below them their contexts, and their target blocks in colours.

    Args:
        images: Values in [0, 1], one or three channels.
        masks: Masks of the same batch, on a two-dimensional grid.
        num_images: Largest number of images to show, each in a column of its own.

    Raises:
        ValueError: If the grid is not two-dimensional or the batch sizes differ.

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
    check_tensor("images", images)
    if not isinstance(masks, Masks):
        raise TypeError(f"masks: must be jepakit.Masks, got {type_name(masks)}")
    if len(masks.grid_size) != 2 or len(images) != len(masks):
        raise ValueError(
            f"masks on the grid {masks.grid_size} for a batch of {len(masks)}: "
            f"must be two-dimensional, for the {len(images)} images"
        )
    count, image_size = min(num_images, len(images)), images.shape[-2:]
    contexts = _pixel_masks(masks.context[:count], image_size)
    targets = _pixel_masks(masks.targets[:count], image_size)
    figure, axes = new_figure(3, count, 1.5 * count + 0.6, 4.8)
    from matplotlib.colors import to_rgba

    for column in range(count):
        pixels = to_rgb(images[column])
        grey = 0.35 + 0.15 * pixels
        axes[0, column].imshow(pixels.numpy())
        axes[1, column].imshow(torch.where(contexts[column, :, :, None], pixels, grey).numpy())
        axes[2, column].imshow(grey.numpy())
        for number, block in enumerate(targets[column]):
            # Blocks are translucent, so that overlaps stay visible; outside of a block alpha is 0.
            colour = to_rgba(TARGET_COLOURS[number % len(TARGET_COLOURS)], alpha=0.75)
            rgba = torch.tensor(colour, device="cpu") * block[:, :, None]
            axes[2, column].imshow(rgba.numpy())
    for row, label in enumerate(("image", "context", "targets")):
        axes[row, 0].set_ylabel(label)
    hide_ticks(axes.flat)
    return figure


def _pixel_masks(tokens: TokenSet, image_size: Sequence[int]) -> Bool[Tensor, "b *m h w"]:
    """Masks of a token set at the images' resolution, on the CPU."""
    batch = tokens.shape[:-1]
    grid = tokens.to_mask().cpu().float().reshape(1, batch.numel(), *tokens.grid_size)
    pixels = F.interpolate(grid, size=tuple(image_size), mode="nearest").bool()
    return pixels.view(*batch, *image_size)
