"""`plot_patch_pca`: patch features as colours."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from jepakit.plots._figures import bare, matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_patch_pca"]


def plot_patch_pca(
    images: Float[Tensor, "b c h w"],
    features: Mapping[str, Float[Tensor, "b _ _"]],
    grid_size: tuple[int, int] | Sequence[tuple[int, int]],
    *,
    columns: int = 6,
) -> "Figure":
    """The first three principal components of patch features as colours, below the images.

    Components are computed over all patches of the batch, so one colour means the same in every
    image of a row (rows differ).

    Args:
        images: Values in [0, 1], one or three channels.
        features: For each row's name, patch tokens of these images, `[b N d]`.
        grid_size: `(H, W)` of the tokens, or one for each row, as in `pyramid.grid_sizes`.
        columns: How many images to show at most.

    Raises:
        ValueError: If `features` do not fit the images and the grids, or these are not as many.

    Example:
        >>> import torch
        >>> from jepakit.plots import plot_patch_pca
        >>> figure = plot_patch_pca(torch.rand(2, 3, 32, 32), {"a": torch.randn(2, 16, 8)}, (4, 4))
        >>> len(figure.axes)
        4

    Source:
        As in DINOv2 (arXiv:2304.07193), figure 1, without its foreground threshold.
    """
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
    grids = _one_each(grid_size, len(features))
    rows = zip(features.items(), grids, strict=True)
    for row, ((name, tokens), (height, width)) in enumerate(rows, start=1):
        if tokens.shape[:2] != (len(images), height * width):
            raise ValueError(
                f"features[{name!r}] {tuple(tokens.shape)}: must hold the tokens of {len(images)} "
                f"images on the grid {(height, width)}"
            )
        colours = _principal_colours(tokens.detach().float().cpu())
        for column in range(count):
            axes[row, column].imshow(colours[column].view(height, width, 3).numpy())
        axes[row, 0].set_ylabel(name)
    bare(axes.flat)
    return figure


def _one_each(
    grid_size: tuple[int, int] | Sequence[tuple[int, int]], rows: int
) -> list[tuple[int, int]]:
    if isinstance(grid_size[0], int):
        return [cast(tuple[int, int], grid_size)] * rows
    grids = list(cast(Sequence[tuple[int, int]], grid_size))
    if len(grids) != rows:
        raise ValueError(f"grid_size={grids}: must be one, or one for each of the {rows} features")
    return grids


def _principal_colours(tokens: Tensor) -> Tensor:
    flat = tokens.flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    scores = flat @ directions[:3].T
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    scores = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return F.pad(scores, (0, 3 - scores.shape[1])).view(*tokens.shape[:2], 3)
