"""Pictures of the docs, drawn with the library, each for the light and the dark theme."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch

matplotlib.use("svg")

import architecture_pictures
import collapse_pictures
import gallery_pictures
import pyramid_pictures
import results_pictures
from drawing import THEMES, Theme, hide_frame, legend, outline_blocks, paint
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from jepakit import MultiBlockMask, RandomMask, TokenSet, plots, schedules
from jepakit.data import textured_shapes
from jepakit.diagnostics import effective_rank
from jepakit.masking import MaskAudit, ReferenceMultiBlockMask, audit_masks


def masks(theme: Theme) -> Figure:
    samplers = [
        ("MultiBlockMask", MultiBlockMask((14, 14), target_size_per="sample")),
        ("RandomMask", RandomMask((14, 14), target_ratio=0.75)),
    ]
    figure, axes = plt.subplots(2, 6, figsize=(8.4, 3.3))
    generator = torch.Generator().manual_seed(3)
    for row, (name, sampler) in zip(axes, samplers, strict=True):
        drawn = sampler(6, generator=generator)
        context = drawn.context.to_mask().view(6, 14, 14)
        targets = drawn.targets.to_mask().any(dim=1).view(6, 14, 14)
        for k, ax in enumerate(row):
            layers = [(context[k], theme.context), (targets[k], theme.target)]
            paint(ax, layers, theme.hidden, theme)
            if name == "MultiBlockMask":
                outline_blocks(ax, drawn.targets[k], theme)
        row[0].set_ylabel(name, fontsize=8.5)
    entries = [
        (theme.context, "context: what the student sees"),
        (theme.target, "target: what is predicted"),
        (theme.hidden, "neither"),
    ]
    legend(figure, entries)
    return figure


class RoleFrequency(NamedTuple):
    """Fraction of samples in which each position has a role."""

    role: str
    batch_size: int
    frequency: torch.Tensor  # [H, W]


@cache
def role_frequencies(num_samples: int) -> list[RoleFrequency]:
    """For both roles, each in batches of 1 and of 64."""
    sampler = MultiBlockMask((14, 14))
    maps = []
    for batch_size in (1, 64):
        generator = torch.Generator().manual_seed(0)
        counts = {"context": torch.zeros(196), "target": torch.zeros(196)}
        for _ in range(num_samples // batch_size):
            drawn = sampler(batch_size, generator=generator)
            counts["context"] += drawn.context.to_mask().sum(dim=0)
            counts["target"] += drawn.targets.to_mask().any(dim=1).sum(dim=0)
        maps += [
            RoleFrequency(role, batch_size, (count / num_samples).view(14, 14))
            for role, count in counts.items()
        ]
    return sorted(maps, key=lambda one: one.role)


def frequencies(theme: Theme) -> Figure:
    figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.6))
    ramp = LinearSegmentedColormap.from_list("ramp", [theme.hidden, theme.context])
    for ax, one in zip(axes, role_frequencies(num_samples=3200), strict=True):
        shown = ax.imshow(one.frequency.numpy(), cmap=ramp, vmin=0, vmax=1)
        ax.set_title(f"{one.role}, batch {one.batch_size}", fontsize=9)
        hide_frame(ax)
    frequency_bar(figure, shown, axes)
    return figure


def frequency_bar(figure: Figure, shown: AxesImage, axes: Iterable[Axes]) -> Colorbar:
    """Add the colour bar of all maps of a row."""
    bar = figure.colorbar(shown, ax=list(axes), fraction=0.02, pad=0.02)
    bar.set_label("fraction of samples", fontsize=8.5)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)
    return bar


@cache
def photograph_crops() -> torch.Tensor:
    """Two square crops of each photograph of scikit-learn, `[4, 3, 140, 140]`."""
    photographs = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    photographs = photographs.permute(0, 3, 1, 2).float() / 255
    height, width = photographs.shape[-2:]
    crops = [photographs[..., :height], photographs[..., width - height :]]
    return F.interpolate(torch.cat(crops), (140, 140), mode="bilinear", antialias=True)


def photographs(theme: Theme) -> Figure:
    masks = MultiBlockMask((14, 14))(4, generator=torch.Generator().manual_seed(5))
    return plots.plot_masks(photograph_crops(), masks)


def textures(theme: Theme) -> Figure:
    """Four images of each class, a column each."""
    images, labels = textured_shapes(200, 1)[0].tensors
    figure, axes = plt.subplots(4, 10, figsize=(8.4, 3.5))
    for label, column in enumerate(axes.T):
        for ax, image in zip(column, images[labels == label], strict=False):
            ax.imshow(image.permute(1, 2, 0))
            ax.axis("off")
    return figure


@cache
def audit_of(sampler: MultiBlockMask | ReferenceMultiBlockMask) -> MaskAudit:
    """An audit that both themes use."""
    return audit_masks(sampler, generator=torch.Generator().manual_seed(0))


def audits(theme: Theme) -> Figure:
    return plots.plot_mask_audit(
        {
            "ReferenceMultiBlockMask": audit_of(ReferenceMultiBlockMask((14, 14))),
            "MultiBlockMask": audit_of(MultiBlockMask((14, 14))),
        }
    )


def quirks(theme: Theme) -> Figure:
    published = ReferenceMultiBlockMask((14, 14))
    off = ("prefix_truncation", "skip_last", "clip_below_grid")
    others = ("tied_aspect", "floor_area", "square_context", "relax_when_stuck")
    samplers = {"as published": published}
    samplers |= {f"{name}\noff": replace(published, **{name: False}) for name in off}
    samplers["every quirk\noff"] = replace(published, **dict.fromkeys(off + others, False))
    figure, axes = plt.subplots(1, 5, figsize=(8.4, 2.3))
    ramp = LinearSegmentedColormap.from_list("ramp", [theme.hidden, theme.context])
    ramp = ramp.with_extremes(under=theme.target)
    for ax, (name, sampler) in zip(axes, samplers.items(), strict=True):
        frequency = audit_of(sampler).context_frequency.view(14, 14)
        # Zeros lie below the scale, so they have the colour of `under`.
        shown = ax.imshow(frequency.numpy(), cmap=ramp, vmin=1e-9, vmax=0.9)
        ax.set_title(name, fontsize=8.5)
        hide_frame(ax)
    bar = frequency_bar(figure, shown, axes)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    legend(figure, [(theme.target, "never")])
    return figure


def token_set(theme: Theme) -> Figure:
    rows = torch.tensor(
        [
            [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]],
            [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]],
        ],
        dtype=torch.bool,
    )
    tokens = TokenSet.from_mask(rows.flatten(1), (4, 4))
    figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.0), width_ratios=[1, 1.75, 1, 1.75])
    for sample in range(2):
        grid, lists = axes[2 * sample : 2 * sample + 2]
        paint(grid, [(rows[sample], theme.context)], theme.hidden, theme)
        for p in range(16):
            inside = bool(rows[sample].flatten()[p])
            colour = theme.page if inside else theme.faint
            grid.text(p % 4, p // 4, str(p), ha="center", va="center", color=colour, fontsize=8.5)
        grid.set_title(f"sample {sample}", fontsize=9)
        lists.set_xlim(-1.6, tokens.shape[-1] + 0.6)
        lists.set_ylim(3.0, -0.6)
        lists.set_aspect("equal")
        lists.axis("off")
        for line, (name, values) in enumerate((("idx", tokens.idx), ("valid", tokens.valid))):
            y = line * 1.15
            lists.text(
                -0.2, y + 0.5, name, ha="right", va="center", family="monospace", fontsize=8.5
            )
            for k, value in enumerate(values[sample].tolist()):
                valid = bool(tokens.valid[sample, k])
                fill = theme.context if valid else theme.hidden
                lists.add_patch(Rectangle((k + 0.03, y + 0.03), 0.94, 0.94, color=fill, lw=0))
                text = str(value) if name == "idx" else ("T" if value else "F")
                colour = theme.page if valid else theme.faint
                lists.text(
                    k + 0.5, y + 0.5, text, ha="center", va="center", color=colour, fontsize=8.5
                )
    return figure


def loop(theme: Theme) -> Figure:
    figure, ax = plt.subplots(figsize=(8.4, 2.9))
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 36)
    ax.axis("off")

    def box(x: float, y: float, width: float, label: str, under: str, colour: str) -> None:
        ax.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                8,
                boxstyle="round,pad=0,rounding_size=1.4",
                fc="none",
                ec=colour,
                lw=1.6,
            )
        )
        ax.text(x + width / 2, y + 5, label, ha="center", va="center", fontsize=9.5)
        ax.text(
            x + width / 2, y + 2.2, under, ha="center", va="center", fontsize=7.5, color=theme.faint
        )

    def arrow(*points: tuple[float, float], colour: str, dashed: bool = False) -> None:
        for start, end in pairwise(points[:-1]):
            ax.plot(*zip(start, end, strict=True), color=colour, lw=1.4, solid_capstyle="round")
        ax.add_patch(
            FancyArrowPatch(
                points[-2],
                points[-1],
                arrowstyle="-|>",
                mutation_scale=11,
                color=colour,
                lw=1.4,
                ls=(0, (3, 2)) if dashed else "-",
                shrinkA=0,
                shrinkB=0,
            )
        )

    box(0, 13, 13, "images", "[b, 3, H, W]", theme.faint)
    box(24, 24, 19, "MaskedViT", "the context only", theme.context)
    box(53, 24, 21, "MaskedPredictor", "at target positions", theme.context)
    box(24, 2, 19, "EMATeacher", "all patches, no gradient", theme.target)
    box(53, 2, 21, "normalize, take", "the targets only", theme.target)
    box(85, 13, 15, "loss", "valid tokens only", theme.faint)
    arrow((13, 19), (18, 19), (18, 28), (24, 28), colour=theme.context)
    arrow((13, 15), (18, 15), (18, 6), (24, 6), colour=theme.target)
    arrow((43, 28), (53, 28), colour=theme.context)
    arrow((43, 6), (53, 6), colour=theme.target)
    arrow((74, 28), (92.5, 28), (92.5, 21), colour=theme.context)
    arrow((74, 6), (92.5, 6), (92.5, 13), colour=theme.target)
    arrow((33.5, 24), (33.5, 10), colour=theme.faint, dashed=True)
    ax.text(34.7, 17, "moving average", va="center", fontsize=8, color=theme.faint)
    return figure


def schedule_curves(theme: Theme) -> Figure:
    steps = 1000
    figure, (rate, momentum) = plt.subplots(1, 2, figsize=(8.4, 2.7))
    x = range(steps + 1)
    warm = schedules.warmup_cosine(1e-3, 1e-5, warmup_steps=100, steps=steps)
    rate.plot(x, [warm(step) * 1e3 for step in x], color=theme.context, lw=1.8)
    rate.set_title("warmup_cosine, learning rate", fontsize=9)
    rate.set_ylabel("rate / 1e-3", fontsize=8.5)
    for schedule, label, colour in (
        (schedules.linear(0.996, 1.0, steps=steps), "linear", theme.context),
        (schedules.cosine(0.996, 1.0, steps=steps), "cosine", theme.target),
        (schedules.constant(0.998), "constant", theme.third),
    ):
        momentum.plot(x, [schedule(step) for step in x], color=colour, lw=1.8, label=label)
    momentum.set_title("the teacher's momentum", fontsize=9)
    momentum.legend(frameon=False, fontsize=8.5)
    momentum.ticklabel_format(axis="y", useOffset=False)
    for ax in (rate, momentum):
        ax.set_xlabel("step", fontsize=8.5)
        ax.tick_params(labelsize=8, length=0)
        ax.grid(color=theme.hidden, lw=0.8)
        ax.set_axisbelow(True)
        for spine in ax.spines.values():
            spine.set_visible(False)
    return figure


def ranks(theme: Theme) -> Figure:
    generator = torch.Generator().manual_seed(0)
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.5), sharey=True)
    for ax, decay, colour in zip(
        axes, (0.985, 0.88, 0.4), (theme.context, theme.third, theme.target), strict=True
    ):
        scale = decay ** torch.arange(32)
        features = torch.randn(4096, 32, generator=generator) * scale
        spectrum = torch.linalg.eigvalsh(features.T.cov()).flip(0)
        ax.bar(range(32), (spectrum / spectrum.sum()).tolist(), width=0.8, color=colour)
        ax.set_title(f"effective rank {float(effective_rank(features)):.1f} of 32", fontsize=9)
        ax.tick_params(labelsize=8, length=0)
        ax.set_xlabel("direction", fontsize=8.5)
        for spine in ax.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel("fraction of the variance", fontsize=8.5)
    return figure


PICTURES: dict[str, Callable[[Theme], Figure]] = {
    "loop": loop,
    "token-set": token_set,
    "masks": masks,
    "frequencies": frequencies,
    "audits": audits,
    "photographs": photographs,
    "textures": textures,
    "quirks": quirks,
    "schedules": schedule_curves,
    "ranks": ranks,
    **architecture_pictures.PICTURES,
    **collapse_pictures.PICTURES,
    **gallery_pictures.PICTURES,
    **pyramid_pictures.PICTURES,
    **results_pictures.PICTURES,
}


def draw_all(folder: Path) -> None:
    """Draw every picture as SVG, with text as outlines, on a transparent background."""
    folder.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for theme_name, theme in THEMES.items():
        style = {
            "font.size": 9.5,
            "text.color": theme.text,
            "axes.labelcolor": theme.text,
            "axes.titlecolor": theme.text,
            "xtick.color": theme.faint,
            "ytick.color": theme.faint,
            "axes.facecolor": "none",
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "jepakit",
        }
        with matplotlib.rc_context(style):
            for name, draw in PICTURES.items():
                figure = draw(theme)
                path = folder / f"{name}-{theme_name}.svg"
                figure.savefig(path, transparent=True, metadata={"Date": None})
                plt.close(figure)


if __name__ == "__main__":
    draw_all(Path(__file__).parent / "_pictures")
