"""`plot_neighbours`: images and those that several encoders find most similar to them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float, Int, Integer
from torch import Tensor

from jepakit._checks import as_int, check_tensor, type_name
from jepakit.plots._figures import frame, frame_legend, hide_ticks, new_figure, to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_neighbours"]


def plot_neighbours(
    queries: Float[Tensor, "b c h w"],
    gallery: Float[Tensor, "n c h w"],
    neighbours: Mapping[str, Int[Tensor, "b _"]],
    *,
    labels: Integer[Tensor, "b"] | None = None,
    gallery_labels: Integer[Tensor, "n"] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    num_queries: int = 6,
) -> "Figure":
    """Plot query images, one a row, and beside each the nearest images by several encoders.

    Args:
        queries: One or three channels; values in [0, 1], or standardised by `mean` and `std`.
        gallery: The images that were searched.
        neighbours: For each encoder's name, such as "pixels", "untrained" and "trained", indices
            of gallery images, the nearest first, from `nearest_neighbours`.
        labels, gallery_labels: Class of each image, both or neither. A neighbour of the query's
            class has a solid blue frame, any other a dashed orange one.
        mean, std: As in `plot_masks`.
        num_queries: Largest number of queries to show.

    Raises:
        ValueError: If `neighbours` is empty, an index is outside of the gallery, only one of
            `labels` and `gallery_labels` is given, or shapes do not fit.

    Example:
        >>> import torch
        >>> from jepakit.plots import plot_neighbours
        >>> queries, gallery = torch.rand(2, 1, 8, 8), torch.rand(9, 1, 8, 8)
        >>> found = {"pixels": torch.tensor([[0, 4], [7, 3]]), "a": torch.tensor([[5], [2]])}
        >>> figure = plot_neighbours(queries, gallery, found)
        >>> len(figure.axes)  # 2 rows of a query and 2 + 1 neighbours
        8
    """
    num_queries = as_int("num_queries", num_queries, minimum=1)
    check_tensor("queries", queries)
    check_tensor("gallery", gallery)
    if not isinstance(neighbours, Mapping):
        kind = type_name(neighbours)
        raise TypeError(f"neighbours: must be a mapping of names to indices, got {kind}")
    if not neighbours:
        raise ValueError("neighbours={}: must hold the indices of at least one encoder")
    for name, indices in neighbours.items():
        _check_indices(f"neighbours[{name!r}]", indices, len(queries), len(gallery))
    if (labels is None) != (gallery_labels is None):
        raise ValueError("labels and gallery_labels: must both be given, or neither")
    for name, given, images in (
        ("labels", labels, queries),
        ("gallery_labels", gallery_labels, gallery),
    ):
        if given is not None and given.shape != (len(images),):
            raise ValueError(f"{name} {tuple(given.shape)}: must be one for each image")
    shown = to_pixels("queries", queries[:num_queries], mean, std)
    # An empty column before each encoder's images sets them apart.
    sizes = [1.0] + [
        size for each in neighbours.values() for size in [0.25] + [1.0] * each.shape[1]
    ]
    height = 1.1 * shown.shape[1] / shown.shape[2]
    size = 1.1 * sum(sizes) + 0.2, height * len(shown) + 0.9
    figure, axes = new_figure(len(shown), len(sizes), *size, width_ratios=sizes)
    hide_ticks(axes.flat)
    axes[0, 0].set_title("query", loc="left", fontsize="medium")
    for row, pixels in zip(axes, shown, strict=True):
        row[0].imshow(pixels.numpy())
    first = 1
    for name, indices in neighbours.items():
        count = indices.shape[1]
        for ax in axes[:, first]:
            ax.remove()
        axes[0, first + 1].set_title(name, loc="left", fontsize="medium")
        for query, row in enumerate(axes[:, first + 1 : first + 1 + count]):
            found = indices[query].to(gallery.device)
            images = to_pixels("gallery", gallery[found], mean, std)
            for ax, index, pixels in zip(row, found.tolist(), images, strict=True):
                ax.imshow(pixels.numpy())
                if labels is not None and gallery_labels is not None:
                    frame(ax, bool(labels[query] == gallery_labels[index]))
        first += 1 + count
    if labels is not None:
        frame_legend(figure, "same class", "another class")
    return figure


def _check_indices(name: str, indices: Tensor, num_queries: int, num_images: int) -> None:
    check_tensor(name, indices)
    if indices.dim() != 2 or len(indices) != num_queries or indices.shape[1] == 0:
        shape = tuple(indices.shape)
        raise ValueError(f"{name} {shape}: must be [{num_queries}, k], a row for each query")
    if indices.is_floating_point() or indices.min() < 0 or indices.max() >= num_images:
        raise ValueError(f"{name}: must be indices of the {num_images} gallery images")
