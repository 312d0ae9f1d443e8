"""Pictures of masks, training curves and patch features; needs matplotlib."""

from jepakit.plots.audit import mask_audit
from jepakit.plots.curves import plot_curves
from jepakit.plots.masks import plot_masks
from jepakit.plots.patches import plot_patch_pca

__all__ = ["mask_audit", "plot_curves", "plot_masks", "plot_patch_pca"]
