"""Mask samplers with a guaranteed context, and their place in a `DataLoader`."""

from jepakit.masking.audit import MaskAudit, Spread, audit_masks
from jepakit.masking.block import BlockMask
from jepakit.masking.causal import CausalMask
from jepakit.masking.collate import Indexed, IndexedDataset, MaskCollator
from jepakit.masking.complement import ComplementMask
from jepakit.masking.convert import masks_from_indices
from jepakit.masking.feasibility import InfeasibleMaskError
from jepakit.masking.inverse_block import InverseBlockMask
from jepakit.masking.mixture import MultiContextMask
from jepakit.masking.multiblock import MultiBlockMask
from jepakit.masking.nested import NestedMask
from jepakit.masking.random import RandomMask
from jepakit.masking.reference import ReferenceMultiBlockMask
from jepakit.masking.base import MaskSampler
from jepakit.masking.tube import TubeMask

__all__ = [
    "BlockMask",
    "CausalMask",
    "ComplementMask",
    "Indexed",
    "IndexedDataset",
    "InfeasibleMaskError",
    "InverseBlockMask",
    "MaskAudit",
    "MaskCollator",
    "MaskSampler",
    "MultiBlockMask",
    "MultiContextMask",
    "NestedMask",
    "RandomMask",
    "ReferenceMultiBlockMask",
    "Spread",
    "TubeMask",
    "audit_masks",
    "masks_from_indices",
]
