"""Mask samplers with a guaranteed context, and their place in a `DataLoader`.

Every sampler is called as `sampler(batch_size, generator=..., device=...)` and returns `Masks`.

- `MultiBlockMask`: several rectangles as targets, the rest of one large block as context (I-JEPA).
- `RandomMask`: positions drawn one by one (MAE).
- `BlockMask`, `InverseBlockMask`: blocks that grow to an exact number of patches, hidden (BEiT) or
  visible (data2vec 2.0).
- `CausalMask`: past steps as context, future steps as targets, along one axis.
- `ReferenceMultiBlockMask`: the distribution of the published I-JEPA code.
- `ComplementMask(sampler)`: the context of a sampler; all the rest is one target.
- `UnionMask(sampler)`: the masks of a sampler, with the union of its targets as one target.
- `TubeMask(num_frames, sampler)`: the masks of an image sampler in every frame.
- `NestedMask(grid_size, sampler)`: the masks of a sampler on a pyramid's coarsest level.
- `MultiContextMask(samplers)`: a list of `Masks`, one for each sampler.
- `vjepa_masks(grid_size)`: V-JEPA's short- and long-range masks, a `MultiContextMask`.

`MaskCollator` draws masks in a `DataLoader`, `audit_masks` counts what any sampler's masks contain,
and `masks_from_indices` turns index tensors of other code into `Masks`.
"""

from jepakit.masking.audit import MaskAudit, Spread, audit_masks
from jepakit.masking.base import InfeasibleMaskError, MaskSampler
from jepakit.masking.beit import BlockMask, InverseBlockMask
from jepakit.masking.causal import CausalMask
from jepakit.masking.collate import Indexed, IndexedDataset, MaskCollator
from jepakit.masking.composite import ComplementMask, MultiContextMask, TubeMask, UnionMask
from jepakit.masking.convert import masks_from_indices
from jepakit.masking.multi_block import MultiBlockMask
from jepakit.masking.nested import NestedMask
from jepakit.masking.random_mask import RandomMask
from jepakit.masking.reference import ReferenceMultiBlockMask
from jepakit.masking.vjepa import vjepa_masks

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
    "UnionMask",
    "audit_masks",
    "masks_from_indices",
    "vjepa_masks",
]
