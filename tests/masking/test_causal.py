"""Causal masks along any axis of the grid."""

from dataclasses import replace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit.masking import CausalMask


def moved(mask: torch.Tensor, grid: tuple[int, ...], axis: int) -> torch.Tensor:
    """A flat mask on the grid whose `axis` comes first, flat again."""
    first = mask.dim() - 1
    return mask.unflatten(-1, grid).movedim(first + axis, first).flatten(first)


@given(data=st.data(), seed=st.integers(0, 2**31), with_valid=st.booleans())
def test_masks_of_an_axis_are_those_of_the_first_one_moved(data, seed, with_valid):
    """Trap: height and width swapped, which a square grid does not show."""
    grid = data.draw(st.sampled_from([(5, 8), (7, 4), (4, 5, 6), (3, 6, 4)]))
    axis = data.draw(st.integers(0, len(grid) - 1))
    arguments: dict[str, Any] = data.draw(
        st.sampled_from(
            [
                {},
                {"num_target_steps": 1, "context_size_per": "sample"},
                {"num_context_steps": (1, 2), "context_size_per": "sample"},
            ]
        )
    )
    sampler = CausalMask(grid, axis=axis, **arguments)
    sides = (grid[axis], *grid[:axis], *grid[axis + 1 :])
    first = replace(sampler, grid_size=sides, axis=0)
    valid = None
    if with_valid:
        generator = torch.Generator().manual_seed(seed)
        there = torch.rand(4, *grid, generator=generator) < 0.9
        there.select(axis + 1, data.draw(st.integers(0, grid[axis] - 1))).zero_()  # an empty step
        valid = there.flatten(1)
    masks = sampler(4, valid=valid, generator=torch.Generator().manual_seed(seed))
    other = None if valid is None else moved(valid, grid, axis)
    expected = first(4, valid=other, generator=torch.Generator().manual_seed(seed))
    assert masks.context.shape == expected.context.shape
    assert masks.targets.shape == expected.targets.shape
    for one, two in ((masks.context, expected.context), (masks.targets, expected.targets)):
        assert torch.equal(moved(one.to_mask(), grid, axis), two.to_mask())


def test_time_of_a_spectrogram():
    """All bands of the past are visible, and none of the future."""
    masks = CausalMask((3, 5), axis=1, num_context_steps=(2, 2))(1)
    seen = torch.tensor([1, 1, 0, 0, 0]).bool().expand(3, 5)
    assert torch.equal(masks.context.to_mask()[0].view(3, 5), seen)
    assert torch.equal(masks.targets.to_mask()[0, 0].view(3, 5), ~seen)
