"""Mask samplers with a guaranteed context, and their place in a `DataLoader`."""

from jepakit.masking.audit import audit, masks_from_indices
from jepakit.masking.collate import Indexed, IndexedDataset, MaskCollator
from jepakit.masking.feasibility import InfeasibleMaskError
from jepakit.masking.multiblock import MultiBlockMask
from jepakit.masking.random import RandomMask
from jepakit.masking.reference import ReferenceMultiBlockMask
from jepakit.masking.report import MaskAudit, Spread
from jepakit.masking.sampler import MaskSampler

__all__ = [
    "Indexed",
    "IndexedDataset",
    "InfeasibleMaskError",
    "MaskAudit",
    "MaskCollator",
    "MaskSampler",
    "MultiBlockMask",
    "RandomMask",
    "ReferenceMultiBlockMask",
    "Spread",
    "audit",
    "masks_from_indices",
]
