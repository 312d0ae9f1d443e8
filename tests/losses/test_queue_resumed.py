"""`FeatureQueue`: what is resumed offers the same negatives at every moment, and no zeros."""

import pytest
import torch

from jepakit.losses import FeatureQueue


@pytest.mark.parametrize("pushed", [0, 1, 3, 7, 8, 13])
def test_resumed_at_any_fill(pushed: int) -> None:
    """Law 9. Trap: a count that is not saved, or one of a full queue: zero rows as negatives."""
    queue, resumed = FeatureQueue(8, 2), FeatureQueue(8, 2)
    resumed.push(torch.full((5, 2), 9.0))  # what it held before is gone
    queue.push(torch.rand(pushed, 2) + 1)
    resumed.load_state_dict(queue.state_dict())
    for size in (0, 1, 2, 9):
        for each in (queue, resumed):
            each.push(torch.arange(2.0 * size).view(size, 2) + 1)
        assert torch.equal(resumed.negatives, queue.negatives)
        assert resumed.negatives.all() and len(resumed.negatives) <= 8
    assert len(queue.negatives) == 8
