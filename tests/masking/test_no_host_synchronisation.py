"""Sampling for an accelerator reads nothing back: it works on the meta device, which holds nothing.

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
)

SMALL = {"target_scale": (0.05, 0.1), "allow_target_overlap": False}
SAMPLERS = [
    MultiBlockMask((8, 9), context_length=5),
    MultiBlockMask((8, 9), context_length=5, target_size_per="sample"),
    MultiBlockMask((8, 9), context_length=5, target_size_per="sample", **SMALL),
    MultiBlockMask(
        (4, 6, 6), context_length=5, temporal_scale=(0.5, 1.0), target_size_per="sample"
    ),
    MultiBlockMask((40,), context_length=5),
    RandomMask((8, 9)),
    RandomMask((8, 9), context_length=5),
    BlockMask((8, 9)),
    InverseBlockMask((8, 9)),
    TubeMask(2, MultiBlockMask((8, 9), context_length=5, target_size_per="sample")),
    ComplementMask(MultiBlockMask((8, 9), context_length=5)),
    MultiContextMask((RandomMask((8, 9)), MultiBlockMask((8, 9), context_length=5))),
    CausalMask((12, 3), context_size_per="sample"),
    NestedMask((16, 20), MultiBlockMask((4, 5), context_length=3)),
    NestedMask((17, 21), MultiBlockMask((5, 6), context_length=3, target_size_per="sample")),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_nothing_is_read_back(sampler):
    """Law 2, on every device: with an int length (or none to choose) shapes are known before."""
    here = sampler(6, generator=torch.Generator().manual_seed(0))
    there = sampler(6, generator=torch.Generator().manual_seed(0), device="meta")
    for one, other in zip(pytree.tree_leaves(here), pytree.tree_leaves(there), strict=True):
        assert other.device.type == "meta"
        assert other.shape == one.shape and other.dtype == one.dtype


def test_the_meta_device_tells():
    """The check can fail: padding to the longest of the batch has to know how long that is."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        MultiBlockMask((8, 9), target_size_per="sample")(6, device="meta")
    # As here, whose contexts are always cut to the shortest of the batch.
    with pytest.raises((RuntimeError, NotImplementedError)):
        ReferenceMultiBlockMask((9, 9))(6, device="meta")
