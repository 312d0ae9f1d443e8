"""Pictures of masks, training curves and patch features; needs matplotlib."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from jepakit.masking import MaskAudit
from jepakit.tokens import Masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["mask_audit", "plot_curves", "plot_masks", "plot_patch_pca"]

# Okabe and Ito's palette: told apart by colour-blind readers, on light and dark pages.
_CONTEXT, _TARGETS = "#56B4E9", ("#E69F00", "#D55E00", "#CC79A7", "#F0E442")


def plot_masks(images: Float[Tensor, "b c h w"], masks: Masks, *, columns: int = 6) -> "Figure":
    """Images with what the student sees and what it predicts.

    Each column is one image: as it is, its context (the rest is greyed out) and its target blocks.

    Args:
        images: Values in [0, 1], one or three channels.
        masks: On a two-dimensional grid, of the same batch.
        columns: How many images to show at most.

    Raises:
        ValueError: If the grid is not two-dimensional or the batch sizes differ.

    Example:
        >>> import torch
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.plots import plot_masks
        >>> figure = plot_masks(torch.rand(2, 3, 48, 48), MultiBlockMask((12, 12))(2))
        >>> len(figure.axes)
        6

    Source:
        After figure 4 of I-JEPA (arXiv:2301.08243).
    """
    plt, colors = _matplotlib()
    if len(masks.context.grid_size) != 2 or len(images) != masks.context.shape[0]:
        raise ValueError(
            f"masks on the grid {masks.context.grid_size} for a batch of {masks.context.shape[0]}: "
            f"must be two-dimensional, for the {len(images)} images"
        )
    count, size = min(columns, len(images)), images.shape[-2:]
    context = _on_pixels(masks.context.to_mask()[:count], masks.context.grid_size, size)
    targets = _on_pixels(masks.targets.to_mask()[:count], masks.context.grid_size, size)
    figure: Figure
    figure, axes = plt.subplots(
        3, count, figsize=(1.5 * count + 0.6, 4.8), squeeze=False, layout="constrained"
    )
    for column in range(count):
        picture = images[column].detach().float().cpu().clamp(0, 1)
        picture = (
            picture.expand(3, -1, -1).permute(1, 2, 0)
            if len(picture) == 1
            else picture.permute(1, 2, 0)
        )
        seen = torch.where(context[column, :, :, None], picture, 0.35 + 0.15 * picture)
        axes[0, column].imshow(picture.numpy())
        axes[1, column].imshow(seen.numpy())
        axes[2, column].imshow(0.35 + 0.15 * picture.numpy())
        for number, block in enumerate(targets[column]):
            red, green, blue = colors.to_rgb(_TARGETS[number % len(_TARGETS)])
            tint = torch.tensor([red, green, blue, 0.75]) * block[:, :, None]
            axes[2, column].imshow(tint.numpy())
    for row, label in enumerate(("image", "context", "targets")):
        axes[row, 0].set_ylabel(label)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    return figure


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, x: str = "step"
) -> "Figure":
    """Quantities over training, one panel each.

    Args:
        curves: For each name, points (step, value) in order.
        x: What the horizontal axis counts.

    Raises:
        ValueError: If there is no curve.

    Example:
        >>> from jepakit.plots import plot_curves
        >>> figure = plot_curves({"loss": [(0, 1.0), (1, 0.5)], "rank": [(0, 2.0), (1, 3.0)]})
        >>> len(figure.axes)
        2

    Source:
        jepakit's own.
    """
    plt, _ = _matplotlib()
    if not curves:
        raise ValueError("curves={}: must hold at least one curve")
    figure: Figure
    figure, axes = plt.subplots(
        1, len(curves), figsize=(4.2 * len(curves), 3.0), squeeze=False, layout="constrained"
    )
    for ax, (name, points) in zip(axes.flat, curves.items(), strict=True):
        ax.plot([at for at, _ in points], [value for _, value in points], color="#0072B2", lw=1.2)
        ax.set_title(name)
        ax.set_xlabel(x)
        ax.grid(alpha=0.3)
    return figure


def plot_patch_pca(
    images: Float[Tensor, "b c h w"],
    features: Mapping[str, Float[Tensor, "b N d"]],
    grid_size: tuple[int, int],
    *,
    columns: int = 6,
) -> "Figure":
    """The first three principal components of patch features as colours, below the images.

    Components are computed over all patches of the batch, so one colour means the same in every
    image of a row (rows differ).

    Args:
        images: Values in [0, 1], one or three channels.
        features: For each row's name, patch tokens of these images.
        grid_size: `(H, W)` of the tokens.
        columns: How many images to show at most.

    Raises:
        ValueError: If `features` do not fit the images and the grid.

    Example:
        >>> import torch
        >>> from jepakit.plots import plot_patch_pca
        >>> figure = plot_patch_pca(torch.rand(2, 3, 32, 32), {"a": torch.randn(2, 16, 8)}, (4, 4))
        >>> len(figure.axes)
        4

    Source:
        As in DINOv2 (arXiv:2304.07193), figure 1, without its foreground threshold.
    """
    plt, _ = _matplotlib()
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
        if tokens.shape[:2] != (len(images), grid_size[0] * grid_size[1]):
            raise ValueError(
                f"features[{name!r}] {tuple(tokens.shape)}: must hold the tokens of {len(images)} "
                f"images on the grid {grid_size}"
            )
        colours = _principal_colours(tokens.detach().float().cpu())
        for column in range(count):
            axes[row, column].imshow(colours[column].view(*grid_size, 3).numpy())
        axes[row, 0].set_ylabel(name)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    return figure


def mask_audit(audit: MaskAudit | Mapping[str, MaskAudit]) -> "Figure":
    """How often each position is context and target, with the figures that matter most.

    One column for each audit; the colours of a row mean the same in all of them. Positions that
    never have the role stand out in orange. A three-dimensional grid is shown frame by frame.

    Args:
        audit: What `jepakit.masking.audit` found, or several of them by name.

    Raises:
        ValueError: If the mapping is empty.

    Example:
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.masking import audit
        >>> from jepakit.plots import mask_audit
        >>> figure = mask_audit({"MultiBlockMask": audit(MultiBlockMask((12, 12)), batches=5)})
        >>> [ax.get_title() for ax in figure.axes[:1]]
        ['MultiBlockMask']

    Source:
        jepakit's own.
    """
    plt, _ = _matplotlib()
    audits = audit if isinstance(audit, Mapping) else {"": audit}
    if not audits:
        raise ValueError("audit={}: must hold at least one audit")
    tiles = [_tiled(found.context_frequency, found.grid_size) for found in audits.values()]
    across, down = (max(tile.shape[axis] for tile in tiles) for axis in (1, 0))
    width = 3.0 if across < 2 * down else 5.6
    height = max(1.1, 0.9 * width * down / across)
    figure: Figure
    figure, axes = plt.subplots(
        2,
        len(audits),
        figsize=(width * len(audits) + 1.0, 2 * height + 1.3),
        squeeze=False,
        layout="constrained",
    )
    colours = plt.get_cmap("cividis").with_extremes(under=_TARGETS[1])
    for row, role in zip(axes, ("context", "target"), strict=True):
        shares = [getattr(found, f"{role}_frequency") for found in audits.values()]
        top = max(float(share.max()) for share in shares) or 1.0
        never = any(bool((share == 0).any()) for share in shares)
        for ax, share, found in zip(row, shares, audits.values(), strict=True):
            picture = _tiled(share, found.grid_size)
            # Only exact zeros lie under the scale, so what is merely rare keeps its colour.
            shown = ax.imshow(
                picture.numpy(),
                cmap=colours,
                vmin=top * 1e-9,
                vmax=top,
                interpolation="nearest",
                aspect="auto" if len(found.grid_size) == 1 else "equal",
            )
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
        row[0].set_ylabel(role)
        bar = figure.colorbar(shown, ax=list(row), extend="min" if never else "neither", pad=0.02)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        bar.outline.set_visible(False)
        bar.set_label("share of samples" if role == "context" else "share of targets")
    for name, ax, below, found in zip(audits, *axes, audits.values(), strict=True):
        ax.set_title(name)
        below.set_xlabel(_key_figures(found), fontsize="small")
    if any(bool((a.context_frequency * a.target_frequency == 0).any()) for a in audits.values()):
        patch = plt.Rectangle((0, 0), 1, 1, color=_TARGETS[1])
        figure.legend([patch], ["never"], loc="outside lower right", frameon=False)
    return figure


def _key_figures(found: MaskAudit) -> str:
    low, mean, high = found.context_coverage
    trimmed = "" if found.discarded is None else f", {found.discarded:.0f} tokens trimmed"
    return (
        f"context {mean:.0%} ({low:.0%} to {high:.0%}){trimmed}\n"
        f"leaks {found.leak_rate:.1%}, {len(found.block_sizes)} target sizes"
    )


def _tiled(shares: Tensor, grid_size: tuple[int, ...]) -> Tensor:
    """A picture of a map over the grid: a sequence as one row, frames side by side."""
    if len(grid_size) < 3:
        return shares.view(-1, grid_size[-1])
    frames = F.pad(shares.view(grid_size), (0, 1), value=float("nan"))
    return torch.cat([*frames], dim=1)[:, :-1]


def _principal_colours(tokens: Tensor) -> Tensor:
    flat = tokens.flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    scores = flat @ directions[:3].T
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    scores = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return F.pad(scores, (0, 3 - scores.shape[1])).view(*tokens.shape[:2], 3)


def _on_pixels(masks: Tensor, grid_size: tuple[int, ...], size: Sequence[int]) -> Tensor:
    grid = masks.reshape(len(masks), -1, *grid_size).float().cpu()
    pixels = F.interpolate(grid, size=tuple(size), mode="nearest").bool()
    return pixels.squeeze(1) if masks.dim() == 2 else pixels


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib.colors
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("jepakit.plots needs matplotlib: pip install 'jepakit[plots]'") from error
    return plt, matplotlib.colors
