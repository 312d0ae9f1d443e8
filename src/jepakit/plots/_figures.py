"""Shared by all plots: figures, colours, images as pixels, axes without ticks."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from einops import repeat
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct for colour-blind readers, on light and dark pages.
TARGET_COLOURS = ("#E69F00", "#D55E00", "#CC79A7", "#F0E442")


def new_figure(rows: int, columns: int, width: float, height: float) -> "tuple[Figure, Any]":
    """An empty figure of a size in inches, and its axes `[rows, columns]`."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("jepakit.plots needs matplotlib: pip install 'jepakit[plots]'") from error
    size = (width, height)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def to_rgb(image: Float[Tensor, "c h w"]) -> Float[Tensor, "h w 3"]:
    """Pixels for `imshow`: clipped to [0, 1], one channel repeated to three."""
    pixels = image.detach().float().cpu().clamp(0, 1)
    return repeat(pixels, "c h w -> h w (repeats c)", repeats=3 // len(pixels))


def hide_ticks(axes: Iterable[Any]) -> None:
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
