"""`plot_masks`: what is seen and what is predicted, on images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from jepakit.plots._figures import TARGETS, bare, matplotlib
from jepakit.tokens import Masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_masks"]


def plot_masks(images: Float[Tensor, "b c h w"], masks: Masks, *, columns: int = 6) -> "Figure":
    """Images with what the student sees and what it predicts.

    Each column is one image: as it is, its context (the rest is greyed out) and its target blocks.

    Args:
        images: Values in [0, 1], one or three channels.
        masks: On a two-dimensional grid, of the same batch.
        columns: How many images to show at most.

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
    plt, colors = matplotlib()
    if len(masks.context.grid_size) != 2 or len(images) != masks.context.shape[0]:
        raise ValueError(
            f"masks on the grid {masks.context.grid_size} for a batch of {masks.context.shape[0]}: "
            f"must be two-dimensional, for the {len(images)} images"
        )
    count, size = min(columns, len(images)), images.shape[-2:]
    context = _on_pixels(masks.context.to_mask()[:count], masks.context.grid_size, size)
    targets = _on_pixels(masks.targets.to_mask()[:count], masks.context.grid_size, size)
    figure: Figure
    figure, axes = plt.subplots(
        3, count, figsize=(1.5 * count + 0.6, 4.8), squeeze=False, layout="constrained"
    )
    for column in range(count):
        picture = images[column].detach().float().cpu().clamp(0, 1)
        picture = (
            picture.expand(3, -1, -1).permute(1, 2, 0)
            if len(picture) == 1
            else picture.permute(1, 2, 0)
        )
        seen = torch.where(context[column, :, :, None], picture, 0.35 + 0.15 * picture)
        axes[0, column].imshow(picture.numpy())
        axes[1, column].imshow(seen.numpy())
        axes[2, column].imshow(0.35 + 0.15 * picture.numpy())
        for number, block in enumerate(targets[column]):
            red, green, blue = colors.to_rgb(TARGETS[number % len(TARGETS)])
            tint = torch.tensor([red, green, blue, 0.75], device="cpu") * block[:, :, None]
            axes[2, column].imshow(tint.numpy())
    for row, label in enumerate(("image", "context", "targets")):
        axes[row, 0].set_ylabel(label)
    bare(axes.flat)
    return figure


def _on_pixels(masks: Tensor, grid_size: tuple[int, ...], size: Sequence[int]) -> Tensor:
    grid = masks.reshape(len(masks), -1, *grid_size).float().cpu()
    pixels = F.interpolate(grid, size=tuple(size), mode="nearest").bool()
    return pixels.squeeze(1) if masks.dim() == 2 else pixels
