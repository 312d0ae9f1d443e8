"""`ResumableBatches`: a resumed run gets the batches of an uninterrupted one."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepakit.data import EpochIndex, ResumableBatches


@given(size=st.integers(1, 40), batch=st.integers(1, 40), steps=st.integers(0, 30), data=st.data())
def test_from_any_step_on_as_uninterrupted(size, batch, steps, data):
    """Trap: a resumed run that begins its epoch anew, with data that it has seen already."""
    batch = min(batch, size)
    first = data.draw(st.integers(0, steps))
    whole = list(ResumableBatches(size, batch, steps=steps, seed=1))
    rest = ResumableBatches(size, batch, steps=steps, seed=1, first_step=first)
    assert list(rest) == whole[first:]
    assert len(rest) == steps - first
    assert list(pickle.loads(pickle.dumps(rest))) == whole[first:]


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


def test_an_index_carries_its_epoch():
    """A loader's workers get copies of the indices."""
    for step, indices in enumerate(ResumableBatches(5, 2, steps=6, seed=0)):
        for copied in (indices, pickle.loads(pickle.dumps(indices)), copy.deepcopy(indices)):
            assert [index.epoch for index in copied] == [step // 2] * 2
            assert copied == indices
            assert list("abcde"[index] for index in copied) == ["abcde"[int(i)] for i in indices]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 11}, "batch_size=11: must be at most size=10"),
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


def test_numpy_counts():
    counts = np.arange(20)
    batches = ResumableBatches(counts[10], counts[2], steps=counts[5], seed=counts[3])
    assert repr(batches) == "ResumableBatches(10, 2, steps=5, seed=3, first_step=0)"
    assert EpochIndex(counts[3], counts[1]) == 3


def test_repr_builds():
    batches = ResumableBatches(10, 2, steps=5, seed=3, first_step=1)
    assert list(eval(repr(batches))) == list(batches)
