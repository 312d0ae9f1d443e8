"""Equal random numbers: sorts may order them in any way, and masks must not depend on it.

A device may sort equal keys in another order, unless the sort is stable.
"""

import pytest
import torch
from torch import Tensor

from jepakit import MultiBlockMask, RandomMask
from jepakit.masking import BlockMask, InverseBlockMask, NestedMask

SMALL = {"target_scale": (0.02, 0.1), "allow_target_overlap": False, "num_targets": 5}
SAMPLERS = [
    BlockMask((9, 8)),
    BlockMask((8, 8), block_aspect_ratio=(1.0, 1.0)),
    InverseBlockMask((9, 8)),
    InverseBlockMask((32, 32), context_ratio=0.5),
    RandomMask((9, 8)),
    RandomMask((9, 8), context_length=5),
    MultiBlockMask((9, 8), context_length=10),
    MultiBlockMask((9, 8), context_length="trim", target_size_per="sample"),
    MultiBlockMask((9, 8), min_context_coverage=0.05, **SMALL),
    NestedMask((24, 24), MultiBlockMask((6, 6), context_length=5)),
]


@pytest.fixture
def other_ties(monkeypatch):
    """Sorts that put equal keys in the other order wherever nothing says which."""
    argsort, topk = Tensor.argsort, Tensor.topk

    def unstable(self: Tensor, *args, stable: bool = False, **keywords):
        if stable:
            return argsort(self, *args, stable=True, **keywords)
        dim = keywords.get("dim", -1)
        return self.shape[dim] - 1 - argsort(self.flip(dim), stable=True, dim=dim)

    def topk_of_flipped(self: Tensor, k: int, dim: int = -1, **keywords):
        found = topk(self.flip(dim), k, dim=dim, **keywords)
        return torch.return_types.topk((found.values, self.shape[dim] - 1 - found.indices))

    def switch() -> None:
        monkeypatch.setattr(Tensor, "argsort", unstable)
        monkeypatch.setattr(Tensor, "topk", topk_of_flipped)

    return switch


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("levels", [2**24, 64])
def test_masks_do_not_depend_on_how_ties_are_sorted(sampler, levels, other_ties):
    """Numbers of a generator, and coarse ones, of which many are equal."""
    uniforms = torch.rand(512, sampler.num_uniforms, generator=torch.Generator().manual_seed(0))
    uniforms = (uniforms * levels).floor() / levels
    one = sampler.from_uniforms(uniforms)
    other_ties()
    other = sampler.from_uniforms(uniforms)
    for name in ("context", "targets"):
        assert torch.equal(getattr(one, name).idx, getattr(other, name).idx)


@pytest.mark.parametrize("kind", [BlockMask, InverseBlockMask])
def test_aspect_ratios_beyond_the_grid(kind):
    """Any aspect ratio is drawn safely: past the grid's own sides a block is a line."""
    masks = kind((14, 14), block_aspect_ratio=(1e-80, 1e80))(64)
    assert (masks.context.counts() > 0).all()
    tall = InverseBlockMask((14, 14), context_ratio=14 / 196, block_aspect_ratio=(1e300, 1e308))
    columns = tall(64, generator=torch.Generator().manual_seed(0)).context.to_mask()
    assert (columns.view(64, 14, 14).any(1).sum(1) == 1).all()
    wide = InverseBlockMask((14, 14), context_ratio=14 / 196, block_aspect_ratio=(5e-324, 1e-300))
    rows = wide(64, generator=torch.Generator().manual_seed(0)).context.to_mask()
    assert (rows.view(64, 14, 14).any(2).sum(1) == 1).all()
