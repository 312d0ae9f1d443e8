"""Mask samplers with a guaranteed context, and their place in a `DataLoader`."""

from jepakit.masking.block import BlockMask
from jepakit.masking.causal import CausalMask
from jepakit.masking.collate import Indexed, IndexedDataset, MaskCollator
from jepakit.masking.complement import ComplementMask
from jepakit.masking.feasibility import InfeasibleMaskError
from jepakit.masking.inverse_block import InverseBlockMask
from jepakit.masking.mixture import MixtureMask
from jepakit.masking.multiblock import MultiBlockMask
from jepakit.masking.nested import NestedMultiBlockMask
from jepakit.masking.random import RandomMask
from jepakit.masking.sampler import MaskSampler
from jepakit.masking.tube import TubeMask

__all__ = [
    "BlockMask",
    "CausalMask",
    "ComplementMask",
    "Indexed",
    "IndexedDataset",
    "InfeasibleMaskError",
    "InverseBlockMask",
    "MaskCollator",
    "MaskSampler",
    "MixtureMask",
    "MultiBlockMask",
    "NestedMultiBlockMask",
    "RandomMask",
    "TubeMask",
]
