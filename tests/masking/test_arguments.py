"""Law 12 for all samplers: every argument changes the masks, and bad ones are named."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from jepakit import InfeasibleMaskError, MultiBlockMask, RandomMask
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

SMALL_TARGETS = {"target_scale": (0.1, 0.12), "target_aspect_ratio": (0.9, 1.1)}
# For each sampler a call that works, and for every argument another value that it takes.
CASES: dict[type, tuple[dict[str, Any], dict[str, Any]]] = {
    BlockMask: (
        {"grid_size": (8, 9)},
        {
            "grid_size": (9, 8),
            "target_ratio": 0.5,
            "block_scale": (0.05, 0.06),
            "block_aspect_ratio": (1.0, 1.1),
        },
    ),
    InverseBlockMask: (
        {"grid_size": (8, 9)},
        {
            "grid_size": (9, 8),
            "context_ratio": 0.5,
            "block_scale": (0.05, 0.06),
            "block_aspect_ratio": (3.0, 4.0),
        },
    ),
    TubeMask: (
        {"num_frames": 2, "sampler": RandomMask((4, 4))},
        {"num_frames": 3, "sampler": RandomMask((4, 4), target_ratio=0.5)},
    ),
    MultiContextMask: (
        {"samplers": (RandomMask((4, 4)),)},
        {"samplers": (RandomMask((4, 4)), RandomMask((4, 4)))},
    ),
    ComplementMask: (
        {"sampler": RandomMask((4, 4), context_length=2)},
        {"sampler": RandomMask((4, 4), context_length=3)},
    ),
    UnionMask: (
        {"sampler": MultiBlockMask((4, 4))},
        {"sampler": MultiBlockMask((4, 4), num_targets=2)},
    ),
    CausalMask: (
        {"grid_size": (12, 10), "num_target_steps": 2},
        {
            "grid_size": (12, 9),
            "axis": 1,
            "num_context_steps": (3, 4),
            "num_targets": 2,
            "num_target_steps": 3,
            "context_size_per": "sample",
        },
    ),
    NestedMask: (
        {"grid_size": (24, 28), "sampler": MultiBlockMask((6, 7))},
        {
            "grid_size": (23, 28),
            "sampler": MultiBlockMask((12, 14)),
        },
    ),
}


def drawn(kind: type, arguments: dict[str, Any]) -> list[torch.Tensor]:
    masks = kind(**arguments)(32, generator=torch.Generator().manual_seed(0))
    return pytree.tree_leaves(masks)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (_, changes) in CASES.items() for name in changes]
)
def test_every_argument_matters(kind, name):
    base, changes = CASES[kind]
    if name == "allow_target_overlap":
        base = base | SMALL_TARGETS
    one, other = drawn(kind, base), drawn(kind, base | {name: changes[name]})
    same = len(one) == len(other) and all(map(torch.equal, one, other))
    assert not same
    assert all(map(torch.equal, one, drawn(kind, base)))


@pytest.mark.parametrize("kind", CASES)
def test_no_argument_is_left_out(kind):
    names = {field.name for field in dataclasses.fields(kind)} - {"_"}
    assert set(CASES[kind][1]) == names


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: BlockMask((8,)), ValueError, "grid_size=(8,): must have 2 axes, got 1"),
        (
            lambda: BlockMask((8, 8), target_ratio=0.0),
            ValueError,
            "target_ratio=0: must lie in (0, 1)",
        ),
        (
            lambda: BlockMask((8, 8), target_ratio=1.0),
            ValueError,
            "target_ratio=1: must lie in (0, 1)",
        ),
        (lambda: BlockMask((8, 8), block_scale=(0.5, 0.1)), ValueError, "block_scale=(0.5, 0.1)"),
        (
            lambda: InverseBlockMask((8, 8), context_ratio=1.0),
            ValueError,
            "context_ratio=1: must lie in (0, 1)",
        ),
        (
            lambda: InverseBlockMask((1, 1)),
            InfeasibleMaskError,
            "grid_size=(1, 1): one position cannot be both context and target",
        ),
        (
            lambda: BlockMask((8, 8), target_ratio=0.1, block_scale=(0.5, 0.6)),
            ValueError,
            "block_scale=(0.5, 0.6): has no effect, since the smallest block has all of the 6 "
            "patches already; must begin lower, or be (1.0, 1.0)",
        ),
        (
            lambda: InverseBlockMask((8, 8), block_scale=(0.3, 0.4)),
            ValueError,
            "block_scale=(0.3, 0.4): has no effect, since the smallest block has all of the 13",
        ),
        (
            lambda: MultiBlockMask((1, 14, 14), temporal_scale=(0.5, 1.0)),
            ValueError,
            "temporal_scale=(0.5, 1.0): has no effect on the grid (1, 14, 14), so must be left out",
        ),
        (
            lambda: MultiBlockMask((1, 14, 14), context_frames_ratio=0.5),
            ValueError,
            "context_frames_ratio=0.5: has no effect on the grid (1, 14, 14), so must be left out",
        ),
        (
            lambda: TubeMask(0, RandomMask((4, 4))),
            ValueError,
            "num_frames=0: must be at least 1",
        ),
        (
            lambda: TubeMask(2, lambda n: None),
            TypeError,
            "must be one of jepakit's samplers, got function",
        ),
        (
            lambda: TubeMask(2, RandomMask((4,))),
            ValueError,
            "sampler on the grid (4,): must be on (H, W)",
        ),
        (
            lambda: ComplementMask(MultiContextMask((RandomMask((4, 4)),))),
            TypeError,
            "sampler=MultiContextMask(...): must give one context for each image; "
            "combine the results instead, as MultiContextMask((Outer(a), Outer(b)))",
        ),
        (
            lambda: MultiContextMask(RandomMask((4, 4))),
            TypeError,
            "must be a sequence of samplers, got jepakit.masking.random_mask.RandomMask",
        ),
        (
            lambda: MultiContextMask([RandomMask((4, 4)), print]),
            TypeError,
            "must be one of jepakit's samplers, got builtin_function_or_method",
        ),
        (lambda: MultiContextMask(()), ValueError, "samplers=(): must hold at least one sampler"),
        (
            lambda: MultiContextMask((RandomMask((4, 4)), RandomMask((4, 5)))),
            ValueError,
            "samplers on the grids [(4, 4), (4, 5)]: must be on one grid",
        ),
        (
            lambda: CausalMask((4,), num_targets=2),
            ValueError,
            "num_targets=2: must be 1 where num_target_steps is None",
        ),
        (
            lambda: CausalMask((4, 2, 2), num_targets=2, num_target_steps=2),
            InfeasibleMaskError,
            "CausalMask on the grid (4, 2, 2): 1 past step(s) and 4 step(s) for 2 target(s) exceed "
            "the grid's 4. Change grid_size to at least 5 steps, or lower",
        ),
        (
            lambda: CausalMask((8, 4), axis=2),
            ValueError,
            "axis=2: must be at most 1",
        ),
        (
            lambda: CausalMask((8, 4), axis=1, num_targets=4, num_target_steps=1),
            InfeasibleMaskError,
            "CausalMask on the grid (8, 4): 1 past step(s) and 4 step(s) for 4 target(s) exceed "
            "the grid's 4. Change grid_size to at least 5 steps, or lower one of the numbers of "
            "steps",
        ),
        (
            lambda: vjepa_masks((14, 14)),
            ValueError,
            "grid_size=(14, 14): must have 3 axes, got 2",
        ),
        (
            lambda: vjepa_masks((2, 14, 14), min_context_coverage=[0.1]),
            ValueError,
            "min_context_coverage=(0.1,): must be two fractions, one for the short-range and one "
            "for the long-range set",
        ),
        (
            lambda: vjepa_masks((2, 14, 14), min_context_coverage=[0.1, 1.5]),
            ValueError,
            "min_context_coverage=1.5: must lie in [0, 1]",
        ),
        (
            lambda: CausalMask((8,), num_context_steps=(2, 7), num_target_steps=2),
            InfeasibleMaskError,
            "7 past step(s) and 2 step(s) for 1 target(s) exceed the grid's 8. Change "
            "grid_size to at least 9 steps",
        ),
        (
            lambda: CausalMask((8,), num_context_steps=(3, 2)),
            ValueError,
            "num_context_steps=(3, 2): the fewest must not exceed the most",
        ),
        (
            lambda: CausalMask((8,), num_context_steps=3),
            TypeError,
            "num_context_steps=3: must be a pair of ints, got int",
        ),
        (
            lambda: CausalMask((8,), num_context_steps=[2, 3, 4]),
            TypeError,
            "num_context_steps=[2, 3, 4]: must be a pair of ints, got 3 entries",
        ),
        (
            lambda: NestedMask((24, 24), MultiBlockMask),
            TypeError,
            "must be one of jepakit's samplers, got",
        ),
        (
            lambda: NestedMask((4, 4), RandomMask((1, 2))),
            ValueError,
            "sampler on the grid (1, 2): must be on the grid of a level of (4, 4), one of (4, 4), "
            "(2, 2), (1, 1)",
        ),
    ],
)
def test_bad_arguments_are_named(make, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        make()


def same_masks(one: Any, other: Any) -> bool:
    drawn = [s(4, generator=torch.Generator().manual_seed(0)) for s in (one, other)]
    return all(map(torch.equal, *map(pytree.tree_leaves, drawn)))


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (
            lambda: MultiBlockMask(
                torch.Size([8, 9]),
                num_targets=np.int64(3),
                target_scale=[0.1, np.float32(0.125)],
                target_aspect_ratio=np.array([1, 2]),
                context_scale=[np.float64(0.75), 1],
                min_context_coverage=0,
                context_length=np.int32(1),
            ),
            lambda: MultiBlockMask(
                (8, 9),
                num_targets=3,
                target_scale=(0.1, 0.125),
                target_aspect_ratio=(1.0, 2.0),
                context_scale=(0.75, 1.0),
                min_context_coverage=0.0,
                context_length=1,
            ),
        ),
        (
            lambda: MultiBlockMask.from_ijepa_config(
                np.array([14, 14]), enc_mask_scale=[0.85, 1], min_keep=np.int64(49)
            ),
            lambda: MultiBlockMask((14, 14), min_context_coverage=0.25, context_length="trim"),
        ),
        (
            lambda: RandomMask([4, 5], target_ratio=np.float32(0.5), context_length=np.int64(3)),
            lambda: RandomMask((4, 5), target_ratio=0.5, context_length=3),
        ),
        (
            lambda: BlockMask([8, 9], block_scale=[0.125, 0.25], block_aspect_ratio=[1, 2]),
            lambda: BlockMask((8, 9), block_scale=(0.125, 0.25), block_aspect_ratio=(1.0, 2.0)),
        ),
        (
            lambda: InverseBlockMask(np.array([8, 9]), block_scale=[1, 1]),
            lambda: InverseBlockMask((8, 9)),
        ),
        (
            lambda: CausalMask(
                [12], num_context_steps=[2, np.int64(4)], num_target_steps=np.int64(2)
            ),
            lambda: CausalMask((12,), num_context_steps=(2, 4), num_target_steps=2),
        ),
        (
            lambda: TubeMask(np.int64(3), RandomMask((4, 4))),
            lambda: TubeMask(3, RandomMask((4, 4))),
        ),
        (
            lambda: MultiContextMask([RandomMask((4, 4))]),
            lambda: MultiContextMask((RandomMask((4, 4)),)),
        ),
        (
            lambda: NestedMask([8, 8], MultiBlockMask((4, 4))),
            lambda: NestedMask((8, 8), MultiBlockMask((4, 4))),
        ),
        (
            lambda: ReferenceMultiBlockMask(
                [14, 14], target_scale=[0.15, 0.2], min_keep=np.int64(9)
            ),
            lambda: ReferenceMultiBlockMask((14, 14), min_keep=9),
        ),
    ],
)
def test_arguments_of_configuration_files(given, plain):
    """Trap: a list of a YAML file is refused, or shown in `repr` as NumPy's scalar."""
    one, other = given(), plain()
    # Values such as 0.125, exact in float32 too: `np.float32(0.1)` is another number than 0.1.
    assert one == other and repr(one) == repr(other) and hash(one) == hash(other)
    assert eval(repr(one)) == one
    assert same_masks(one, other)


def test_lists_of_omegaconf():
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"grid": [8, 9], "scale": [0.1, 0.12]})
    sampler = MultiBlockMask(config.grid, target_scale=config.scale)
    assert sampler == MultiBlockMask((8, 9), target_scale=(0.1, 0.12))
    assert repr(sampler).startswith("MultiBlockMask(grid_size=(8, 9), num_targets=4,")


@pytest.mark.no_hook
@pytest.mark.parametrize("quirk", ["prefix_truncation", "relax_when_stuck"])
def test_switches_are_bools(quirk):
    with pytest.raises(TypeError, match=f"{quirk}=1: must be a bool, got int"):
        ReferenceMultiBlockMask((14, 14), **{quirk: 1})


def test_one_block_is_no_mistake():
    """A single value at the ratio or above, and the default whatever the ratio."""
    for arguments in ({"block_scale": (1.0, 1.0)}, {"block_scale": (0.1, 0.1)}, {}):
        assert BlockMask((8, 8), target_ratio=0.05, **arguments).num_uniforms == 4


def test_one_number_of_steps_is_no_mistake():
    masks = [
        CausalMask((8, 4), num_context_steps=(4, 4), context_size_per=size)(3)
        for size in ("batch", "sample")
    ]
    assert torch.equal(masks[0].context.idx, masks[1].context.idx)
    assert torch.equal(masks[0].targets.idx, masks[1].targets.idx)


def test_a_single_level_is_multi_block():
    nested = NestedMask((12, 14), MultiBlockMask((12, 14), target_size_per="sample"))
    plain = MultiBlockMask((12, 14), target_size_per="sample")
    one, other = (s(8, generator=torch.Generator().manual_seed(0)) for s in (nested, plain))
    assert torch.equal(one.context.to_mask(), other.context.to_mask())
    assert torch.equal(one.targets.to_mask(), other.targets.to_mask())


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (15, 13), (9, 17)])
@pytest.mark.parametrize("length", ["pad", "trim", 3])
def test_nested_levels_hold_what_they_should(grid, length):
    """Trap: levels sampled independently, or a level whose scale is infeasible."""
    coarsest = tuple(-(-side // 4) for side in grid)
    sampler = NestedMask(grid, MultiBlockMask(coarsest, context_length=length))
    masks = sampler(64, generator=torch.Generator().manual_seed(0))
    for level in range(3):
        coarse = masks.coarsen(level)
        context, targets = coarse.context.to_mask(), coarse.targets.to_mask()
        assert not (context[:, None] & targets).any()
        assert context.any(1).all() and targets.any(2).all()
    counts = masks.coarsen(2).context.counts()
    assert (
        (counts >= sampler.sampler.min_context_tokens).all() if length != 3 else (counts == 3).all()
    )


def test_grown_blocks_are_compact():
    """A block is in one piece and fills most of its bounding box, whatever its number of cells."""
    masks = InverseBlockMask((14, 14), context_ratio=0.2)(256)
    fields = masks.context.to_mask().view(-1, 14, 14)
    height, width = fields.any(2).sum(1), fields.any(1).sum(1)
    assert (39 / (height * width) > 0.6).all()


def test_every_position_takes_both_roles():
    for sampler in (
        BlockMask((8, 9)),
        InverseBlockMask((8, 9)),
        NestedMask((16, 18), MultiBlockMask((4, 5))),
    ):
        masks = sampler(3000, generator=torch.Generator().manual_seed(0))
        assert masks.context.to_mask().any(0).all()
        assert masks.targets.to_mask().any(0).any(0).all()
