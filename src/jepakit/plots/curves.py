"""`plot_curves`: metrics over training."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jepakit._checks import type_name
from jepakit.plots._figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]

_FEW_POINTS = 40  # so many are marked one by one


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, xlabel: str = "step"
) -> "Figure":
    """Plot metrics over training on one sheet, a panel each, over a common horizontal axis.

    Up to three panels are side by side, more in two columns. The last value is written beside its
    point.

    Args:
        curves: For each panel's title, points (step, value) in order, such as loss, effective rank,
            feature std and the accuracy of nearest neighbours. Steps may differ between panels.
        xlabel: Label of the horizontal axes.

    Raises:
        ValueError: If there is no curve.

    Example:
        >>> from jepakit.plots import plot_curves
        >>> figure = plot_curves({"loss": [(0, 1.0), (1, 0.5)], "rank": [(0, 2.0), (1, 3.0)]})
        >>> len(figure.axes)
        2
    """
    if not isinstance(curves, Mapping):
        raise TypeError(f"curves: must be a mapping of titles to points, got {type_name(curves)}")
    if not curves:
        raise ValueError("curves={}: must hold at least one curve")
    lines = [_as_steps_and_values(title, points) for title, points in curves.items()]
    columns = len(curves) if len(curves) <= 3 else 2
    rows = math.ceil(len(curves) / columns)
    size = 4.2 * columns, 2.6 * rows + 0.3
    figure, axes = new_figure(rows, columns, *size, sharex=True)
    panels = list(axes.flat)
    for ax, title, (steps, values) in zip(panels, curves, lines, strict=False):
        marker = "o" if len(steps) <= _FEW_POINTS else None
        ax.plot(steps, values, color="#0072B2", lw=1.6, marker=marker, markersize=3)
        ax.set_title(title)
        if values:
            ax.annotate(
                f"{values[-1]:.3g}",
                (steps[-1], values[-1]),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize="small",
                color="#0072B2",
            )
        ax.margins(x=0.12)  # room for the last value
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in panels[len(curves) :]:
        ax.remove()
    # Labels below the lowest panel of each column, which need not be in the last row.
    for ax in panels[max(0, len(curves) - columns) : len(curves)]:
        ax.set_xlabel(xlabel)
        ax.tick_params(labelbottom=True)
    return figure


def _as_steps_and_values(title: str, points: Any) -> tuple[list[float], list[float]]:
    """Split the points (step, value) of a curve; raise unless each is a pair."""
    try:
        pairs = [(step, value) for step, value in points]
    except (TypeError, ValueError):
        rule = "must be a sequence of points (step, value)"
        raise TypeError(f"curves[{title!r}]: {rule}") from None
    return [step for step, _ in pairs], [value for _, value in pairs]
