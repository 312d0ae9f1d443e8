"""The queue of negatives: first in, first out; in training alone; resumed where it was."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit.losses import FeatureQueue


@given(size=st.integers(1, 7), pushes=st.lists(st.integers(0, 9), max_size=6))
def test_holds_the_latest_in_order(size: int, pushes: list[int]) -> None:
    queue = FeatureQueue(size, 2)
    everything = torch.arange(2.0 * sum(pushes)).view(-1, 2)
    for part in everything.split(pushes):
        queue.push(part)
    assert torch.equal(queue.negatives, everything[-size:])


def test_eval_never_enters() -> None:
    """Trap: a queue that enters validation."""
    queue = FeatureQueue(4, 2)
    queue.push(torch.ones(2, 2))
    queue.eval()
    queue.push(torch.full((3, 2), 9.0))
    assert torch.equal(queue.negatives, torch.ones(2, 2))
    queue.train()
    queue.push(torch.zeros(1, 2))
    assert len(queue.negatives) == 3


def test_state_round_trip() -> None:
    """Law 13: a resumed queue goes on where it was, through a file that holds tensors alone."""
    queue, resumed = FeatureQueue(4, 2), FeatureQueue(4, 2)
    queue.push(torch.randn(3, 2))
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for each in (queue, resumed, copied := copy.deepcopy(queue)):
        each.push(torch.ones(2, 2))
    assert torch.equal(resumed.negatives, queue.negatives)
    assert torch.equal(copied.negatives, queue.negatives)
    assert repr(queue) == "FeatureQueue(4, 2)"


def test_no_gradient_and_no_alias() -> None:
    """What was pushed may change afterwards, and what was read may not."""
    queue = FeatureQueue(2, 2)
    features = torch.ones(2, 2, requires_grad=True)
    queue.push(features)
    seen = queue.negatives
    assert not seen.requires_grad
    with torch.no_grad():
        features.zero_()
    queue.push(torch.zeros(2, 2))
    assert torch.equal(seen, torch.ones(2, 2))


def test_wrong_width() -> None:
    with pytest.raises(ValueError, match=r"features \(2, 3\): must have the shape \[n, 2\]"):
        FeatureQueue(4, 2).push(torch.ones(2, 3))


def test_what_is_not_finite_is_refused() -> None:
    """It would be every query's negative until it is dropped."""
    queue = FeatureQueue(4, 2)
    with pytest.raises(ValueError, match=r"^features \(1, 2\): must be finite"):
        queue.push(torch.tensor([[1.0, torch.nan]]))
    assert len(queue.negatives) == 0
