"""`plot_curves`: metrics over training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jepakit._checks import type_name
from jepakit.plots._figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, xlabel: str = "step"
) -> "Figure":
    """Plot metrics over training, one panel each.

    Args:
        curves: For each panel's title, points (step, value) in order.
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
    figure, axes = new_figure(1, len(curves), 4.2 * len(curves), 3.0)
    for ax, title, (steps, values) in zip(axes.flat, curves, lines, strict=True):
        ax.plot(steps, values, color="#0072B2", lw=1.2)
        ax.set_title(title)
        ax.set_xlabel(xlabel)
        ax.grid(alpha=0.3)
    return figure


def _as_steps_and_values(title: str, points: Any) -> tuple[list[float], list[float]]:
    """Split the points (step, value) of a curve; raise unless each is a pair."""
    try:
        pairs = [(step, value) for step, value in points]
    except (TypeError, ValueError):
        rule = "must be a sequence of points (step, value)"
        raise TypeError(f"curves[{title!r}]: {rule}") from None
    return [step for step, _ in pairs], [value for _, value in pairs]
