"""What all pictures share: matplotlib, colours, axes without numbers."""

from typing import Any

__all__ = ["TARGETS", "bare", "matplotlib"]

# Okabe and Ito's palette: told apart by colour-blind readers, on light and dark pages.
TARGETS = ("#E69F00", "#D55E00", "#CC79A7", "#F0E442")


def matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib.colors
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("jepakit.plots needs matplotlib: pip install 'jepakit[plots]'") from error
    return plt, matplotlib.colors


def bare(axes: Any) -> None:
    """Take the ticks off: pixels need no numbers."""
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
