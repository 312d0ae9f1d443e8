"""Arguments that a `TokenSet` rejects; the error names the argument, the value and the rule."""

import re

import numpy as np
import pytest
import torch

from jepakit import Masks, TokenSet


def raises(error: type[Exception], text: str) -> pytest.RaisesExc:
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def build(idx: list, valid: list, padded: bool = True) -> TokenSet:
    valid = torch.tensor(valid, dtype=torch.bool)
    return TokenSet(torch.tensor(idx, dtype=torch.int64), valid, (2, 3), padded)


@pytest.mark.parametrize("idx", [[[0, 6]], [[-1, 2]], [[3, 1_000_000]]])
def test_off_the_grid(idx):
    low, high = min(idx[0]), max(idx[0])
    text = f"idx: must lie on the grid (2, 3), in [0, 5], got values from {low} to {high}"
    with raises(ValueError, text):
        build(idx, [[True, True]])


def test_off_the_grid_where_not_valid():
    """Trap: padding with -1 or N, which gathers the last patch or crashes on an accelerator."""
    with raises(ValueError, "idx: must lie on the grid (2, 3), in [0, 5], got values from -1 to 2"):
        build([[2, -1]], [[True, False]])


@pytest.mark.parametrize("idx", [[[2, 1]], [[1, 1]], [[0, 3], [4, 2]]])
def test_ascending(idx):
    with raises(ValueError, "idx: must ascend within every set, without repeats"):
        build(idx, [[True, True]] * len(idx))


def test_padding_is_zero():
    with raises(ValueError, "idx: must be 0 where not valid"):
        build([[2, 3]], [[True, False]])


def test_valid_first():
    with raises(ValueError, "valid: valid entries must come first in every set"):
        build([[0, 3]], [[False, True]])


def test_padded_false_is_a_promise():
    with raises(ValueError, "padded=False: promises that every entry is valid, but some are not"):
        build([[3, 0]], [[True, False]], padded=False)


@pytest.mark.parametrize("batch", [(), (2,), (0,)])
def test_sets_of_nothing_are_fine(batch):
    tokens = TokenSet(
        torch.zeros(*batch, 0, dtype=torch.int64), torch.zeros(*batch, 0, dtype=torch.bool), (2, 3)
    )
    assert tokens.to_mask().shape == (*batch, 6) and not tokens.to_mask().any()


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (
            torch.ones(2, 3, dtype=torch.bool),
            "mask (2, 3): must be flat over the grid (2, 3), [*batch, 6]; "
            "flatten the grid's axes first",
        ),
        (
            torch.ones(4, 2, 3, dtype=torch.bool),
            "mask (4, 2, 3): must be flat over the grid (2, 3), [*batch, 6]; "
            "flatten the grid's axes first",
        ),
        (
            torch.ones(4, 9, dtype=torch.bool),
            "mask (4, 9): must be flat over the grid (2, 3), [*batch, 6]; "
            "flatten the grid's axes first",
        ),
    ],
)
def test_masks_are_flat(mask, text):
    """Trap: [H W] masks read as a batch of H sets; a mask of another grid."""
    with raises(ValueError, text):
        TokenSet.from_mask(mask, (2, 3))


@pytest.mark.parametrize(
    ("grid", "text"),
    [
        ((2, 0), "grid_size=(2, 0): every side must be at least 1"),
        ((), "grid_size=(): must have 1 or 2 or 3 axes, got 0"),
        ((1, 2, 3, 4), "grid_size=(1, 2, 3, 4): must have 1 or 2 or 3 axes, got 4"),
    ],
)
def test_grids(grid, text):
    with raises(ValueError, text):
        TokenSet.full(grid)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("grid", "got"),
    [
        (4, "int"),
        ("22", "str"),
        ({2, 3}, "set"),
        ((2.0, 2), "float in it"),
        ((2, True), "bool in it"),
        ((2, np.float64(2)), "numpy.float64 in it"),
    ],
)
def test_grids_of_another_kind(grid, got):
    text = f"grid_size={grid!r}: must be a sequence of ints, such as (14, 14), got {got}"
    with raises(TypeError, text):
        TokenSet.full(grid)


@pytest.mark.no_hook
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_masks_are_bool(dtype):
    """Trap: float masks, whose 0.5 is True."""
    with raises(TypeError, f"mask: must be bool, got {dtype}"):
        TokenSet.from_mask(torch.ones(2, 6, dtype=dtype), (2, 3))


@pytest.mark.no_hook
def test_dtypes_and_shapes():
    idx, valid = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1, dtype=torch.bool)
    with raises(TypeError, "idx: must be int64, got torch.int32"):
        TokenSet(idx.int(), valid, (2, 3))
    with raises(TypeError, "valid: must be bool, got torch.float32"):
        TokenSet(idx, valid.float(), (2, 3))
    text = "idx (2, 1) and valid (1,): must have one shape, [*batch, n]"
    with raises(ValueError, text):
        TokenSet(idx, valid[0], (2, 3))
    with raises(ValueError, "idx () and valid (): must have one shape, [*batch, n]"):
        TokenSet(idx[0, 0], valid[0, 0], (2, 3))
    with raises(ValueError, "idx is on cpu, valid on meta: must be on one device"):
        TokenSet(idx, valid.to("meta"), (2, 3))


@pytest.mark.no_hook
def test_arrays_are_no_tensors():
    """Trap: "must be int64, got int64", of an array whose dtype prints like a tensor's."""
    idx, valid = np.zeros((2, 1), dtype=np.int64), np.ones((2, 1), dtype=np.bool_)
    text = "must be a torch.Tensor, got numpy.ndarray; convert it with torch.from_numpy"
    with raises(TypeError, f"idx: {text}"):
        TokenSet(idx, torch.from_numpy(valid), (2, 3))
    with raises(TypeError, f"valid: {text}"):
        TokenSet(torch.from_numpy(idx), valid, (2, 3))
    with raises(TypeError, f"mask: {text}"):
        TokenSet.from_mask(np.ones((2, 6), dtype=np.bool_), (2, 3))
    with raises(TypeError, "idx: must be a torch.Tensor, got list"):
        TokenSet([[0]], torch.from_numpy(valid), (2, 3))


@pytest.mark.no_hook
def test_padded_is_a_bool():
    with raises(TypeError, "padded=0: must be a bool, got int"):
        TokenSet(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1).bool(), (2, 3), 0)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("device", "shown"),
    [
        (torch.float16, "torch.float16"),
        (torch.bfloat16, "torch.bfloat16"),
        (torch.zeros(1), "torch.Tensor"),
        (None, "None"),
    ],
)
def test_sets_move_to_devices_only(device, shown):
    """Trap: `.to(torch.float16)`, or of a tensor, turns positions and validity into floats."""
    tokens = TokenSet.full((2, 3), (2, 1))
    text = f"device={shown}: must be a device; positions have no other dtype"
    for item in (tokens, Masks(tokens[:, 0], tokens)):
        with raises(TypeError, text):
            item.to(device)
        with raises(TypeError, "non_blocking=1: must be a bool, got int"):
            item.to("cpu", non_blocking=1)


def test_values_on_an_accelerator_are_not_read():
    idx = torch.zeros(2, 1, dtype=torch.int64, device="meta")
    TokenSet(idx, idx.bool(), (2, 3), padded=False)


@pytest.mark.parametrize(
    ("context", "targets", "text"),
    [
        (
            TokenSet.full((2, 3), (2,)),
            TokenSet.full((3, 2), (2, 1)),
            "context is on the grid (2, 3), targets on (3, 2): must be on one grid",
        ),
        (
            TokenSet.full((2, 3), (2,)),
            TokenSet.full((2, 3), (3, 1)),
            "context has batch size 2, targets 3: must be equal",
        ),
        (
            TokenSet.full((2, 3), (2,)),
            TokenSet.full((2, 3), (2,)),
            "context (2, 6) and targets (2, 6): must be [batch, n] and [batch, num_targets, n]",
        ),
    ],
)
def test_masks_fit_together(context, targets, text):
    with raises(ValueError, text):
        Masks(context, targets)


@pytest.mark.no_hook
def test_masks_hold_token_sets():
    tokens = TokenSet.full((2, 3), (2, 1))
    text = "must be a TokenSet, such as TokenSet.from_mask(mask, grid_size), got torch.Tensor"
    with raises(TypeError, f"context: {text}"):
        Masks(tokens.to_mask()[:, 0], tokens)
    with raises(TypeError, f"targets: {text}"):
        Masks(tokens[:, 0], tokens.to_mask())
