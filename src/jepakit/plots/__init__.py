"""Plots of masks, sampler audits, training curves and patch features; needs matplotlib."""

from jepakit.plots.audit import plot_mask_audit
from jepakit.plots.curves import plot_curves
from jepakit.plots.masks import plot_masks
from jepakit.plots.patches import plot_patch_pca

__all__ = ["plot_curves", "plot_mask_audit", "plot_masks", "plot_patch_pca"]
