"""`masks_from_indices`: masks from bare index tensors."""

import re

import numpy as np
import pytest
import torch

from jepakit.masking import masks_from_indices


def raises(error: type[Exception], text: str) -> pytest.RaisesExc:
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def test_order_and_repeats_do_not_matter():
    masks = masks_from_indices(torch.tensor([[2, 2, 1]]), [torch.tensor([[0, 0]])], (3,))
    assert masks.context.idx.tolist() == [[1, 2]]
    assert masks.targets.idx.tolist() == [[[0]]] and not masks.targets.padded
    empty = masks_from_indices(torch.zeros(1, 0, dtype=torch.int64), [torch.tensor([[0]])], (3,))
    assert empty.context.shape == (1, 0)


def test_indices_off_the_grid():
    good, bad = torch.tensor([[0, 1]]), torch.tensor([[0, 4]])
    text = "must lie on the grid (2, 2), in [0, 3], got values from 0 to 4"
    with raises(ValueError, f"context: {text}"):
        masks_from_indices(bad, [good], (2, 2))
    with raises(ValueError, f"targets[1]: {text}"):
        masks_from_indices(good, [good, bad], (2, 2))
    with raises(ValueError, "targets=[]: must hold at least one index tensor"):
        masks_from_indices(good, [], (2, 2))
    with pytest.raises(ValueError, match="got values from -1 to 1"):
        masks_from_indices(torch.tensor([[-1, 1]]), [good], (2, 2))


GOOD_INDICES = torch.tensor([[0, 1], [2, 3]])


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("context", "targets", "error", "text"),
    [
        (
            torch.ones(2, 4, dtype=torch.bool),
            [GOOD_INDICES],
            TypeError,
            "context: must be positions, as signed integers, got torch.bool; for a mask, True "
            "at members, use TokenSet.from_mask",
        ),
        (
            GOOD_INDICES,
            [GOOD_INDICES.byte()],
            TypeError,
            "targets[0]: must be positions, as signed integers, got torch.uint8; for a mask, True "
            "at members, use TokenSet.from_mask",
        ),
        (
            GOOD_INDICES,
            [GOOD_INDICES.float()],
            TypeError,
            "targets[0]: must be positions, as signed integers, got torch.float32; for a mask, "
            "True at members, use TokenSet.from_mask",
        ),
        (
            GOOD_INDICES[0],
            [GOOD_INDICES],
            ValueError,
            "context (2,): must be [b, n], a row for each sample",
        ),
        (
            GOOD_INDICES,
            [GOOD_INDICES, GOOD_INDICES[:1]],
            ValueError,
            "targets[1] (1, 2): must be for the 2 samples of the context",
        ),
        (
            GOOD_INDICES.tolist(),
            [GOOD_INDICES],
            TypeError,
            "context: must be a torch.Tensor, got list",
        ),
        (
            GOOD_INDICES.numpy(),
            [GOOD_INDICES],
            TypeError,
            "context: must be a torch.Tensor, got numpy.ndarray; convert it with torch.from_numpy",
        ),
        (
            GOOD_INDICES,
            GOOD_INDICES[None],
            TypeError,
            "targets: must be a sequence of index tensors, got torch.Tensor; for [b, m, n], "
            "[*targets.unbind(1)]",
        ),
        (
            GOOD_INDICES,
            {"a": GOOD_INDICES},
            TypeError,
            "targets: must be a sequence of index tensors, got dict",
        ),
    ],
)
def test_what_no_indices_are(context, targets, error, text):
    with raises(error, text):
        masks_from_indices(context, targets, (2, 4))


@pytest.mark.parametrize("grid_size", [[2, 4], torch.Size((2, 4)), np.array([2, 4])])
def test_grid_sizes_of_any_kind(grid_size):
    masks = masks_from_indices(GOOD_INDICES, (GOOD_INDICES,), grid_size)
    assert masks.grid_size == (2, 4) and type(masks.grid_size[0]) is int
