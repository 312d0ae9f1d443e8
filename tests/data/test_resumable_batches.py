"""`ResumableBatches`: a resumed run gets the batches of an uninterrupted one."""

import contextlib
import copy
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data.distributed import DistributedSampler

from jepakit.data import EpochIndex, ResumableBatches


@given(size=st.integers(1, 40), batch=st.integers(1, 40), steps=st.integers(0, 30), data=st.data())
def test_from_any_step_on_as_uninterrupted(size, batch, steps, data):
    """Trap: a resumed run that begins its epoch anew, with data that it has seen already."""
    batch = min(batch, size)
    first = data.draw(st.integers(0, steps))
    whole = list(ResumableBatches(size, batch, steps=steps, seed=1))
    rest = ResumableBatches(size, batch, steps=steps, seed=1, first_step=first)
    copied = pickle.loads(pickle.dumps(rest))
    assert list(rest) == whole[first:]
    assert len(rest) == steps - first
    assert list(copied) == whole[first:]


@given(size=st.integers(2, 40), batch=st.integers(1, 40), seed=st.integers(0, 99))
def test_an_epoch_has_each_image_at_most_once(size, batch, seed):
    batch = min(batch, size)
    per_pass = size // batch
    batches = list(ResumableBatches(size, batch, steps=3 * per_pass, seed=seed))
    for start in range(0, len(batches), per_pass):
        seen = [index for chosen in batches[start : start + per_pass] for index in chosen]
        assert len(seen) == len(set(seen)) == per_pass * batch
        assert set(seen) <= set(range(size))


def test_epochs_and_seeds_differ():
    """Trap: one order for every epoch; a seed without effect."""
    one = list(ResumableBatches(100, 100, steps=2, seed=0))
    assert one[0] != one[1]
    assert one != list(ResumableBatches(100, 100, steps=2, seed=1))
    assert one == list(ResumableBatches(100, 100, steps=2, seed=0))


def test_no_pass_of_one_seed_is_a_pass_of_another():
    """Trap: `seed + epoch`, by which seed 1 begins with the second pass of seed 0."""
    passes = {
        (seed, number): tuple(batch)
        for seed in range(12)
        for number, batch in enumerate(ResumableBatches(50, 50, steps=12, seed=seed))
    }
    assert len(set(passes.values())) == len(passes) == 144


def test_an_index_carries_its_epoch_and_step():
    """A loader's workers get copies of the indices."""
    for step, indices in enumerate(ResumableBatches(5, 2, steps=6, seed=0)):
        for copied in (indices, pickle.loads(pickle.dumps(indices)), copy.deepcopy(indices)):
            assert [(index.epoch, index.step) for index in copied] == [(step // 2, step)] * 2
            assert copied == indices
            assert list("abcde"[index] for index in copied) == ["abcde"[int(i)] for i in indices]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 11}, "batch_size=11: must be at most size=10 in all"),
        ({"world_size": 6}, "batch_size=2 on 6 ranks: must be at most size=10 in all"),
        ({"world_size": 0}, "world_size=0: must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank=2: must be at most 1"),
        ({"rank": 1}, "rank=1: must be at most 0"),
        (
            {"size": 9, "world_size": 2, "drop_last": False},
            r"drop_last=False: the last batch of an epoch has 1 image\(s\), must have at least 1",
        ),
        ({"first_step": 6}, "first_step=6: must be at most steps=5"),
        ({"size": 0}, "size=0: must be at least 1"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
    ],
)
def test_bad_numbers_raise(changes, text):
    arguments = {"size": 10, "batch_size": 2, "steps": 5, "seed": 0, **changes}
    with pytest.raises(ValueError, match=text):
        ResumableBatches(**arguments)


@pytest.mark.no_hook
def test_an_index_is_an_int():
    with pytest.raises(TypeError, match=r"index=3\.7: must be an int"):
        EpochIndex(3.7, 0)
    with pytest.raises(ValueError, match="epoch=-1: must be at least 0"):
        EpochIndex(3, -1)
    with pytest.raises(ValueError, match="step=-1: must be at least 0"):
        EpochIndex(3, 0, -1)


def test_numpy_counts():
    counts = np.arange(20)
    batches = ResumableBatches(counts[10], counts[2], steps=counts[5], seed=counts[3])
    text = (
        "ResumableBatches(10, 2, steps=5, seed=3, rank=0, world_size=1, drop_last=True, "
        "first_step=0)"
    )
    assert repr(batches) == text
    assert EpochIndex(counts[3], counts[1], counts[2]) == 3


def test_repr_builds():
    for steps in (5, None):
        batches = ResumableBatches(
            12, 1, steps=steps, seed=3, rank=1, world_size=2, drop_last=steps is None, first_step=1
        )
        assert list(eval(repr(batches))) == list(batches)


# Ranks


def runs_of(ranks: int, size: int, batch: int, **arguments: object) -> list[list[list[EpochIndex]]]:
    """The batches of every rank."""
    return [
        list(ResumableBatches(size, batch, seed=1, rank=rank, world_size=ranks, **arguments))
        for rank in range(ranks)
    ]


@given(
    ranks=st.integers(1, 4),
    size=st.integers(4, 40),
    batch=st.integers(1, 6),
    steps=st.integers(0, 20),
    drop_last=st.booleans(),
)
def test_ranks_share_the_batches_of_one(ranks, size, batch, steps, drop_last):
    """Law 8. Traps: all ranks get the same batches; each shuffles for itself."""
    assume(ranks * batch <= size)
    assume(drop_last or not 0 < size % (ranks * batch) < ranks)
    (whole,) = runs_of(1, size, ranks * batch, steps=steps, drop_last=drop_last)
    runs = runs_of(ranks, size, batch, steps=steps, drop_last=drop_last)
    for expected, *parts in zip(whole, *runs, strict=True):
        assert [index for part in parts for index in part] == expected
        assert {(index.epoch, index.step) for part in parts for index in part} == {
            (expected[0].epoch, expected[0].step)
        }
        assert max(map(len, parts)) - min(map(len, parts)) in (0, 1)


@given(size=st.integers(1, 40), batch=st.integers(1, 40))
def test_without_drop_last_an_epoch_has_every_image(size, batch):
    batches = ResumableBatches(size, batch, seed=0, drop_last=False)
    found = list(batches)
    assert sorted(index for indices in found for index in indices) == list(range(size))
    assert len(found) == len(batches) == -(-size // batch)


def test_ranks_that_were_forgotten_are_noticed(monkeypatch):
    """Trap: in a plain DDP run all ranks get the same batches, silently."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.warns(UserWarning, match="world_size=1 in a process group of 2 ranks"):
        list(ResumableBatches(8, 2, seed=0))
    list(ResumableBatches(8, 2, seed=0, rank=1, world_size=2))


# One epoch in each iteration


def test_epochs_by_set_epoch_are_those_of_one_run():
    whole = list(ResumableBatches(11, 3, steps=9, seed=2))
    batches = ResumableBatches(11, 3, seed=2)
    assert len(batches) == 3
    for epoch in (2, 0, 1, 1):
        batches.set_epoch(epoch)
        assert list(batches) == whole[3 * epoch : 3 * epoch + 3]


def test_set_epoch_has_no_effect_on_a_run_of_steps():
    """Trainers call it whatever the sampler is."""
    whole = list(ResumableBatches(11, 3, steps=9, seed=2))
    batches = ResumableBatches(11, 3, steps=9, seed=2, first_step=4)
    batches.set_epoch(0)
    assert list(batches) == whole[4:]


def test_a_run_resumed_within_an_epoch_goes_on_there():
    """Whether the trainer sets the epoch again or not. Trap: the epoch begins anew."""
    whole = list(ResumableBatches(11, 3, steps=9, seed=2))
    for calls in ([], [1], [1, 1]):
        batches = ResumableBatches(11, 3, seed=2, first_step=5)
        for epoch in calls:
            batches.set_epoch(epoch)
        assert list(batches) == whole[5:6]
        batches.set_epoch(1)
        assert list(batches) == whole[3:6]  # all of it, once the rest is done
        batches.set_epoch(2)
        assert list(batches) == whole[6:]
        batches.set_epoch(1)
        assert list(batches) == whole[3:6]
    batches = ResumableBatches(11, 3, seed=2, first_step=5)
    batches.set_epoch(0)
    assert list(batches) == whole[:3]


@pytest.mark.parametrize("steps", [None, 9])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_look_at_the_first_batch_keeps_the_place(steps, loaded):
    """Trap: a loop that looks at a batch's shape, and then begins the epoch or the run anew."""
    whole = list(ResumableBatches(11, 3, steps=9, seed=2))
    batches = ResumableBatches(11, 3, steps=steps, seed=2, first_step=0 if loaded else 4)
    if loaded:
        batches.load_state_dict(batches.state_dict() | {"step": 4})
    batches.set_epoch(1)
    assert next(iter(batches)) == whole[4]
    batches.set_epoch(1)
    assert list(batches) == whole[4 : 6 if steps is None else 9]


# Epochs that repeat


@pytest.mark.parametrize("steps", [None, 5])
def test_a_repeated_epoch_is_noticed(steps):
    """Trap: a trainer that never calls `set_epoch` shows every epoch in one order."""
    batches = ResumableBatches(10, 2, steps=steps, seed=0)
    text = "epoch 0 begins again" if steps is None else "the run of 5 steps begins again"
    next(iter(batches))  # a look at the first batch is no epoch
    list(batches)
    with pytest.warns(UserWarning, match=f"^ResumableBatches: {text}, so batches and masks repeat"):
        list(batches)


def test_a_loop_that_counts_its_batches_finishes_an_epoch_too():
    """Lightning asks for as many batches as there are, and never for one more."""
    batches = ResumableBatches(10, 2, seed=0)
    running = iter(batches)
    for _ in range(len(batches)):
        next(running)
    with pytest.warns(UserWarning, match="epoch 0 begins again"):
        next(iter(batches))


def test_epochs_cut_short_are_noticed_when_they_repeat_twice():
    batches = ResumableBatches(10, 2, seed=0)
    for _ in range(2):
        next(iter(batches))
    with pytest.warns(UserWarning, match="epoch 0 begins again"):
        next(iter(batches))


def test_an_epoch_that_is_set_again_is_meant():
    batches = ResumableBatches(10, 2, seed=0)
    for _ in range(3):
        batches.set_epoch(4)
        list(batches)


# State


@given(data=st.data(), steps=st.sampled_from([None, 12]), ranks=st.sampled_from([(1, 2), (2, 1)]))
def test_the_state_resumes_on_any_number_of_ranks(data, steps, ranks):
    """Law 9. Trap: a state that counts the epoch's batches, or one rank's."""
    before, after = ranks
    whole = list(ResumableBatches(11, 4, steps=12, seed=2, drop_last=False))
    killed = data.draw(st.integers(0, 11))
    epoch, within = divmod(killed, 3)
    batches = ResumableBatches(
        11, 4 // before, steps=steps, seed=2, world_size=before, drop_last=False
    )
    batches.set_epoch(epoch)
    running = iter(batches)
    for _ in range(killed if steps else within):
        next(running)
    state = copy.deepcopy(batches.state_dict())
    assert state["step"] == killed
    parts = []
    for rank in range(after):
        resumed = ResumableBatches(
            11, 4 // after, steps=steps, seed=2, rank=rank, world_size=after, drop_last=False
        )
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        parts.append(list(resumed))
    found = [[index for part in each for index in part] for each in zip(*parts, strict=True)]
    assert found == whole[killed : None if steps else 3 * epoch + 3]


class StatefulLoader:
    """What torchdata's `StatefulDataLoader` does with a batch sampler.

    It asks the sampler for its state after each batch, gives the state of the batch that was
    yielded last, and after a restart makes an iterator before and after it loads the state.
    """

    def __init__(self, batches: ResumableBatches, prefetch: int) -> None:
        self.batches, self.prefetch, self.state = batches, prefetch, batches.state_dict()

    def run(self, state: dict[str, int] | None = None) -> Iterator[list[EpochIndex]]:
        running = iter(self.batches)
        if state is not None:
            self.batches.load_state_dict(state)
            running = iter(self.batches)
        fetched: list[tuple[list[EpochIndex], dict[str, int]]] = []
        while True:
            while len(fetched) <= self.prefetch and (indices := next(running, None)) is not None:
                fetched.append((indices, self.batches.state_dict()))
            if not fetched:
                return
            indices, self.state = fetched.pop(0)
            yield indices


@pytest.mark.parametrize("prefetch", [0, 4])
def test_a_stateful_loader_resumes_within_an_epoch(prefetch):
    whole = list(ResumableBatches(20, 2, steps=20, seed=2))
    loader = StatefulLoader(ResumableBatches(20, 2, seed=2), prefetch)
    loader.batches.set_epoch(1)
    running = loader.run()
    seen = [next(running) for _ in range(3)]
    resumed = StatefulLoader(ResumableBatches(20, 2, seed=2), prefetch)
    assert seen + list(resumed.run(loader.state)) == whole[10:]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"size": 12}, "size is 11, must be 12"),
        ({"seed": 3}, "seed is 2, must be 3"),
        ({"batch_size": 3}, "global_batch_size is 4, must be 3"),
        ({"drop_last": False}, "drop_last is True, must be False"),
    ],
)
def test_a_state_of_other_batches_is_refused(changes, text):
    arguments = {"size": 11, "batch_size": 4, "seed": 2}
    state = ResumableBatches(**arguments).state_dict()
    with pytest.raises(ValueError, match=f"^state_dict: {text}, since the order of batches"):
        ResumableBatches(**{**arguments, **changes}).load_state_dict(state)


def test_a_state_beyond_the_run_is_refused():
    state = ResumableBatches(11, 4, seed=2, first_step=7).state_dict()
    with pytest.raises(ValueError, match="step=7: must be at most 5"):
        ResumableBatches(11, 4, steps=5, seed=2).load_state_dict(state)


# Trainers


def test_loaders_and_trainers_take_it_for_a_batch_sampler():
    """Trainers ask for the class and these attributes. `sampler` is none of them on purpose:
    Fabric would count the epochs of its process there, which after a restart are others."""
    batches = ResumableBatches(10, 2, seed=0)
    assert isinstance(batches, BatchSampler)
    assert (batches.batch_size, batches.drop_last) == (2, True)
    assert not hasattr(batches, "sampler")
    for workers in (0, 2):
        loader = DataLoader(range(10), batch_sampler=batches, num_workers=workers)
        batches.set_epoch(workers)
        found = [batch.tolist() for batch in loader]
        assert found == list(ResumableBatches(10, 2, seed=0, steps=15))[5 * workers :][:5]


@pytest.mark.slow  # to import lightning takes seconds
@pytest.mark.parametrize("within_hook", [False, True])
def test_lightning_cannot_divide_the_batches_again(within_hook):
    """Trap: sharded twice. Lightning puts a sampler of its own into a batch sampler, or fails."""
    data = pytest.importorskip("lightning.fabric.utilities.data")
    replaced = data._replace_dunder_methods if within_hook else contextlib.nullcontext
    with replaced(*([BatchSampler] if within_hook else [])):
        batches = ResumableBatches(10, 2, seed=0, rank=1, world_size=2)
    loader = DataLoader(range(10), batch_sampler=batches)
    mine = DistributedSampler(range(10), num_replicas=2, rank=1)
    with pytest.raises(TypeError, match=r"argument called `sampler|missing .* required"):
        data._update_dataloader(loader, mine)
