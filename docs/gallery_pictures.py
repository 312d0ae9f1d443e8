"""Pictures of the gallery: masks of every sampler on images, videos and sequences."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from drawing import Theme, legend, outline_blocks, paint
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from jepakit import Masks, MultiBlockMask, RandomMask
from jepakit.masking import (
    BlockMask,
    CausalMask,
    ComplementMask,
    InverseBlockMask,
    NestedMask,
    ReferenceMultiBlockMask,
    TubeMask,
    UnionMask,
    vjepa_masks,
)
from jepakit.tokens import TokenSet

COLUMNS = 8
# By name: samples side by side, and the frames of one video.
IMAGES: dict[str, Any] = {
    "multi-block": MultiBlockMask((14, 14), target_size_per="sample"),
    "reference": ReferenceMultiBlockMask((14, 14)),
    "random": RandomMask((14, 14)),
    "block": BlockMask((14, 14)),
    "inverse-block": InverseBlockMask((14, 14)),
    "union": UnionMask(MultiBlockMask((14, 14), target_size_per="sample")),
    "complement": ComplementMask(MultiBlockMask((14, 14), target_size_per="sample")),
}
VIDEOS: dict[str, list[Any]] = {
    "tube": [TubeMask(8, RandomMask((14, 14), target_ratio=0.9))],
    "multi-block-video": [
        MultiBlockMask((8, 14, 14), temporal_scale=(0.3, 0.5), target_scale=(0.2, 0.3))
    ],
    "vjepa": [vjepa_masks((8, 14, 14))],
    "causal": [CausalMask((8, 14, 14), num_context_steps=(4, 4), num_target_steps=2)],
}
# Videos with several targets, which are outlined.
OUTLINED = ("multi-block-video",)
SEQUENCES = {
    "MultiBlockMask": MultiBlockMask((64,), target_size_per="sample", target_scale=(0.1, 0.15)),
    "RandomMask": RandomMask((64,)),
    "CausalMask": CausalMask((64,), num_targets=3, num_target_steps=6, context_size_per="sample"),
}


class GridMasks(NamedTuple):
    """Context and union of the targets as masks `[b, *grid_size]`."""

    context: torch.Tensor
    targets: torch.Tensor


def on_grid(masks: Masks) -> GridMasks:
    shape = (len(masks), *masks.grid_size)
    union = masks.targets.to_mask().any(dim=1)
    return GridMasks(masks.context.to_mask().view(shape), union.view(shape))


def role_legend(figure: Figure, theme: Theme) -> None:
    entries = [(theme.context, "context"), (theme.target, "target"), (theme.hidden, "neither")]
    legend(figure, entries)


def images(name: str, theme: Theme) -> Figure:
    sampler = IMAGES[name]
    masks = sampler(COLUMNS, generator=torch.Generator().manual_seed(1))
    figure, axes = plt.subplots(1, COLUMNS, figsize=(8.4, 1.5))
    context, targets = on_grid(masks)
    for k, ax in enumerate(axes):
        layers = [(context[k], theme.context), (targets[k], theme.target)]
        paint(ax, layers, theme.hidden, theme)
        if isinstance(sampler, MultiBlockMask | ReferenceMultiBlockMask):
            outline_blocks(ax, masks.targets[k], theme)
    role_legend(figure, theme)
    return figure


def video(name: str, theme: Theme) -> Figure:
    rows: list[Masks] = []
    for sampler in VIDEOS[name]:
        drawn = sampler(1, generator=torch.Generator().manual_seed(3))
        rows += drawn if isinstance(drawn, list) else [drawn]
    figure, axes = plt.subplots(
        len(rows), COLUMNS, figsize=(8.4, 1.25 * len(rows) + 0.4), squeeze=False
    )
    for row, masks in zip(axes, rows, strict=True):
        context, targets = on_grid(masks)
        for frame, ax in enumerate(row):
            layers = [(context[0, frame], theme.context), (targets[0, frame], theme.target)]
            paint(ax, layers, theme.hidden, theme)
            if name in OUTLINED:
                blocks = masks.targets.to_mask()[0].unflatten(1, (8, 14 * 14))[:, frame]
                present = TokenSet.from_mask(blocks[blocks.any(dim=1)], (14, 14))
                outline_blocks(ax, present, theme)
    for frame, ax in enumerate(axes[0]):
        ax.set_title(f"frame {frame}", fontsize=8)
    role_legend(figure, theme)
    return figure


def nested(theme: Theme) -> Figure:
    sampler = NestedMask((14, 14), MultiBlockMask((4, 4), target_size_per="sample"))
    masks = sampler(4, generator=torch.Generator().manual_seed(0))
    figure, axes = plt.subplots(3, 4, figsize=(6.0, 4.6))
    for level, row in enumerate(axes):
        coarse = masks.coarsen(level)
        context, targets = on_grid(coarse)
        for k, ax in enumerate(row):
            paint(
                ax, [(context[k], theme.context), (targets[k], theme.target)], theme.hidden, theme
            )
        height, width = coarse.grid_size
        row[0].set_ylabel(f"level {level}\n{height} x {width}", fontsize=8.5)
    role_legend(figure, theme)
    return figure


def sequences(theme: Theme) -> Figure:
    figure, axes = plt.subplots(len(SEQUENCES), 1, figsize=(8.4, 2.6))
    for ax, (name, sampler) in zip(axes, SEQUENCES.items(), strict=True):
        masks = sampler(4, generator=torch.Generator().manual_seed(2))
        context, targets = on_grid(masks)
        paint(ax, [(context, theme.context), (targets, theme.target)], theme.hidden, theme)
        ax.set_aspect("auto")
        ax.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    role_legend(figure, theme)
    return figure


PICTURES: dict[str, Callable[[Theme], Figure]] = {
    "gallery-nested": nested,
    "gallery-sequences": sequences,
    **{f"gallery-{name}": partial(images, name) for name in IMAGES},
    **{f"gallery-{name}": partial(video, name) for name in VIDEOS},
}
