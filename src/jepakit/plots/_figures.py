"""Shared by all plots: figures, colours, images as pixels, masks and outlines on images."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from jepakit._checks import as_numbers, check_floating
from jepakit.tokens import TokenSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct for colour-blind readers, on light and dark pages.
TARGET_COLOURS = ("#E69F00", "#D55E00", "#CC79A7", "#F0E442")
RIGHT, WRONG = "#0072B2", "#D55E00"
_DASHES = (0, (2, 1))

_OVERSHOOT = 0.1  # beyond [0, 1], by interpolation


def new_figure(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> "tuple[Figure, Any]":
    """An empty figure of a size in inches, and its axes `[rows, columns]`."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("jepakit.plots needs matplotlib: pip install 'jepakit[plots]'") from error
    size = (width, height)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def to_pixels(
    name: str,
    images: Float[Tensor, "b c h w"],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Float[Tensor, "b h w 3"]:
    """Pixels in [0, 1] for `imshow`, on the CPU: standardisation undone, grey as three channels."""
    check_floating(name, images)
    shape = tuple(images.shape)
    if images.dim() != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(f"{name} {shape}: must be [b, c, h, w] with 1 or 3 channels")
    pixels = images.detach().float().cpu()
    if mean is None and std is None:
        low, high = torch.stack(torch.aminmax(pixels)).tolist()
        if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):  # also for NaN
            raise ValueError(
                f"{name}: must lie in [0, 1], got values from {low:.3g} to {high:.3g}; for "
                "standardised images give the mean and std that standardised them"
            )
    else:
        scale, offset = as_numbers("std", std, positive=True), as_numbers("mean", mean)
        if not len(scale) == len(offset) == shape[1]:
            rule = f"must be one number each for the {shape[1]} channels of {name}"
            raise ValueError(f"mean={offset}, std={scale}: {rule}")
        pixels = pixels * torch.tensor(scale).view(-1, 1, 1) + torch.tensor(offset).view(-1, 1, 1)
    return repeat(pixels.clamp(0, 1), "b c h w -> b h w (repeats c)", repeats=3 // shape[1])


def dimmed(pixels: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """Pixels as hidden ones are shown: grey, with a trace of the image."""
    return 0.35 + 0.15 * pixels.mean(dim=-1, keepdim=True).expand_as(pixels)


def pixel_masks(tokens: TokenSet, image_size: Sequence[int]) -> Bool[Tensor, "*b h w"]:
    """Masks of a token set on a two-dimensional grid, at an image's resolution, on the CPU."""
    batch = tokens.shape[:-1]
    grid = tokens.to_mask().cpu().float().reshape(1, batch.numel(), *tokens.grid_size)
    pixels = F.interpolate(grid, size=tuple(image_size), mode="nearest").bool()
    return pixels.view(*batch, *image_size)


def outline(ax: Any, mask: Bool[Tensor, "h w"], colour: Any, *, linewidth: float = 1.4) -> None:
    """Draw the borders of a mask of pixels."""
    from matplotlib.collections import LineCollection

    # Pixel (row, column) covers column - 0.5 to column + 0.5. A border runs along the left side of
    # a pixel where the mask differs from the pixel to the left, and along the top likewise.
    padded = F.pad(mask, (1, 1, 1, 1))
    left = (padded[1:-1, 1:] != padded[1:-1, :-1]).nonzero().double() - 0.5
    top = (padded[1:, 1:-1] != padded[:-1, 1:-1]).nonzero().double() - 0.5
    segments = [[(x, y), (x, y + 1)] for y, x in left.tolist()]
    segments += [[(x, y), (x + 1, y)] for y, x in top.tolist()]
    lines = LineCollection(segments, colors=[colour], linewidths=linewidth, capstyle="projecting")
    ax.add_collection(lines, autolim=False)


def frame(ax: Any, right: bool) -> None:
    """Frame an image to show whether it is the right one: by colour, and dashed if it is not."""
    for spine in ax.spines.values():
        spine.set(color=RIGHT if right else WRONG, linewidth=2.5)
        # Caps that project, a spine's default, fill the gaps of dashes.
        spine.set(linestyle="-" if right else _DASHES, capstyle="projecting" if right else "butt")


def frame_legend(figure: "Figure", right: str, wrong: str) -> None:
    """Explain the frames below a figure."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=RIGHT, lw=2.5),
        Line2D([], [], color=WRONG, lw=2.5, ls=_DASHES),
    ]
    figure.legend(lines, [right, wrong], loc="outside lower center", ncols=2, frameon=False)


def hide_ticks(axes: Iterable[Any]) -> None:
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
