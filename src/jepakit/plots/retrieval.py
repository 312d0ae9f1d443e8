"""`plot_retrieval`: what predictions for hidden blocks found among the images of a batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepakit._checks import as_int, check_tensor
from jepakit.plots._figures import (
    RIGHT,
    dimmed,
    frame,
    frame_legend,
    hide_ticks,
    new_figure,
    outline,
    pixel_masks,
    to_pixels,
)
from jepakit.plots.masks import check_masks
from jepakit.tokens import Masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_retrieval"]


def plot_retrieval(
    images: Float[Tensor, "b c h w"],
    masks: Masks,
    nearest: Int[Tensor, "b m k"],
    *,
    target: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    num_images: int = 6,
) -> "Figure":
    """Plot contexts with an outlined hidden block, and the images whose block a prediction found.

    A row shows what the student sees, the whole image, and the images whose features at the
    outlined positions are most similar to the prediction, the most similar first: the image itself
    has a solid blue frame, any other a dashed orange one. Only the outlined block was compared, so
    the rest of what was found is grey.

    Args:
        images: All images of the batch, in its order. One or three channels; values in [0, 1], or
            standardised by `mean` and `std`.
        masks: Masks of the batch, on a two-dimensional grid.
        nearest: Indices in the batch, from `target_retrieval`; the place of -1 stays empty.
        target: Which of the target blocks to show.
        mean, std: As in `plot_masks`.
        num_images: Largest number of images to show, each in a row of its own.

    Raises:
        ValueError: If `nearest` does not fit the masks, or there is no such target.

    Example:
        >>> import torch
        >>> from jepakit import RandomMask, take_tokens
        >>> from jepakit.diagnostics import target_retrieval
        >>> from jepakit.plots import plot_retrieval
        >>> images, features = torch.rand(4, 3, 8, 8), torch.randn(4, 16, 6)
        >>> masks = RandomMask((4, 4))(4)
        >>> pred = take_tokens(features, masks.targets)  # in place of a predictor's
        >>> found = target_retrieval(pred, features, masks.targets, k=2)
        >>> figure = plot_retrieval(images, masks, found.nearest)
        >>> len(figure.axes)  # 4 rows of context, image and 2 images found
        16
    """
    num_images = as_int("num_images", num_images, minimum=1)
    check_masks(images, masks)
    check_tensor("nearest", nearest)
    if nearest.dim() != 3 or nearest.shape[:2] != masks.targets.shape[:2] or not nearest.numel():
        raise ValueError(
            f"nearest {tuple(nearest.shape)}: must be {[*masks.targets.shape[:2], 'k']}, for each "
            "target of masks"
        )
    is_integer = nearest.dtype in (torch.int64, torch.int32)
    if not is_integer or nearest.min() < -1 or nearest.max() >= len(images):
        raise ValueError(f"nearest: must be indices of the {len(images)} images, or -1")
    target = as_int("target", target, minimum=0, maximum=nearest.shape[1] - 1)
    pixels = to_pixels("images", images, mean, std)
    count, (height, width) = min(num_images, len(images)), pixels.shape[1:3]
    contexts = pixel_masks(masks.context[:count], (height, width))
    blocks = pixel_masks(masks.targets[:count], (height, width))[:, target]
    found = nearest[:count, target].tolist()
    columns = 2 + len(found[0])
    side = 1.4 * height / width
    figure, axes = new_figure(count, columns, 1.4 * columns + 0.2, side * count + 0.7)
    hide_ticks(axes.flat)
    grey = dimmed(pixels)
    for own, (row, context, block) in enumerate(zip(axes, contexts, blocks, strict=True)):
        row[0].imshow(torch.where(context.unsqueeze(-1), pixels[own], grey[own]).numpy())
        row[1].imshow(pixels[own].numpy())
        for ax in row[:2]:
            outline(ax, block, RIGHT, linewidth=1.8)
        for ax, other in zip(row[2:], found[own], strict=True):
            if other < 0:
                ax.axis("off")
                continue
            ax.imshow(torch.where(block.unsqueeze(-1), pixels[other], grey[other]).numpy())
            outline(ax, block, "white", linewidth=1.0)
            frame(ax, other == own)
    titles = ["context", "image", *(f"found {place}" for place in range(1, columns - 1))]
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize="medium")
    frame_legend(figure, "its own image", "another image")
    return figure
