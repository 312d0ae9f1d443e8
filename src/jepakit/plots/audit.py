"""`plot_mask_audit`: maps of how often each position is context and target."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from jepakit._checks import type_name
from jepakit.masking import MaskAudit
from jepakit.plots._figures import TARGET_COLOURS, hide_ticks, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_mask_audit"]

_NEVER = TARGET_COLOURS[1]  # colour of positions that never have the role


def plot_mask_audit(audit: MaskAudit | Mapping[str, MaskAudit]) -> "Figure":
    """Plot how often each position is context and target, with the main numbers below.

    One column for each audit, with one colour scale for all columns of a row. Positions that never
    have the role are orange. Frames of a three-dimensional grid are shown side by side.

    Args:
        audit: From `jepakit.masking.audit_masks`; or several audits by name.

    Raises:
        ValueError: If the mapping is empty.

    Example:
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.masking import audit_masks
        >>> from jepakit.plots import plot_mask_audit
        >>> audit = audit_masks(MultiBlockMask((12, 12)), num_batches=5)
        >>> figure = plot_mask_audit({"MultiBlockMask": audit})
        >>> figure.axes[0].get_title()
        'MultiBlockMask'
    """
    audits = audit if isinstance(audit, Mapping) else {"": audit}
    if not audits:
        raise ValueError("audit={}: must hold at least one audit")
    for each in audits.values():
        if not isinstance(each, MaskAudit):
            rule = "must be a MaskAudit, which audit_masks(sampler) returns, or several by name"
            raise TypeError(f"audit: {rule}, got {type_name(each)}")
    sizes = [_as_picture(one.context_frequency, one.grid_size).shape for one in audits.values()]
    down, across = (max(sides) for sides in zip(*sizes, strict=True))
    width = 3.0 if across < 2 * down else 5.6
    height = max(1.1, 0.9 * width * down / across)
    figure, axes = new_figure(2, len(audits), width * len(audits) + 1.0, 2 * height + 1.3)
    never = False
    for row, role, unit in zip(axes, ("context", "target"), ("samples", "targets"), strict=True):
        maps = {
            ax: _as_picture(getattr(one, f"{role}_frequency"), one.grid_size)
            for ax, one in zip(row, audits.values(), strict=True)
        }
        never |= _plot_maps(figure, maps, label=f"fraction of {unit}")
        row[0].set_ylabel(role)
    for name, top, bottom, one in zip(audits, *axes, audits.values(), strict=True):
        top.set_title(name)
        bottom.set_xlabel(_summary(one), fontsize="small")
    if never:
        from matplotlib.patches import Rectangle

        patch = Rectangle((0, 0), 1, 1, color=_NEVER)
        figure.legend([patch], ["never"], loc="outside lower right", frameon=False)
    return figure


def _plot_maps(figure: "Figure", maps: Mapping[Any, Tensor], *, label: str) -> bool:
    """Plot a map into each of some axes, with one colour bar; return whether a value is 0."""
    from matplotlib import colormaps

    colours = colormaps["cividis"].with_extremes(under=_NEVER)
    # NaN, between frames, is neither the largest value nor 0.
    highest = max(float(values.nan_to_num().max()) for values in maps.values()) or 1.0
    never = any(bool((values == 0).any()) for values in maps.values())
    for ax, values in maps.items():
        shown = ax.imshow(
            values.numpy(),
            cmap=colours,
            # Only exact zeros lie below the scale and are orange; small values keep their colour.
            vmin=highest * 1e-9,
            vmax=highest,
            interpolation="nearest",
            aspect="auto" if len(values) == 1 else "equal",
        )
        for spine in ax.spines.values():
            spine.set_visible(False)
    hide_ticks(maps)
    bar = figure.colorbar(shown, ax=list(maps), extend="min" if never else "neither", pad=0.02)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    bar.outline.set_visible(False)
    bar.set_label(label)
    return never


def _summary(audit: MaskAudit) -> str:
    low, mean, high = audit.context_coverage
    tokens = audit.mean_trimmed_tokens
    trimmed = "" if tokens is None else f", {tokens:.0f} tokens trimmed"
    return (
        f"context {mean:.0%} ({low:.0%} to {high:.0%}){trimmed}\n"
        f"leaks {audit.leak_ratio:.1%}, {len(audit.target_sizes)} target sizes"
    )


def _as_picture(values: Float[Tensor, " N"], grid_size: tuple[int, ...]) -> Float[Tensor, "h w"]:
    """A map over the grid as a picture: a sequence as one row, frames side by side."""
    if len(grid_size) < 3:
        return values.view(-1, grid_size[-1])
    # One column of NaN, which stays blank, after each frame but the last.
    frames = F.pad(values.view(grid_size), (0, 1), value=float("nan"))
    return torch.cat([*frames], dim=1)[:, :-1]
