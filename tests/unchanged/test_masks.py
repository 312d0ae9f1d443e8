"""Every sampler draws, by seed, the masks that it drew when `masks.json` was written.

For each case and seed the file holds the SHA-256 of shapes, indices (int64) and validity (uint8) of
the context and of the targets, little-endian. Nothing is compared but what is drawn: names of
arguments and classes may change here, hashes and names of cases may not.

To write the file anew, from the root: `python -m tests.unchanged.test_masks --write`.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jepakit import IndexedDataset, MaskCollator, Masks, MultiBlockMask, RandomMask, TokenSet
from jepakit.data import EpochIndex
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
    masks_from_indices,
    vjepa_masks,
)

FILE = Path(__file__).with_name("masks.json")
SEEDS = (0, 1, 2)
BATCH = 16

IMAGE, SMALL, LONG, VIDEO, TEXT = (14, 14), (5, 6), (8, 20), (8, 10, 10), (60,)
DISJOINT = {"allow_target_overlap": False, "target_scale": (0.08, 0.12)}
SHORT_RANGE = {"num_targets": 8, "target_scale": (0.15, 0.15), "min_context_coverage": 0.05}
LONG_RANGE = {"num_targets": 2, "target_scale": (0.7, 0.7), "min_context_coverage": 0.05}
# Settings under which every quirk changes the masks of at least one seed.
QUIRKY = {
    "grid_size": (7, 13),
    "num_targets": 5,
    "target_scale": (0.25, 0.5),
    "context_scale": (0.6, 1.0),
    "min_keep": 10,
}
QUIRKS = (
    "prefix_truncation",
    "skip_last",
    "tied_aspect",
    "floor_area",
    "clip_below_grid",
    "square_context",
    "relax_when_stuck",
)

SAMPLERS: dict[str, Callable[[], Any]] = {
    # Multi-block, images
    "multi-block": lambda: MultiBlockMask(IMAGE, context_length="pad"),
    "multi-block, sizes by sample": lambda: MultiBlockMask(
        IMAGE, target_size_per="sample", context_length="pad"
    ),
    "multi-block, trim": lambda: MultiBlockMask(
        IMAGE, context_length="trim", context_subset="random"
    ),
    "multi-block, trim, sizes by sample": lambda: MultiBlockMask(
        IMAGE, context_length="trim", context_subset="random", target_size_per="sample"
    ),
    "multi-block, length 40": lambda: MultiBlockMask(
        IMAGE, context_length=40, context_subset="random"
    ),
    "multi-block, length 40, sizes by sample": lambda: MultiBlockMask(
        IMAGE, context_length=40, context_subset="random", target_size_per="sample"
    ),
    "multi-block, disjoint": lambda: MultiBlockMask(IMAGE, **DISJOINT, context_length="pad"),
    "multi-block, disjoint, sizes by sample": lambda: MultiBlockMask(
        IMAGE, **DISJOINT, target_size_per="sample", context_length="pad"
    ),
    "multi-block, disjoint, trim": lambda: MultiBlockMask(
        IMAGE, **DISJOINT, context_length="trim", context_subset="random"
    ),
    "multi-block, disjoint, tight": lambda: MultiBlockMask(
        (8, 8),
        num_targets=3,
        target_scale=(0.25, 0.25),
        target_aspect_ratio=(1.0, 1.0),
        context_scale=(1.0, 1.0),
        min_context_coverage=0.2,
        allow_target_overlap=False,
        context_length="pad",
    ),
    "multi-block, one target": lambda: MultiBlockMask(
        IMAGE,
        num_targets=1,
        target_scale=(0.1, 0.6),
        target_aspect_ratio=(0.3, 3.0),
        context_length="pad",
    ),
    "multi-block, coverage binds": lambda: MultiBlockMask(
        IMAGE,
        num_targets=6,
        target_scale=(0.2, 0.3),
        min_context_coverage=0.5,
        context_length="pad",
    ),
    "multi-block, small context block": lambda: MultiBlockMask(
        IMAGE,
        context_scale=(0.3, 0.6),
        min_context_coverage=0.05,
        target_size_per="sample",
        context_length="pad",
    ),
    "multi-block, long grid": lambda: MultiBlockMask(
        LONG, target_size_per="sample", context_length="pad"
    ),
    "multi-block, small grid": lambda: MultiBlockMask(SMALL, context_length="pad"),
    "multi-block, small grid, disjoint": lambda: MultiBlockMask(
        SMALL,
        num_targets=2,
        allow_target_overlap=False,
        context_length="trim",
        context_subset="random",
    ),
    "multi-block, 2 x 2": lambda: MultiBlockMask((2, 2), num_targets=2, context_length="pad"),
    "multi-block, published configuration": lambda: MultiBlockMask.from_ijepa_config(
        IMAGE, context_length="pad"
    ),
    "multi-block, published configuration, other values": lambda: MultiBlockMask.from_ijepa_config(
        (16, 16),
        enc_mask_scale=[0.7, 0.9],
        pred_mask_scale=[0.1, 0.15],
        aspect_ratio=[0.5, 2.0],
        npred=3,
        min_keep=30,
        target_size_per="sample",
        context_length=25,
        context_subset="random",
    ),
    # Multi-block, other grids
    "multi-block, text": lambda: MultiBlockMask(TEXT, context_length="pad"),
    "multi-block, text, disjoint, length 12": lambda: MultiBlockMask(
        TEXT, **DISJOINT, context_length=12, context_subset="random"
    ),
    "multi-block, text, trim, sizes by sample": lambda: MultiBlockMask(
        TEXT, context_length="trim", context_subset="random", target_size_per="sample"
    ),
    "multi-block, video": lambda: MultiBlockMask(VIDEO, context_length="pad"),
    "multi-block, video, short range": lambda: MultiBlockMask(
        VIDEO, **SHORT_RANGE, context_length="pad"
    ),
    "multi-block, video, long range": lambda: MultiBlockMask(
        VIDEO, **LONG_RANGE, context_length="pad"
    ),
    "multi-block, video, part of the time": lambda: MultiBlockMask(
        VIDEO, temporal_scale=(0.25, 0.75), target_size_per="sample", context_length="pad"
    ),
    "multi-block, video, early context": lambda: MultiBlockMask(
        VIDEO,
        context_frames_ratio=0.5,
        min_context_coverage=0.1,
        context_length="trim",
        context_subset="random",
    ),
    "multi-block, video, disjoint": lambda: MultiBlockMask(
        VIDEO,
        **DISJOINT,
        temporal_scale=(0.5, 1.0),
        context_frames_ratio=0.75,
        context_length=100,
        context_subset="random",
    ),
    "multi-block, one frame": lambda: MultiBlockMask((1, 10, 10), context_length="pad"),
    # Multi-block, contexts of a fixed length
    "multi-block, fixed": lambda: MultiBlockMask(IMAGE),
    "multi-block, fixed, sizes by sample": lambda: MultiBlockMask(IMAGE, target_size_per="sample"),
    "multi-block, fixed, random": lambda: MultiBlockMask(IMAGE, context_subset="random"),
    "multi-block, fixed, disjoint": lambda: MultiBlockMask(IMAGE, **DISJOINT),
    "multi-block, fixed, video": lambda: MultiBlockMask(VIDEO),
    "multi-block, fixed, published configuration": lambda: MultiBlockMask.from_ijepa_config(IMAGE),
    "nested, fixed": lambda: NestedMask(IMAGE, MultiBlockMask((4, 4))),
    "complement, fixed": lambda: ComplementMask(MultiBlockMask(IMAGE)),
    # Others
    "random": lambda: RandomMask(IMAGE),
    "random, half, length 9": lambda: RandomMask(SMALL, target_ratio=0.5, context_length=9),
    "random, video": lambda: RandomMask(VIDEO, target_ratio=0.9),
    "random, text": lambda: RandomMask(TEXT, target_ratio=0.15),
    "block": lambda: BlockMask(IMAGE),
    "block, many small ones": lambda: BlockMask(
        LONG, target_ratio=0.6, block_scale=(0.03, 0.1), block_aspect_ratio=(0.5, 2.0)
    ),
    "inverse block": lambda: InverseBlockMask(IMAGE),
    "inverse block, of several": lambda: InverseBlockMask(
        LONG, context_ratio=0.3, block_scale=(0.05, 0.15)
    ),
    "causal, video": lambda: CausalMask(VIDEO),
    "causal, video, by sample": lambda: CausalMask(
        VIDEO,
        num_context_steps=(2, 4),
        num_targets=2,
        num_target_steps=2,
        context_size_per="sample",
    ),
    "causal, text": lambda: CausalMask(TEXT, context_size_per="sample"),
    "causal, rows of an image": lambda: CausalMask(SMALL, num_target_steps=1),
    "causal, columns of an image": lambda: CausalMask(SMALL, axis=1, context_size_per="sample"),
    "tubes of random": lambda: TubeMask(4, RandomMask(SMALL, target_ratio=0.9)),
    "tubes of multi-block": lambda: TubeMask(
        3, MultiBlockMask((10, 10), target_size_per="sample", context_length="pad")
    ),
    "union of multi-block": lambda: UnionMask(MultiBlockMask(IMAGE)),
    "V-JEPA's sets": lambda: vjepa_masks(VIDEO, context_length="trim"),
    "complement of multi-block": lambda: ComplementMask(
        MultiBlockMask(IMAGE, context_length="pad")
    ),
    "complement of multi-block, length 30": lambda: ComplementMask(
        MultiBlockMask(IMAGE, context_length=30, context_subset="random")
    ),
    "mixture": lambda: MultiContextMask(
        (
            MultiBlockMask(VIDEO, **SHORT_RANGE, context_length="pad"),
            MultiBlockMask(VIDEO, **LONG_RANGE, context_length="pad"),
        )
    ),
    "mixture of kinds": lambda: MultiContextMask(
        (
            RandomMask(IMAGE),
            BlockMask(IMAGE),
            ComplementMask(MultiBlockMask(IMAGE, context_length="pad")),
        )
    ),
    "nested": lambda: NestedMask((16, 16), MultiBlockMask((4, 4), context_length="pad")),
    "nested, cut off by the border": lambda: NestedMask(
        IMAGE, MultiBlockMask((4, 4), context_length="pad")
    ),
    "nested, one level": lambda: NestedMask(IMAGE, MultiBlockMask(IMAGE, context_length="pad")),
    "nested, disjoint": lambda: NestedMask(
        (20, 28),
        MultiBlockMask(
            (10, 14),
            num_targets=3,
            target_scale=(0.1, 0.15),
            target_aspect_ratio=(0.5, 2.0),
            context_scale=(0.9, 1.0),
            min_context_coverage=0.2,
            allow_target_overlap=False,
            context_length="pad",
        ),
    ),
    "nested, trim, sizes by sample": lambda: NestedMask(
        (16, 16),
        MultiBlockMask(
            (4, 4), target_size_per="sample", context_length="trim", context_subset="random"
        ),
    ),
    "nested, length 3": lambda: NestedMask(
        IMAGE, MultiBlockMask((4, 4), context_length=3, context_subset="random")
    ),
    "nested, video": lambda: NestedMask(
        (8, 16, 16), MultiBlockMask((4, 8, 8), context_length="pad")
    ),
    "published": lambda: ReferenceMultiBlockMask(IMAGE),
    "published, quirky": lambda: ReferenceMultiBlockMask(**QUIRKY),
    **{
        f"published, quirky, without {quirk}": lambda quirk=quirk: ReferenceMultiBlockMask(
            **QUIRKY, **{quirk: False}
        )
        for quirk in QUIRKS
    },
    "published, quirky, without all": lambda: ReferenceMultiBlockMask(
        **QUIRKY, **dict.fromkeys(QUIRKS, False)
    ),
    # Where 20 places do not do, so that targets are given up or the best place is taken.
    "published, stuck": lambda: ReferenceMultiBlockMask(
        (10, 10), num_targets=6, target_scale=(0.3, 0.4), min_keep=24
    ),
    "published, stuck, without relax_when_stuck": lambda: ReferenceMultiBlockMask(
        (10, 10), num_targets=6, target_scale=(0.3, 0.4), min_keep=24, relax_when_stuck=False
    ),
}


def collated(
    sampler: Any, seed: int, epoch: int, *, by_index: bool = False, step: int | None = None
) -> Any:
    """Masks that a collator draws for two batches; the epoch is set, or carried by the indices."""
    collate = MaskCollator(sampler, seed=seed)
    dataset = IndexedDataset(torch.zeros(100, 1))
    drawn = []
    for indices in ([7, 3, 99, 0, 41], [12, 7]):
        # Once more for the second batch, so that an index that comes again is no mistake.
        collate.set_epoch(0 if by_index else epoch)
        kept = [EpochIndex(index, epoch, step) if by_index else index for index in indices]
        masks = collate([dataset[index] for index in kept])[1]
        drawn += masks if isinstance(masks, list) else [masks]
    return drawn


def of_indices(seed: int) -> Masks:
    idx = torch.rand(BATCH, 3, 10, generator=torch.Generator().manual_seed(seed)) * 30
    return masks_from_indices(idx[:, 0].long(), [idx[:, 1].long(), idx[:, 2, :4].long()], SMALL)


def coarser(seed: int) -> Masks:
    return MultiBlockMask(IMAGE, context_length="pad")(
        BATCH, generator=torch.Generator().manual_seed(seed)
    ).coarsen(2)


# Seed to masks, or to a list of them.
DRAWS: dict[str, Callable[[int], Any]] = {
    **{
        name: lambda seed, build=build: build()(
            BATCH, generator=torch.Generator().manual_seed(seed)
        )
        for name, build in SAMPLERS.items()
    },
    "collated by sample": lambda seed: collated(
        MultiBlockMask(IMAGE, target_size_per="sample", context_length="pad"), seed, 0
    ),
    "collated by sample, epoch 3": lambda seed: collated(RandomMask(IMAGE), seed, 3),
    "collated by sample, epoch 3 of the indices": lambda seed: collated(
        RandomMask(IMAGE), seed, 3, by_index=True
    ),
    "collated by batch": lambda seed: collated(
        MultiBlockMask(IMAGE, context_length="pad"), seed, 0
    ),
    "collated by batch, epoch 3": lambda seed: collated(ReferenceMultiBlockMask(IMAGE), seed, 3),
    "collated by step, epoch 3": lambda seed: collated(
        MultiBlockMask(IMAGE, context_length="pad"), seed, 3, by_index=True, step=5
    ),
    "collated mixture": lambda seed: collated(
        MultiContextMask((RandomMask(IMAGE), BlockMask(IMAGE))), seed, 1
    ),
    "from indices": of_indices,
    "coarser": coarser,
}


def digest(drawn: Any) -> str:
    found = hashlib.sha256()
    for masks in drawn if isinstance(drawn, list) else [drawn]:
        for tokens in (masks.context, masks.targets):
            found.update(_bytes(tokens))
    return found.hexdigest()


def _bytes(tokens: TokenSet) -> bytes:
    idx = tokens.idx.contiguous().numpy().astype("<i8")
    valid = tokens.valid.contiguous().numpy().astype("u1")
    return repr(tuple(tokens.idx.shape)).encode() + idx.tobytes() + valid.tobytes()


@pytest.fixture(scope="module")
def stored() -> dict[str, list[str]]:
    return json.loads(FILE.read_text())


@pytest.mark.parametrize("name", DRAWS)
def test_masks(name, stored):
    assert [digest(DRAWS[name](seed)) for seed in SEEDS] == stored[name]


def test_nothing_is_stored_that_is_not_drawn(stored):
    assert list(stored) == list(DRAWS)


def _write() -> None:
    hashes = {name: [digest(draw(seed)) for seed in SEEDS] for name, draw in DRAWS.items()}
    FILE.write_text(json.dumps(hashes, indent=1) + "\n")
    print(f"{FILE.name}: {len(hashes)} cases")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("--write: the hashes of today's masks in place of the stored ones")
    _write()
