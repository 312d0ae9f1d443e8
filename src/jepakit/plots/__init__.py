"""Plots of masks, audits, curves, patch features, neighbours and retrieval; needs matplotlib."""

from jepakit.plots.audit import plot_mask_audit
from jepakit.plots.curves import plot_curves
from jepakit.plots.masks import plot_masks
from jepakit.plots.neighbours import plot_neighbours
from jepakit.plots.patches import plot_patch_pca
from jepakit.plots.retrieval import plot_retrieval

__all__ = [
    "plot_curves",
    "plot_mask_audit",
    "plot_masks",
    "plot_neighbours",
    "plot_patch_pca",
    "plot_retrieval",
]
