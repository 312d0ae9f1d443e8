"""`plot_mask_audit`: how often each position is context and target."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from jepakit.masking import MaskAudit
from jepakit.plots._figures import TARGETS, matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_mask_audit"]


def plot_mask_audit(audit: MaskAudit | Mapping[str, MaskAudit]) -> "Figure":
    """How often each position is context and target, with the figures that matter most.

    One column for each audit; the colours of a row mean the same in all of them. Positions that
    never have the role stand out in orange. A three-dimensional grid is shown frame by frame.

    Args:
        audit: What `jepakit.masking.audit_masks` found, or several of them by name.

    Raises:
        ValueError: If the mapping is empty.

    Example:
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.masking import audit_masks
        >>> from jepakit.plots import plot_mask_audit
        >>> figure = plot_mask_audit({"MultiBlockMask": audit_masks(MultiBlockMask((12, 12)), batches=5)})
        >>> [ax.get_title() for ax in figure.axes[:1]]
        ['MultiBlockMask']

    Source:
        jepakit's own.
    """
    plt, _ = matplotlib()
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
    colours = plt.get_cmap("cividis").with_extremes(under=TARGETS[1])
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
        patch = plt.Rectangle((0, 0), 1, 1, color=TARGETS[1])
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
