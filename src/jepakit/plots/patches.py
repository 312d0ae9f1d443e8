"""`plot_patch_pca`: patch features as colours."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from jepakit._checks import check_grid_size, check_int
from jepakit.plots._figures import bare, matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_patch_pca"]


def plot_patch_pca(
    images: Float[Tensor, "b c h w"],
    features: Mapping[str, Float[Tensor, "b _ _"]],
    grid_size: tuple[int, int],
    *,
    columns: int = 6,
) -> "Figure":
    """The first three principal components of patch features as colours, below the images.

    Components are computed over all patches of the batch, so one colour means the same in every
    image of a row (rows differ).

    Args:
        images: Values in [0, 1], one or three channels.
        features: For each row's name, patch tokens of these images, `[b N d]`. Cells of a coarser
            level are repeated over the patches that they cover, as in `examples/hjepa.py`.
        grid_size: `(H, W)` of the tokens.
        columns: How many images to show at most.

    Raises:
        ValueError: If there are no `features` or they do not fit the images and the grid, or
            `columns` is below 1.

    Example:
        >>> import torch
        >>> from jepakit.plots import plot_patch_pca
        >>> figure = plot_patch_pca(torch.rand(2, 3, 32, 32), {"a": torch.randn(2, 16, 8)}, (4, 4))
        >>> len(figure.axes)
        4

    Source:
        As in DINOv2 (arXiv:2304.07193), figure 1, without its foreground threshold.
    """
    check_grid_size("grid_size", grid_size)
    check_int("columns", columns, minimum=1)
    if not features:
        raise ValueError("features={}: must hold at least one row")
    height, width = grid_size
    for name, tokens in features.items():
        if tokens.shape[:2] != (len(images), height * width):
            raise ValueError(
                f"features[{name!r}] {tuple(tokens.shape)}: must hold the tokens of {len(images)} "
                f"images on the grid {grid_size}"
            )
    plt, _ = matplotlib()
    count = min(columns, len(images))
    figure: Figure
    figure, axes = plt.subplots(
        1 + len(features),
        count,
        figsize=(1.5 * count + 0.6, 1.6 * (1 + len(features))),
        squeeze=False,
        layout="constrained",
    )
    for column in range(count):
        picture = images[column].detach().float().cpu().clamp(0, 1).permute(1, 2, 0)
        axes[0, column].imshow(picture.expand(-1, -1, 3).numpy())
    axes[0, 0].set_ylabel("image")
    for row, (name, tokens) in enumerate(features.items(), start=1):
        colours = _principal_colours(tokens.detach().cpu().double())  # autocast leaves it alone
        for column in range(count):
            axes[row, column].imshow(colours[column].view(height, width, 3).numpy())
        axes[row, 0].set_ylabel(name)
    bare(axes.flat)
    return figure


def _principal_colours(tokens: Tensor) -> Tensor:
    flat = tokens.flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    scores = flat @ directions[:3].T
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    scores = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return F.pad(scores, (0, 3 - scores.shape[1])).view(*tokens.shape[:2], 3)
