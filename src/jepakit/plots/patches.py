"""`plot_patch_pca`: principal components of patch features as colours."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from jepakit._checks import as_grid_size, as_int, check_tensor, type_name
from jepakit.plots._figures import hide_ticks, new_figure, to_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_patch_pca"]


def plot_patch_pca(
    images: Float[Tensor, "b c h w"],
    features: Mapping[str, Float[Tensor, "b _ _"]],
    grid_size: Sequence[int],
    *,
    num_images: int = 6,
) -> "Figure":
    """Plot the first three principal components of patch features as colours, below the images.

    Components are computed over all patches of the batch, so that a colour means the same in all
    images of a row; it does not from row to row.

    Args:
        images: Values in [0, 1], one or three channels.
        features: For each row's label, patch features of these images, `[b N d]`. Repeat the cells
            of a coarser level over the patches that they cover, as `examples/hjepa.py` does.
        grid_size: `(H, W)` in patches.
        num_images: Largest number of images to show, each in a column of its own.

    Raises:
        ValueError: If `features` is empty or does not fit the images and the grid.

    Example:
        >>> import torch
        >>> from jepakit.plots import plot_patch_pca
        >>> figure = plot_patch_pca(torch.rand(2, 3, 32, 32), {"a": torch.randn(2, 16, 8)}, (4, 4))
        >>> len(figure.axes)
        4

    Source:
        DINOv2 (arXiv:2304.07193), figure 1. Difference: the background is not removed by a
        threshold on the first component.
    """
    height, width = as_grid_size("grid_size", grid_size, num_axes=(2,))
    num_images = as_int("num_images", num_images, minimum=1)
    check_tensor("images", images)
    if not isinstance(features, Mapping):
        kind = type_name(features)
        raise TypeError(f"features: must be a mapping of labels to patch features, got {kind}")
    if not features:
        raise ValueError("features={}: must hold at least one row")
    for label, values in features.items():
        check_tensor(f"features[{label!r}]", values)
        if values.shape[:2] != (len(images), height * width):
            raise ValueError(
                f"features[{label!r}] {tuple(values.shape)}: must hold the patch features of "
                f"{len(images)} images on the grid {(height, width)}"
            )
    count, rows = min(num_images, len(images)), 1 + len(features)
    figure, axes = new_figure(rows, count, 1.5 * count + 0.6, 1.6 * rows)
    axes[0, 0].set_ylabel("image")
    for ax, image in zip(axes[0], images, strict=False):
        ax.imshow(to_rgb(image).numpy())
    for row, (label, values) in zip(axes[1:], features.items(), strict=True):
        row[0].set_ylabel(label)
        colours = _pca_colours(values.detach().cpu().double())  # autocast leaves float64 as it is
        for ax, colour in zip(row, colours, strict=False):
            ax.imshow(rearrange(colour, "(h w) c -> h w c", h=height).numpy())
    hide_ticks(axes.flat)
    return figure


def _pca_colours(features: Float[Tensor, "b N d"]) -> Float[Tensor, "b N 3"]:
    """Scores of three principal components, each scaled to [0, 1] between its 2 % quantiles."""
    rows = rearrange(features, "b n d -> (b n) d")
    rows = rows - rows.mean(dim=0)
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    scores = rows @ directions[:3].T
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    scores = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    # Features of fewer than three dimensions leave the last colour channels dark.
    return F.pad(scores, (0, 3 - scores.shape[1])).view(*features.shape[:2], 3)
