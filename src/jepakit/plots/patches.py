"""`plot_patch_pca`: principal components of patch features as colours."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from jepakit._checks import as_bool, as_grid_size, as_int, check_tensor, type_name
from jepakit.plots._figures import hide_ticks, new_figure, to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_patch_pca"]


def plot_patch_pca(
    images: Float[Tensor, "b c h w"],
    features: Mapping[str, Float[Tensor, "b _ _"]],
    grid_size: Sequence[int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    smooth: bool = True,
    num_images: int = 6,
) -> "Figure":
    """Plot the first three principal components of patch features as colours, below the images.

    One projection for all patches of the batch, so that a colour means the same in all images of a
    row; it does not from row to row. Each component is scaled between its 2 % and 98 % quantiles,
    so that a few outliers do not take the whole range.

    Stripes or rings that are the same in every image are position, which often holds most of the
    variance. `features - features.mean(dim=0)` removes what all images of a large batch share.

    Args:
        images: One or three channels; values in [0, 1], or standardised by `mean` and `std`.
        features: For each row's label, patch features of these images, `[b N d]`. Repeat the cells
            of a coarser level over the patches that they cover, as `examples/hjepa.py` does.
        grid_size: `(H, W)` in patches.
        mean, std: As in `plot_masks`.
        smooth: Interpolate the components to the images' size. False shows patches as squares.
        num_images: Largest number of images to show, each in a column of its own; the projection is
            that of all.

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
    as_bool("smooth", smooth)
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
    pixels = to_pixels("images", images[:num_images], mean, std)
    count, rows = len(pixels), 1 + len(features)
    side = 1.6 * pixels.shape[1] / pixels.shape[2]
    figure, axes = new_figure(rows, count, 1.6 * count + 0.4, side * rows + 0.2)
    axes[0, 0].set_ylabel("image")
    for ax, image in zip(axes[0], pixels, strict=True):
        ax.imshow(image.numpy())
    for row, (label, values) in zip(axes[1:], features.items(), strict=True):
        row[0].set_ylabel(label)
        scores = _principal_components(values.detach().cpu().double())
        maps = rearrange(scores, "b (h w) c -> b c h w", h=height)
        if smooth:
            maps = F.interpolate(maps[:count], size=pixels.shape[1:3], mode="bicubic")
        for ax, colours in zip(row, maps.clamp(0, 1), strict=False):
            ax.imshow(rearrange(colours, "c h w -> h w c").numpy())
    hide_ticks(axes.flat)
    return figure


def _principal_components(features: Float[Tensor, "b N d"]) -> Float[Tensor, "b N 3"]:
    """Scores of three principal components, 0 and 1 at their 2 % and 98 % quantiles."""
    rows = rearrange(features, "b n d -> (b n) d")
    rows = rows - rows.mean(dim=0)
    # In float64, which autocast leaves as it is. The largest eigenvalues come last.
    directions = torch.linalg.eigh(rows.T @ rows)[1].flip(1)[:, :3]
    # A direction's sign is arbitrary: its largest entry is made positive, the same in every run.
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    scores = rows @ (directions * largest.sign())
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    scores = (scores - low) / (high - low).clamp_min(1e-12)
    # Features of fewer than three dimensions leave the last colour channels dark.
    return F.pad(scores, (0, 3 - scores.shape[1])).view(*features.shape[:2], 3)
