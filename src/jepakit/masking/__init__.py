"""Mask samplers with a guaranteed context, and their place in a `DataLoader`.

Every sampler is called as `sampler(batch_size, generator=..., device=...)` and returns `Masks`.

| sampler | context | targets |
|---|---|---|
| `MultiBlockMask` | rest of one large block | several rectangles |
| `RandomMask` | positions drawn one by one | all the rest |
| `BlockMask` | all the rest | a few large blocks of an exact number of patches |
| `InverseBlockMask` | one block of an exact number of patches | all the rest |
| `CausalMask` | past steps | future steps |
| `ComplementMask(sampler)` | that of a sampler | all the rest |
| `TubeMask(num_frames, sampler)` | that of an image sampler in every frame | likewise |
| `NestedMask(grid_size, sampler)` | that of a sampler on a pyramid's coarsest level | likewise |
| `MultiContextMask(samplers)` | a list of `Masks`, one for each sampler | |
| `ReferenceMultiBlockMask` | as the published I-JEPA code | likewise |

`MaskCollator` draws masks in a `DataLoader`, `audit_masks` counts what any sampler's masks contain,
and `masks_from_indices` turns index tensors of other code into `Masks`.
"""

from jepakit.masking.audit import MaskAudit, Spread, audit_masks
from jepakit.masking.base import InfeasibleMaskError, MaskSampler
from jepakit.masking.beit import BlockMask, InverseBlockMask
from jepakit.masking.causal import CausalMask
from jepakit.masking.collate import Indexed, IndexedDataset, MaskCollator
from jepakit.masking.composite import ComplementMask, MultiContextMask, TubeMask
from jepakit.masking.convert import masks_from_indices
from jepakit.masking.multi_block import MultiBlockMask
from jepakit.masking.nested import NestedMask
from jepakit.masking.random_mask import RandomMask
from jepakit.masking.reference import ReferenceMultiBlockMask

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
