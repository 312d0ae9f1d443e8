"""Sampling for an accelerator waits for nothing: it works on the meta device, which holds nothing.

There `int(tensor)`, `if tensor` and `nonzero` raise, so a sampler that waited for its device to
answer would fail here.
"""

import pytest
import torch
from torch.utils import _pytree as pytree

from jepakit import MultiBlockMask, RandomMask
from jepakit.masking import (
    BlockMask,
    CausalMask,
    ComplementMask,
    InverseBlockMask,
    MultiContextMask,
    NestedMask,
    ReferenceMultiBlockMask,
    TubeMask,
    UnionMask,
    vjepa_masks,
)

SMALL = {"target_scale": (0.05, 0.1), "allow_target_overlap": False}
SAMPLERS = [
    MultiBlockMask((8, 9)),
    MultiBlockMask((8, 9), context_length=5),
    MultiBlockMask((8, 9), context_length="pad", target_size_per="sample"),
    MultiBlockMask((8, 9), context_length="trim", target_size_per="sample"),
    MultiBlockMask((8, 9), context_subset="random"),
    MultiBlockMask((8, 9), target_size_per="sample", **SMALL),
    MultiBlockMask((4, 6, 6), temporal_scale=(0.5, 1.0), target_size_per="sample"),
    MultiBlockMask((40,)),
    RandomMask((8, 9)),
    RandomMask((8, 9), context_length=5),
    BlockMask((8, 9)),
    InverseBlockMask((8, 9)),
    TubeMask(2, MultiBlockMask((8, 9), target_size_per="sample")),
    ComplementMask(MultiBlockMask((8, 9))),
    UnionMask(MultiBlockMask((8, 9))),
    vjepa_masks((2, 6, 7)),
    CausalMask((3, 12), axis=1, context_size_per="sample"),
    MultiContextMask((RandomMask((8, 9)), MultiBlockMask((8, 9), context_length=5))),
    CausalMask((12, 3), context_size_per="sample"),
    NestedMask((16, 20), MultiBlockMask((4, 5), context_length=3)),
    NestedMask((17, 21), MultiBlockMask((5, 6), target_size_per="sample")),
]


@pytest.mark.parametrize("sampler", [*SAMPLERS, ReferenceMultiBlockMask((9, 9))], ids=repr)
def test_masks_are_copied_to_a_device_without_waiting(sampler):
    """Law 2, on every device: masks are computed on the CPU."""
    here = sampler(6, generator=torch.Generator().manual_seed(0))
    there = sampler(6, generator=torch.Generator().manual_seed(0), device="meta")
    for one, other in zip(pytree.tree_leaves(here), pytree.tree_leaves(there), strict=True):
        assert other.device.type == "meta"
        assert other.shape == one.shape and other.dtype == one.dtype


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_data_on_a_device_is_not_looked_at(sampler):
    """Trap: a mask of valid positions on the device, whose counts decide about shapes."""
    size = torch.Size(sampler.grid_size).numel()
    valid = torch.ones(6, size, dtype=torch.bool, device="meta")
    for leaf in pytree.tree_leaves(sampler(6, valid=valid)):
        assert leaf.device.type == "meta"


def test_a_look_at_the_device_raises():
    """The check can fail: a longest length is looked at, there as on an accelerator."""
    masks = MultiBlockMask((8, 9))(6, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        masks.context.coarsen()
