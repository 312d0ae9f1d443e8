"""Pictures of the pyramid: cells of its levels, pooled values, and the reach of fusion."""

from collections.abc import Callable

import torch
from drawing import Theme, hide_frame, legend, paint
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from jepakit import HierarchicalPyramid, MultiBlockMask, TokenSet

GRID = (14, 14)


def on_finest(values: torch.Tensor, level: int) -> torch.Tensor:
    """Repeat the cells of a level over the patches that they cover; the border cuts some off."""
    large = values.repeat_interleave(2**level, dim=0).repeat_interleave(2**level, dim=1)
    return large[: GRID[0], : GRID[1]]


def cells(theme: Theme) -> Figure:
    masks = MultiBlockMask(GRID, target_size_per="sample")(
        4, generator=torch.Generator().manual_seed(5)
    )
    context = masks.context
    levels = {
        rule: HierarchicalPyramid(GRID, 1, valid_if=rule)(torch.ones(*context.shape, 1), context)
        for rule in ("any", "all")
    }
    figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.5))
    sample = 1
    for number, ax in enumerate(axes[:3]):
        shown = {}
        for rule in levels:
            tokens = levels[rule][number].tokens
            shown[rule] = tokens.to_mask()[sample].view(*tokens.grid_size)
        colours = {"any": theme.third if number else theme.context, "all": theme.context}
        layers = [(on_finest(shown[rule], number), colours[rule]) for rule in shown]
        paint(ax, layers, theme.hidden, theme)
        for k in range(0, 14, 2**number) if number else ():
            ax.axvline(k - 0.5, color=theme.page, linewidth=2.2)
            ax.axhline(k - 0.5, color=theme.page, linewidth=2.2)
        height, width = shown["any"].shape
        ax.set_title(f"level {number}, {height} x {width}", fontsize=9)
    ax = axes[3]
    listed = torch.zeros(GRID, dtype=torch.bool)
    listed.view(-1)[context.idx[sample, 32:36]] = True
    layers = [(context[sample].to_mask().view(GRID), theme.context), (listed, theme.target)]
    paint(ax, layers, theme.hidden, theme)
    ax.set_title("not this: four in list order", fontsize=9)
    entries = [
        (theme.context, "all positions in the cell are context"),
        (theme.third, "some are"),
        (theme.target, "one window of a pool along the token list"),
    ]
    legend(figure, entries)
    return figure


def scene() -> torch.Tensor:
    """Values on 14 x 14 patches: a disc, a stripe and noise."""
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    disc = ((rows - 4.5) ** 2 + (columns - 5) ** 2 < 14).float()
    stripe = ((rows - columns).abs() < 1.2).float() * 0.7
    noise = torch.rand(GRID, generator=torch.Generator().manual_seed(1)) * 0.35
    return torch.maximum(disc, stripe) + noise


def pools(theme: Theme) -> Figure:
    field = scene()
    ramp = LinearSegmentedColormap.from_list("ramp", [theme.hidden, theme.context])
    half = torch.rand(196, generator=torch.Generator().manual_seed(4)) < 0.5
    tokens = TokenSet.from_mask(half[None], GRID)
    seen = field.view(-1)[half][None, :, None]
    figure, axes = plt.subplots(2, 4, figsize=(8.4, 4.4))

    def show(ax: Axes, values: torch.Tensor, title: str) -> None:
        ax.imshow(values.numpy(), cmap=ramp, vmin=0, vmax=1.2)
        ax.set_title(title, fontsize=9)
        hide_frame(ax)

    for row, (features, where) in zip(
        axes, ((field.view(1, -1, 1), None), (seen, tokens)), strict=True
    ):
        for pool, places in (("avg", (0, 1, 2)), ("max", (3,))):
            levels = HierarchicalPyramid(GRID, 1, pool=pool)(features, where)
            for place in places:
                number = 2 if place == 3 else place
                level = levels[number]
                values = torch.full((level.tokens.num_positions,), torch.nan)
                valid = level.tokens.valid[0]
                values[level.tokens.idx[0][valid]] = level.features[0, valid, 0]
                values = on_finest(values.view(level.tokens.grid_size), number)
                show(row[place], values, f"level {number}, {pool}" if number else "level 0")
    axes[0][0].set_ylabel("all tokens", fontsize=8.5)
    axes[1][0].set_ylabel("half of them", fontsize=8.5)
    return figure


def fused(theme: Theme) -> Figure:
    """Contribution of one coarsest cell to the finest level, with constant lateral weights."""
    ramp = LinearSegmentedColormap.from_list("ramp", [theme.hidden, theme.target])
    figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.4))
    some = torch.rand(196, generator=torch.Generator().manual_seed(9)) < 0.6
    some.view(GRID)[4:8, 4:8] = True
    hot = torch.zeros(GRID)
    hot[4:8, 4:8] = 1.0
    for place, (upsample, where) in enumerate(
        (u, t) for t in (None, some) for u in ("nearest", "bilinear")
    ):
        pyramid = HierarchicalPyramid(GRID, 1, fusion="fpn-add", upsample=upsample)
        with torch.no_grad():
            for number, lateral in enumerate(pyramid.top_down.laterals):
                lateral.weight.fill_(float(number == 2))  # the coarsest level only
            if where is None:
                tokens = TokenSet.full(GRID, (1,))
            else:
                tokens = TokenSet.from_mask(where[None], GRID)
            x = hot.view(-1)[tokens.idx[0]][None, :, None]
            level = pyramid(x, tokens)[0]
        values = torch.full((196,), torch.nan)
        values[tokens.idx[0]] = level.features[0, :, 0]
        axes[place].imshow(values.view(GRID).numpy(), cmap=ramp, vmin=0, vmax=1)
        axes[place].set_title(
            f"{upsample}, {'all' if where is None else 'some'} tokens", fontsize=9
        )
        hide_frame(axes[place])
    return figure


PICTURES: dict[str, Callable[[Theme], Figure]] = {
    "pyramid-cells": cells,
    "pyramid-pools": pools,
    "pyramid-fusion": fused,
}
