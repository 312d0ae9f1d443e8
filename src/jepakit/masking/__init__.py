"""Mask samplers with a guaranteed context, and their place in a `DataLoader`."""

from jepakit.masking.collate import Indexed, IndexedDataset, MaskCollator, MaskSampler
from jepakit.masking.feasibility import InfeasibleMaskError
from jepakit.masking.multiblock import MultiBlockMask
from jepakit.masking.random import RandomMask

__all__ = [
    "Indexed",
    "IndexedDataset",
    "InfeasibleMaskError",
    "MaskCollator",
    "MaskSampler",
    "MultiBlockMask",
    "RandomMask",
]
