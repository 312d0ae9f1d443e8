"""`plot_curves`: quantities over training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jepakit.plots._figures import matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]


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
    plt, _ = matplotlib()
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
