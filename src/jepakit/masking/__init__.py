"""Mask samplers with a guaranteed context, and their place in a `DataLoader`."""

from jepakit.masking.collate import Indexed, IndexedDataset, MaskCollator
from jepakit.masking.feasibility import InfeasibleMaskError
from jepakit.masking.multiblock import MultiBlockMask
from jepakit.masking.random import RandomMask
from jepakit.masking.sampler import MaskSampler

__all__ = [
    "Indexed",
    "IndexedDataset",
    "InfeasibleMaskError",
    "MaskCollator",
    "MaskSampler",
    "MultiBlockMask",
    "RandomMask",
]
