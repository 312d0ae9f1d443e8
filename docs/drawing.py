"""Shared by all pictures: themes, grids as coloured squares, legends."""

from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jepakit import TokenSet


@dataclass(frozen=True)
class Theme:
    """Colours of a light or a dark page."""

    text: str
    faint: str
    hidden: str
    context: str
    target: str
    third: str
    fourth: str
    page: str


# Blue and orange are distinct for every kind of colour vision.
THEMES = {
    "light": Theme(
        "#25292f", "#8a929c", "#e6e9ed", "#2b74b8", "#e08a2e", "#2a9d78", "#9a5fb4", "#ffffff"
    ),
    "dark": Theme(
        "#d6dae1", "#7d8590", "#2b3038", "#5fa6e6", "#f0a355", "#52c29c", "#c08bd8", "#131416"
    ),
}


def hide_frame(ax: Axes) -> None:
    """Remove ticks and spines."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def paint(ax: Axes, layers: list[tuple[torch.Tensor, str]], base: str, theme: Theme) -> None:
    """Draw a grid as squares: colour `base`, and each layer's True cells in the layer's colour."""
    height, width = layers[0][0].shape
    image = torch.tensor(to_rgb(base)).expand(height, width, 3).clone()
    for mask, colour in layers:
        image[mask] = torch.tensor(to_rgb(colour), dtype=image.dtype)
    ax.imshow(image.numpy(), interpolation="nearest")
    for k in range(1, width):
        ax.axvline(k - 0.5, color=theme.page, linewidth=0.8)
    for k in range(1, height):
        ax.axhline(k - 0.5, color=theme.page, linewidth=0.8)
    hide_frame(ax)


def outline_blocks(ax: Axes, targets: TokenSet, theme: Theme) -> None:
    """Outline the target blocks of a sample, to tell overlapping ones apart."""
    width = targets.grid_size[1]
    for idx, valid in zip(targets.idx, targets.valid, strict=True):
        first, last = int(idx[valid][0]), int(idx[valid][-1])
        corner = first % width - 0.5, first // width - 0.5
        size = last % width - first % width + 1, last // width - first // width + 1
        ax.add_patch(Rectangle(corner, *size, fill=False, ec=theme.text, lw=0.9, zorder=3))


def legend(figure: Figure, entries: list[tuple[str, str]]) -> None:
    """Add a legend of (colour, label) entries below a figure."""
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour, _ in entries]
    figure.legend(
        handles,
        [label for _, label in entries],
        loc="outside lower center",
        ncols=len(entries),
        frameon=False,
        handlelength=0.9,
        handleheight=0.9,
    )
