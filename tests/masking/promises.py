"""Promises of each sampler, in its own terms, checked from the masks alone."""

import math
from itertools import pairwise
from typing import Any

import torch
from tests.masking.guarantee import assert_guarantee

from jepakit import Masks, MultiBlockMask, RandomMask, TokenSet
from jepakit.masking import (
    BlockMask,
    CausalMask,
    ComplementMask,
    InverseBlockMask,
    MultiContextMask,
    NestedMask,
    TubeMask,
    UnionMask,
)


def assert_promise(sampler: Any, masks: Any, batch_size: int) -> None:
    """Law 1, for any sampler."""
    if isinstance(sampler, MultiContextMask):
        assert len(masks) == len(sampler.samplers)
        for member, one in zip(sampler.samplers, masks, strict=True):
            assert_promise(member, one, batch_size)
        return
    assert_sets(sampler, masks, batch_size)
    own = {
        MultiBlockMask: assert_guarantee,
        RandomMask: random_mask,
        BlockMask: block,
        InverseBlockMask: inverse_block,
        TubeMask: tube,
        CausalMask: causal,
        NestedMask: nested,
        ComplementMask: complement,
        UnionMask: union,
    }
    own[type(sampler)](sampler, masks, batch_size)


def assert_sets(sampler: Any, masks: Masks, batch_size: int) -> None:
    """Promises of all: disjoint sets on the grid, none empty, one context and some targets."""
    for tokens in (masks.context, masks.targets):
        assert tokens.grid_size == sampler.grid_size
        TokenSet(tokens.idx, tokens.valid, tokens.grid_size, tokens.padded)  # values are checked
        assert len(tokens.idx) == batch_size
        assert (tokens.counts() >= 1).all()
    context, targets = masks.context.to_mask(), masks.targets.to_mask()
    assert not (context[:, None] & targets).any()


def exactly(ratio: float, grid: tuple[int, ...]) -> int:
    size = math.prod(grid)
    return min(max(1, math.floor(ratio * size + 0.5)), size - 1)


def random_mask(sampler: RandomMask, masks: Masks, batch_size: int) -> None:
    size, count = math.prod(sampler.grid_size), exactly(sampler.target_ratio, sampler.grid_size)
    assert masks.targets.shape == (batch_size, 1, count) and not masks.targets.padded
    length = size - count if sampler.context_length == "pad" else sampler.context_length
    assert masks.context.shape == (batch_size, length) and not masks.context.padded


def block(sampler: BlockMask, masks: Masks, batch_size: int) -> None:
    size, count = math.prod(sampler.grid_size), exactly(sampler.target_ratio, sampler.grid_size)
    assert masks.targets.shape == (batch_size, 1, count) and not masks.targets.padded
    assert masks.context.shape == (batch_size, size - count) and not masks.context.padded


def inverse_block(sampler: InverseBlockMask, masks: Masks, batch_size: int) -> None:
    size, count = math.prod(sampler.grid_size), exactly(sampler.context_ratio, sampler.grid_size)
    assert count == sampler.min_context_tokens
    assert masks.context.shape == (batch_size, count) and not masks.context.padded
    assert masks.targets.shape == (batch_size, 1, size - count) and not masks.targets.padded


def tube(sampler: TubeMask, masks: Masks, batch_size: int) -> None:
    frames, height, width = sampler.grid_size
    still = []
    for tokens in (masks.context, masks.targets):
        mask = tokens.to_mask().unflatten(-1, (frames, height * width))
        assert torch.equal(mask, mask[..., :1, :].expand_as(mask)), "the same space over all time"
        assert tokens.shape[-1] % frames == 0
        still.append(TokenSet.from_mask(mask[..., 0, :], (height, width)))
    if isinstance(sampler.sampler, MultiBlockMask) and sampler.sampler.context_length == "pad":
        assert_promise(sampler.sampler, Masks(*still), batch_size)


def complement(sampler: ComplementMask, masks: Masks, batch_size: int) -> None:
    assert masks.targets.shape[:2] == (batch_size, 1)
    assert torch.equal(masks.targets.to_mask()[:, 0], ~masks.context.to_mask())


def union(sampler: UnionMask, masks: Masks, batch_size: int) -> None:
    assert masks.targets.shape[:2] == (batch_size, 1)
    assert (masks.context.counts() >= sampler.min_context_tokens).all()


def causal(sampler: CausalMask, masks: Masks, batch_size: int) -> None:
    grid, axis = sampler.grid_size, sampler.axis
    steps = grid[axis]

    def by_step(mask: torch.Tensor) -> torch.Tensor:
        first = mask.dim() - 1
        along_axis = mask.unflatten(-1, grid).movedim(first + axis, first)
        return along_axis.reshape(*mask.shape[:-1], steps, -1)

    context, targets = by_step(masks.context.to_mask()), by_step(masks.targets.to_mask())
    assert targets.shape[:3] == (batch_size, sampler.num_targets, steps)
    for mask in (context, targets):
        assert torch.equal(mask.any(-1), mask.all(-1)), "steps are whole"
    past = context[..., 0].sum(dim=1)
    assert torch.equal(context[..., 0], torch.arange(steps) < past[:, None]), "all of the past"
    low, high = sampler.num_context_steps or (1, steps)
    assert (past >= low).all() and (past <= high).all()
    begins = targets[..., 0].int().argmax(dim=-1)
    lengths = targets[..., 0].sum(dim=-1)
    assert torch.equal(begins[:, 0], past)
    for j, after in pairwise(range(sampler.num_targets)):
        assert torch.equal(begins[:, after], begins[:, j] + lengths[:, j])
    if sampler.num_target_steps is None:
        assert torch.equal(lengths[:, 0], steps - past)
    else:
        assert (lengths == sampler.num_target_steps).all()
    if sampler.context_size_per == "batch":
        assert (past == past[0]).all() and not masks.context.padded and not masks.targets.padded


def nested(sampler: NestedMask, masks: Masks, batch_size: int) -> None:
    """On every level whole, disjoint and not empty; and each level is the pool of the finest."""
    finest = [masks.context.to_mask(), masks.targets.to_mask()]
    for level in range(sampler.num_levels):
        coarse = masks.coarsen(level)
        context, targets = coarse.context.to_mask(), coarse.targets.to_mask()
        assert not (context[:, None] & targets).any()
        assert context.any(-1).all() and targets.any(-1).all()
        for fine, mask in zip(finest, (context, targets), strict=True):
            back = mask.reshape(-1, *coarse.context.grid_size)
            for axis, side in enumerate(sampler.grid_size, start=1):
                back = back.repeat_interleave(2**level, dim=axis).narrow(axis, 0, side)
            assert torch.equal(back.reshape(fine.shape), fine), "cells are whole"
    assert_guarantee(sampler.sampler, masks.coarsen(sampler.num_levels - 1), batch_size)
