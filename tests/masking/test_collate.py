"""`MaskCollator`: masks by (seed, epoch, index), however the loading is arranged."""

import copy
import multiprocessing
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from jepakit import (
    IndexedDataset,
    InfeasibleMaskError,
    MaskCollator,
    Masks,
    MultiBlockMask,
    RandomMask,
)
from jepakit.data import ResumableBatches
from jepakit.masking import (
    BlockMask,
    CausalMask,
    ComplementMask,
    Indexed,
    MaskSampler,
    MultiContextMask,
    NestedMask,
    TubeMask,
    UnionMask,
)

# Python 3.12 and 3.13 fork by default, and warn of it where a library runs threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

GRID = (6, 7)
SIZE = 24
PER_SAMPLE = [
    MultiBlockMask(GRID, target_size_per="sample"),
    MultiBlockMask(GRID, target_size_per="sample", context_length=6),
    RandomMask(GRID),
    BlockMask(GRID, block_scale=(0.05, 0.1)),
    NestedMask((12, 14), MultiBlockMask((3, 4), target_size_per="sample", context_length=3)),
    ComplementMask(MultiBlockMask((4, *GRID), temporal_scale=(0.5, 1.0), target_size_per="sample")),
    UnionMask(MultiBlockMask(GRID, target_size_per="sample")),
]
PER_BATCH = [
    MultiBlockMask(GRID),
    MultiBlockMask(GRID, context_length="trim"),
    MultiBlockMask(GRID, target_size_per="sample", context_length="trim"),
    MultiBlockMask(GRID, context_length=6),
]
Drawn = dict[int, tuple[bytes, bytes]]


def dataset() -> IndexedDataset:
    return IndexedDataset(TensorDataset(torch.zeros(SIZE, 1, 2, 2), torch.arange(SIZE)))


def loader(masks: MaskSampler, /, **arguments: object) -> DataLoader:
    return DataLoader(dataset(), collate_fn=MaskCollator(masks), **arguments)


def drawn(batches: Iterable) -> Drawn:
    """The masks of every sample, by the index that its label holds."""
    found: Drawn = {}
    for (_, labels), masks in batches:
        context, targets = masks.context.to_mask(), masks.targets.to_mask()
        for row, index in enumerate(labels.tolist()):
            found[index] = context[row].numpy().tobytes(), targets[row].numpy().tobytes()
    return found


def draw(collate: MaskCollator, indices: Iterable[int]) -> Drawn:
    samples = dataset()
    collate.set_epoch(collate.epoch)  # to draw an epoch once more without a warning
    return drawn([collate([samples[index] for index in indices])])


@pytest.mark.parametrize("sampler", PER_SAMPLE, ids=repr)
def test_any_arrangement_draws_the_same(sampler):
    """Law 2. Traps: a shared counter taken in worker order; masks that change on a resume."""
    expected = drawn(loader(sampler, batch_size=8))
    assert len(expected) == SIZE
    assert len(set(expected.values())) == SIZE
    for batch_size in (1, 5, SIZE):
        assert drawn(loader(sampler, batch_size=batch_size)) == expected
    assert drawn(loader(sampler, batch_size=4, shuffle=True)) == expected
    ranks = [drawn(loader(sampler, batch_size=4, sampler=range(r, SIZE, 3))) for r in range(3)]
    assert {index: mask for rank in ranks for index, mask in rank.items()} == expected
    rest = drawn(loader(sampler, batch_size=8, sampler=range(10, SIZE)))
    assert rest == {index: expected[index] for index in range(10, SIZE)}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("sampler", [PER_SAMPLE[0], PER_BATCH[0]], ids=repr)
def test_any_number_of_workers_draws_the_same(sampler):
    """Trap: workers that start from one state, and draw the same masks or race for them."""
    tables = [drawn(loader(sampler, batch_size=6, num_workers=n)) for n in (0, 1, 2, 4)]
    assert all(table == tables[0] for table in tables)
    assert len(set(tables[0].values())) == SIZE


def test_several_contexts_for_an_image():
    """A mixture's list of masks, and each member's the same however the loading is arranged."""
    members = (RandomMask(GRID), MultiBlockMask(GRID, target_size_per="sample"))
    found = [
        [masks for _, masks in loader(MultiContextMask(members), batch_size=size)]
        for size in (4, SIZE)
    ]
    for member in range(2):
        tables = [
            torch.cat([masks[member].targets.to_mask() for masks in batches]) for batches in found
        ]
        assert torch.equal(*tables)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_resumed_in_the_middle_of_an_epoch(ranks):
    """Law 2: every rank, killed after some batches, goes on with the masks it would have drawn."""
    sampler = PER_SAMPLE[0]
    whole = drawn(loader(sampler, batch_size=6))
    for rank in range(ranks):
        indices = list(range(rank, SIZE, ranks))
        rest = drawn(loader(sampler, batch_size=3, sampler=indices[len(indices) // 2 :]))
        assert rest == {index: whole[index] for index in indices[len(indices) // 2 :]}


@pytest.mark.parametrize("sampler", [PER_BATCH[0], PER_BATCH[1], PER_BATCH[3]], ids=repr)
def test_a_batch_is_a_function_of_its_indices(sampler):
    """Where the indices carry no step, sizes that a batch shares follow from them in order."""
    collate = MaskCollator(sampler, seed=3)
    expected = draw(collate, [4, 7, 9])
    draw(collate, [1, 2])
    torch.manual_seed(1)
    assert draw(collate, [4, 7, 9]) == expected
    assert draw(MaskCollator(sampler, seed=3), [4, 7, 9]) == expected
    others = [draw(collate, [4, 7, other])[4] for other in range(10, 20)]
    assert any(masks != expected[4] for masks in others)  # by other sizes, of which there are few


@pytest.mark.parametrize("sampler", [*PER_SAMPLE, *PER_BATCH], ids=repr)
def test_seed_and_epoch_matter(sampler):
    """Trap: an ignored seed; the same masks in every epoch."""
    tables = []
    for seed in (0, 1, -1, 2**62):
        collate = MaskCollator(sampler, seed=seed)
        for epoch in (0, 1, 2):
            collate.set_epoch(epoch)
            assert collate.epoch == epoch
            tables.append(draw(collate, range(8)))
    for index in range(8):
        assert len({table[index] for table in tables}) == len(tables)


def test_drawing_leaves_the_global_generator_alone():
    """Law 15."""
    for sampler in (*PER_SAMPLE, *PER_BATCH):
        before = torch.get_rng_state()
        draw(MaskCollator(sampler), range(4))
        assert torch.equal(torch.get_rng_state(), before)


def epochs_of(batches: DataLoader) -> Iterator[Drawn]:
    for epoch in (0, 1, 5):
        batches.collate_fn.set_epoch(epoch)
        yield drawn(batches)


START_METHODS = [
    pytest.param(method, marks=pytest.mark.slow)
    for method in multiprocessing.get_all_start_methods()
]


@pytest.mark.parametrize("start", [None, *START_METHODS])
def test_the_epoch_reaches_persistent_workers(start):
    """Trap: workers that keep the copy of the collator they were started with."""
    sampler = PER_SAMPLE[0]
    expected = list(epochs_of(loader(sampler, batch_size=6)))
    assert len({table[0] for table in expected}) == 3
    batches = loader(
        sampler,
        batch_size=6,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context=start,
    )
    assert list(epochs_of(batches)) == expected


def test_copies():
    """Law 13. A copy has its own epoch, and hands it to its own workers."""
    collate = MaskCollator(PER_SAMPLE[0], seed=5)
    collate.set_epoch(2)
    expected = draw(collate, range(4))
    for twin in (copy.deepcopy(collate), pickle.loads(pickle.dumps(collate))):
        assert draw(twin, range(4)) == expected
        assert twin._epoch.is_shared()
        twin.set_epoch(3)
        assert collate.epoch == 2


def test_repr():
    collate = MaskCollator(RandomMask((4, 4)), seed=5)
    assert eval(repr(collate)).seed == 5 and eval(repr(collate)).sampler == collate.sampler
    assert "collate_fn=" in repr(MaskCollator(RandomMask((4, 4)), collate_fn=len))


def test_any_callable_will_do():
    calls = []

    def sampler(
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Masks:
        calls.append(batch_size)
        return RandomMask(GRID)(batch_size, generator=generator, device=device)

    assert isinstance(sampler, MaskSampler)
    collate = MaskCollator(sampler)
    expected = draw(collate, [3, 5])
    assert draw(collate, [3, 5]) == expected
    assert draw(collate, [5, 3]) != expected
    assert calls == [2, 2, 2]


def test_other_collations():
    samples = dataset()
    collate = MaskCollator(PER_SAMPLE[0], collate_fn=lambda samples: {"n": len(samples)})
    batch, masks = collate([samples[0], samples[1]])
    assert batch == {"n": 2}
    assert masks.context.shape[0] == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_images_are_finite(bad):
    images = torch.zeros(4, 3, 2, 2)
    images[2, 1, 0, 1] = bad
    samples = IndexedDataset(TensorDataset(images, torch.arange(4)))
    text = (
        "samples: must be finite, but 1 of 4 entries of the batch hold NaN or infinity (the first "
        "at batch position 2)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        MaskCollator(PER_SAMPLE[0])([samples[index] for index in range(4)])


def test_infinities_that_cancel_are_found():
    images = torch.zeros(2, 1, 1, 2)
    images[1] = torch.tensor([float("inf"), -float("inf")])
    samples = IndexedDataset(TensorDataset(images))
    with pytest.raises(ValueError, match="the first at batch position 1"):
        MaskCollator(PER_SAMPLE[0])([samples[0], samples[1]])


def test_empty_batch():
    with pytest.raises(ValueError, match=r"^samples=\[\]: the batch must not be empty$"):
        MaskCollator(PER_SAMPLE[0])([])


@pytest.mark.no_hook
def test_the_dataset_must_be_wrapped():
    bare = TensorDataset(torch.zeros(2, 1, 2, 2))
    text = (
        "samples: must come from IndexedDataset, got tuple; wrap the dataset: "
        "DataLoader(IndexedDataset(dataset), collate_fn=MaskCollator(...)), or give MaskCollator a "
        "key"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        next(iter(DataLoader(bare, collate_fn=MaskCollator(PER_SAMPLE[0]))))


@pytest.mark.no_hook
def test_the_loader_must_batch():
    text = (
        "samples: must be a list of samples, got a single jepakit.masking.collate.Indexed; give "
        "the DataLoader a batch_size"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        next(iter(loader(PER_SAMPLE[0], batch_size=None)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scalars_are_finite(bad):
    """A collation may hand on a scalar of the batch, which has no first axis to count along."""
    collate = MaskCollator(PER_SAMPLE[0], collate_fn=lambda samples: torch.tensor(bad))
    with pytest.raises(ValueError, match=r"^samples: must be finite, but 1 of 1 entries"):
        collate([dataset()[0]])
    finite = MaskCollator(PER_SAMPLE[0], collate_fn=lambda samples: torch.tensor(1.0))
    assert finite([dataset()[0]])[0] == 1


@pytest.mark.parametrize("epoch", [-1, -7])
def test_epochs(epoch):
    with pytest.raises(ValueError, match=f"epoch={epoch}: must be at least 0"):
        MaskCollator(PER_SAMPLE[0]).set_epoch(epoch)


@pytest.mark.no_hook
def test_wrong_kinds():
    with pytest.raises(TypeError, match=r"sampler=3: must be callable as sampler\(batch_size\)"):
        MaskCollator(3)
    with pytest.raises(TypeError, match=r"seed=1\.0: must be an int, got float"):
        MaskCollator(PER_SAMPLE[0], seed=1.0)
    with pytest.raises(TypeError, match=r"epoch=1\.0: must be an int, got float"):
        MaskCollator(PER_SAMPLE[0]).set_epoch(1.0)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_seeds_fit_64_bits(seed):
    with pytest.raises(ValueError, match=rf"^seed={seed}: must be at (most|least)"):
        MaskCollator(PER_SAMPLE[0], seed=seed)


def test_indexed_dataset():
    samples = IndexedDataset(["a", "b", "c"])
    assert len(samples) == 3
    assert samples[2] == Indexed(2, "c")


@pytest.mark.parametrize("bad", [iter([1]), {1, 2}, 3])
def test_iterable_datasets_have_no_index(bad):
    text = f"dataset={type(bad).__name__}: must have __"
    with pytest.raises(TypeError, match=text):
        IndexedDataset(bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_pass_of_resumable_batches_has_its_own_masks(workers):
    """Trap: a loader that runs through all epochs in one go has no place for `set_epoch`."""
    sampler, steps = RandomMask(GRID), 3 * SIZE // 4
    order = ResumableBatches(SIZE, 4, steps=steps, seed=0)
    collate = MaskCollator(sampler, seed=1)
    run = list(DataLoader(dataset(), batch_sampler=order, collate_fn=collate, num_workers=workers))
    passes = [drawn(run[start : start + SIZE // 4]) for start in range(0, steps, SIZE // 4)]
    for epoch, masks in enumerate(passes):
        collate.set_epoch(epoch)
        assert masks == drawn(DataLoader(dataset(), batch_size=4, collate_fn=collate))
    rest = ResumableBatches(SIZE, 4, steps=steps, seed=0, first_step=2 * SIZE // 4)
    resumed = DataLoader(
        dataset(), batch_sampler=rest, collate_fn=MaskCollator(sampler, seed=1), num_workers=workers
    )
    assert drawn(resumed) == passes[2]


def test_a_batch_with_one_draw_for_all_differs_between_passes():
    order = ResumableBatches(SIZE, SIZE, steps=2, seed=0)
    indices = next(iter(order))
    collate = MaskCollator(MultiBlockMask(GRID), seed=1)
    data = dataset()
    again = [type(index)(index, index.epoch + 1) for index in indices]
    first, second = (drawn([collate([data[i] for i in each])]) for each in (indices, again))
    assert first != second
    collate.set_epoch(1)
    assert second == drawn([collate([data[int(i)] for i in indices])])


def test_an_epoch_that_the_indices_contradict_raises():
    """Trap: `set_epoch` on every pass, beside indices that say 0 each time: one draw for all."""
    data, collate = dataset(), MaskCollator(RandomMask(GRID), seed=1)
    first, second = (list(ResumableBatches(SIZE, 4, steps=SIZE, seed=0))[step] for step in (0, -1))
    collate.set_epoch(2)
    with pytest.raises(
        ValueError, match=r"set_epoch\(2\): has no effect, since the indices .* epoch 0;"
    ):
        collate([data[index] for index in first])
    with pytest.raises(ValueError, match=r"samples: must be of one epoch"):
        collate([data[index] for index in (*first, *second)])


def test_masks_of_a_batch_depend_on_the_order_of_its_indices():
    collate, masks = MaskCollator(MultiBlockMask((14, 14)), seed=3), []
    for order in ([4, 7], [7, 4]):
        collate.set_epoch(0)
        masks.append(collate([Indexed(i, 0) for i in order])[1])
    first, other = masks
    assert not torch.equal(first.targets.to_mask(), other.targets.to_mask())


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"sampler": RandomMask}, "^sampler=.*: must be callable as sampler"),
        ({"sampler": RandomMask((4, 4)), "collate_fn": None}, "^collate_fn=None: must be callable"),
    ],
)
def test_what_cannot_collate_is_refused(arguments, text):
    with pytest.raises(TypeError, match=text):
        MaskCollator(**arguments)


class Clip(NamedTuple):
    """A padded clip and where it holds data."""

    frames: Tensor
    has_data: Tensor


def clips(lengths: list[int]) -> list[Clip]:
    return [Clip(torch.zeros(6, 4), torch.arange(24) < 4 * n) for n in lengths]


@pytest.mark.parametrize("per", ["sample", "batch"])
@pytest.mark.parametrize(
    "valid",
    ["has_data", lambda clip: clip.has_data.view(6, 2, 2).numpy()],
    ids=["name", "function"],
)
def test_masks_lie_where_a_sample_holds_data(per, valid):
    """Trap: clips are padded to one length, and the masks do not know."""
    lengths = [6, 2, 3, 6]
    sampler = MultiBlockMask((6, 2, 2), target_size_per=per)
    collate = MaskCollator(sampler, valid=valid)
    loader = DataLoader(IndexedDataset(clips(lengths)), batch_size=4, collate_fn=collate)
    batch, masks = next(iter(loader))
    assert masks.context.counts().tolist() == [6, 2, 3, 6]  # a quarter of what is there
    for tokens in (masks.context.to_mask()[:, None], masks.targets.to_mask()):
        assert not (tokens & ~batch.has_data[:, None]).any()
    if per == "sample":  # the masks of a sample are its own, whatever it is batched with
        collate.set_epoch(0)
        alone = collate([IndexedDataset(clips(lengths))[1]])[1]
        assert torch.equal(alone.context.to_mask()[0], masks.context.to_mask()[1])
        assert torch.equal(alone.targets.to_mask()[0], masks.targets.to_mask()[1])


def test_fields_of_mappings_and_samplers_of_the_user():
    samples = [{"x": 1, "there": torch.tensor([True, False, True])}]
    seen = {}

    def own(batch_size: int, *, generator: torch.Generator, valid: Tensor) -> Masks:
        seen["valid"] = valid
        return RandomMask((3,), target_ratio=0.5)(batch_size, valid=valid, generator=generator)

    MaskCollator(own, valid="there")([IndexedDataset(samples)[0]])
    assert torch.equal(seen["valid"], samples[0]["there"][None])


def test_errors_of_valid_name_the_sample():
    collate = MaskCollator(RandomMask((3,)), valid="there")
    with pytest.raises(TypeError, match=r"valid='there': must name a field .* sample 0 is dict"):
        collate([IndexedDataset([{"x": 1}])[0]])
    with pytest.raises(TypeError, match=r"valid='there': must name a field .* sample 0 is int"):
        collate([IndexedDataset([1])[0]])
    for wrong in (torch.ones(3), torch.ones(2, dtype=torch.bool)):
        first = {"there": torch.ones(3, dtype=torch.bool)}
        dataset = IndexedDataset([first, {"there": wrong}])
        with pytest.raises(ValueError, match="valid of sample 1: must be bool, with one entry"):
            collate([dataset[0], dataset[1]])
    with pytest.raises(TypeError, match="valid of sample 0: must be a bool mask, got NoneType"):
        collate([IndexedDataset([{"there": None}])[0]])
    few = IndexedDataset([{"there": torch.arange(3) < n} for n in (3, 2, 1)])
    with pytest.raises(InfeasibleMaskError, match=r"valid\[1\]: 1 valid .*the samples \[0, 2\]"):
        MaskCollator(RandomMask((3,)), valid="there", collate_fn=list)([few[0], few[2]])
    assert "valid='there'" in repr(collate)


@pytest.mark.no_hook
def test_a_mask_of_one_batch_is_no_field():
    with pytest.raises(TypeError, match="valid=3: must be the name of a field or valid"):
        MaskCollator(RandomMask((3,)), valid=3)


# The same masks for any number of ranks

SHARED_SIZES = [
    MultiBlockMask((14, 14)),
    MultiBlockMask((4, *GRID), temporal_scale=(0.5, 1.0), context_length="pad"),
    MultiBlockMask((12, 12), allow_target_overlap=False, target_scale=(0.05, 0.12)),
    CausalMask((6, 2, 2)),
    NestedMask((12, 14), MultiBlockMask((3, 4), context_length=3)),
    TubeMask(3, MultiBlockMask(GRID)),
    MultiContextMask((RandomMask((14, 14)), MultiBlockMask((14, 14)))),
]
FEW_SAMPLES = torch.arange(20)


def runs_of(ranks: int, sampler: MaskSampler, **arguments: object) -> dict[tuple[int, int], Drawn]:
    """The masks of a run on some ranks, by step and sample."""
    samples = IndexedDataset(TensorDataset(torch.zeros(20, 1), FEW_SAMPLES))
    found: dict[tuple[int, int], Drawn] = {}
    for rank in range(ranks):
        order = ResumableBatches(
            20, 8 // ranks, steps=5, seed=4, rank=rank, world_size=ranks, drop_last=False
        )
        batches = DataLoader(
            samples, batch_sampler=order, collate_fn=MaskCollator(sampler, seed=2), **arguments
        )
        for step, ((_, labels), masks) in enumerate(batches):
            members = masks if isinstance(masks, list) else [masks]
            parts = [drawn([((None, labels), member)]) for member in members]
            for index in labels.tolist():
                assert (step, index) not in found  # no two ranks draw for one sample
                found[step, index] = tuple(part[index] for part in parts)
    return found


@pytest.mark.parametrize("sampler", [*PER_SAMPLE[:3], *SHARED_SIZES], ids=repr)
def test_any_number_of_ranks_draws_the_masks_of_one(sampler):
    """Laws 2 and 8. Trap: sizes that a batch shares follow from the indices of one rank's part."""
    one, two, four = (runs_of(ranks, sampler) for ranks in (1, 2, 4))
    assert len(one) == 8 + 8 + 4 + 8 + 8
    assert one == two == four


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_number_of_ranks_and_workers_draws_the_masks_of_one():
    sampler = SHARED_SIZES[0]
    assert runs_of(2, sampler, num_workers=2) == runs_of(1, sampler)


def test_trimmed_contexts_alone_differ_between_ranks():
    """The batch's shortest context is not that of a part; targets are the same all the same."""
    one, two = (runs_of(n, MultiBlockMask((14, 14), context_length="trim")) for n in (1, 2))
    assert {key: value[0][1] for key, value in one.items()} == {
        key: value[0][1] for key, value in two.items()
    }
    assert one != two


@pytest.mark.parametrize("sampler", SHARED_SIZES[:4], ids=repr)
def test_sizes_follow_from_the_step_and_all_else_from_the_sample(sampler):
    """Traps: one size for all steps, or for all seeds; with the step in their key, places that no
    epoch repeats."""

    def masks_of(epoch: int, step: int, indices: Iterable[int], seed: int = 5) -> Masks:
        samples = [Indexed(index, index, epoch, step) for index in indices]
        return MaskCollator(sampler, seed=seed)(samples)[1]

    def sizes(masks: Masks) -> set[tuple[int, ...]]:
        sides = [
            axis.amax(-1) - axis.amin(-1) + 1
            for axis in torch.unravel_index(masks.targets.idx, masks.grid_size)
        ]
        return {tuple(side[0, 0].tolist() for side in sides)}

    steps = [masks_of(0, step, range(6)) for step in range(40)]
    assert len(set().union(*map(sizes, steps))) > 1
    seeds = [masks_of(0, 0, range(6), seed) for seed in range(40)]
    assert len(set().union(*map(sizes, seeds))) > 1
    again = masks_of(0, 0, [9, 3, 8])
    assert torch.equal(again.targets.to_mask()[1], steps[0].targets.to_mask()[3])
    assert torch.equal(again.context.to_mask()[1], steps[0].context.to_mask()[3])
    if not isinstance(sampler, CausalMask):  # which draws nothing but the size
        other = masks_of(1, 0, range(6))
        assert sizes(other) == sizes(steps[0])
        assert not torch.equal(other.targets.to_mask(), steps[0].targets.to_mask())


def test_a_batch_of_several_steps_is_refused():
    samples = [Indexed(0, 0, 1, 5), Indexed(1, 1, 1, 6)]
    with pytest.raises(ValueError, match=r"samples: must be of one step, got some of"):
        MaskCollator(SHARED_SIZES[0])(samples)


# A forgotten epoch

ARRANGEMENTS = {
    "no workers": {},
    "fork": {"num_workers": 2, "multiprocessing_context": "fork"},
    "fork, persistent": {
        "num_workers": 2,
        "multiprocessing_context": "fork",
        "persistent_workers": True,
    },
    "spawn": {"num_workers": 2, "multiprocessing_context": "spawn"},
    "spawn, persistent": {
        "num_workers": 2,
        "multiprocessing_context": "spawn",
        "persistent_workers": True,
    },
    "forkserver": {"num_workers": 2, "multiprocessing_context": "forkserver"},
}
SLOW_ARRANGEMENTS = ("spawn", "spawn, persistent", "forkserver")
WARNING = "was drawn twice at epoch 0, with the same masks; call set_epoch"


@pytest.mark.parametrize(
    "arrangement",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_ARRANGEMENTS))
        for name in ARRANGEMENTS
    ],
)
def test_a_forgotten_epoch_is_noticed(arrangement, tmp_path):
    """Trap: workers that start afresh for each pass, and remember nothing of the one before."""
    record = WarningsTo(tmp_path / "warnings")
    options = ARRANGEMENTS[arrangement]
    batches = loader(
        PER_SAMPLE[0],
        batch_size=6,
        shuffle=True,
        worker_init_fn=record if options else None,
        **options,
    )
    with warnings.catch_warnings():
        record()
        drawn(batches)
        assert WARNING not in record.path.read_text()
        for _ in range(2):
            drawn(batches)
    # Both workers may notice it at the same moment.
    assert 1 <= record.path.read_text().count(WARNING) <= 2


class WarningsTo:
    """Makes a process append its warnings to a file.

    Where stderr of a worker leads depends on its start method: a fork server has that of the test
    which started it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def __call__(self, worker: int | None = None) -> None:
        warnings.simplefilter("default")
        warnings.showwarning = self.append

    def append(self, message: Warning, *_: object, **__: object) -> None:
        with self.path.open("a") as file:
            file.write(f"{message}\n")


def test_epochs_that_are_set_are_meant():
    batches = loader(PER_SAMPLE[0], batch_size=6)
    for epoch in (0, 1, 1, 0):
        batches.collate_fn.set_epoch(epoch)
        drawn(batches)


def test_a_forgotten_epoch_of_resumable_batches_is_noticed():
    order = ResumableBatches(SIZE, 6, seed=0)
    batches = DataLoader(
        dataset(), batch_sampler=order, collate_fn=MaskCollator(PER_BATCH[0]), num_workers=2
    )
    first = drawn(batches)
    with pytest.warns(UserWarning, match="ResumableBatches: epoch 0 begins again"):
        assert drawn(batches) == first
    order.set_epoch(1)
    second = drawn(batches)
    assert all(second[index] != first[index] for index in first)


# Streams


class Stream(IterableDataset):
    """Named samples without index or length; each worker has its own."""

    def __init__(self, names: list[str], order: int = 0) -> None:
        self.names, self.order = names, order

    def __iter__(self) -> Iterator[dict[str, object]]:
        worker = get_worker_info()
        mine = self.names if worker is None else self.names[worker.id :: worker.num_workers]
        generator = torch.Generator().manual_seed(self.order)
        for place in torch.randperm(len(mine), generator=generator).tolist():
            yield {"__key__": mine[place], "x": torch.zeros(1)}


NAMES = [f"shard-{n // 7}/{n:04d}.jpg" for n in range(41)]


def masks_by_name(batches: DataLoader) -> dict[str, tuple[bytes, bytes]]:
    found: dict[str, tuple[bytes, bytes]] = {}
    for batch, masks in batches:
        context, targets = masks.context.to_mask(), masks.targets.to_mask()
        for row, name in enumerate(batch["__key__"]):
            found[name] = context[row].numpy().tobytes(), targets[row].numpy().tobytes()
    return found


@pytest.mark.parametrize("persistent", [False, True])
def test_a_stream_has_masks_by_its_keys(persistent):
    """Law 2: no mask twice in two passes of two workers; the same for a key in any order."""
    collate = MaskCollator(MultiBlockMask((14, 14), target_size_per="sample"), key="__key__")
    batches = DataLoader(
        Stream(NAMES),
        batch_size=4,
        collate_fn=collate,
        num_workers=2,
        persistent_workers=persistent,
    )
    passes = []
    for epoch in range(2):
        collate.set_epoch(epoch)
        passes.append(masks_by_name(batches))
    assert [sorted(found) for found in passes] == [NAMES, NAMES]
    everything = [masks for found in passes for masks in found.values()]
    assert len(set(everything)) == len(everything) == 2 * len(NAMES)
    for order, batch_size, workers in ((1, 7, 0), (2, 3, 1)):
        collate.set_epoch(1)
        arranged = DataLoader(
            Stream(NAMES, order), batch_size=batch_size, collate_fn=collate, num_workers=workers
        )
        assert masks_by_name(arranged) == passes[1]


def test_a_forgotten_epoch_of_a_stream_is_noticed():
    batches = DataLoader(
        Stream(NAMES), batch_size=4, collate_fn=MaskCollator(RandomMask(GRID), key="__key__")
    )
    masks_by_name(batches)
    with pytest.warns(UserWarning, match=rf"sample 'shard-.*' {WARNING}"):
        masks_by_name(batches)


def test_kinds_of_keys():
    """An int is an index; text is its own, whether as str or bytes; a function may make either."""

    def first(key: object, sample: object) -> bytes:
        collate = MaskCollator(RandomMask(GRID), key=key, collate_fn=list)
        return collate([sample])[1].context.idx.numpy().tobytes()

    indexed = MaskCollator(RandomMask(GRID), collate_fn=list)([Indexed(7, "a")])[1]
    assert first("n", {"n": 7}) == first("n", {"n": np.int64(7)})
    assert first("n", {"n": 7}) == indexed.context.idx.numpy().tobytes()
    assert first("n", {"n": "7"}) == first("n", {"n": b"7"}) != first("n", {"n": 7})
    assert first(lambda sample: sample[0], ("7", 1)) == first("n", {"n": "7"})
    assert first("n", {"n": 2**70}) != first("n", {"n": 2**71})
    # Also of samples with an index, whose epoch then counts.
    collate = MaskCollator(RandomMask(GRID), key="n", collate_fn=list)
    of_epochs = [collate([Indexed(0, {"n": "7"}, epoch, 0)])[1] for epoch in range(2)]
    assert of_epochs[0].context.idx.numpy().tobytes() == first("n", {"n": "7"})
    assert not torch.equal(of_epochs[0].context.idx, of_epochs[1].context.idx)


@pytest.mark.parametrize(
    "sampler",
    [*PER_BATCH, MultiContextMask((RandomMask(GRID), PER_BATCH[0])), lambda batch_size: None],
    ids=lambda sampler: getattr(sampler, "__name__", repr(sampler)),
)
def test_keys_need_sizes_per_sample(sampler):
    """In a stream there is no step that sizes of a batch could follow from."""
    with pytest.raises(ValueError, match=r"^key='n': needs a sampler that draws each sample's"):
        MaskCollator(sampler, key="n")


@pytest.mark.no_hook
def test_bad_keys():
    with pytest.raises(TypeError, match=r"^key=3: must be the name of a field or key\(sample\)"):
        MaskCollator(RandomMask(GRID), key=3)
    collate = MaskCollator(RandomMask(GRID), key="n")
    with pytest.raises(TypeError, match=r"^key='n': must name a field of every sample; one is int"):
        collate([1])
    for bad in (1.5, True, None):
        with pytest.raises(TypeError, match=r"^key: must be a str, bytes or int, got "):
            collate([{"n": bad}])
    assert repr(collate).endswith("seed=0, key='n')")
