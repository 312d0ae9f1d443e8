"""The context guarantee of `MultiBlockMask`, over random configurations."""

import random
import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.masking.guarantee import assert_guarantee
from tests.strategies import multiblock_cases, random_multiblock_case

from jepakit import InfeasibleMaskError, MultiBlockMask

BATCHES = st.sampled_from([1, 2, 3, 7, 16])


def suggestions(error: InfeasibleMaskError) -> list[str]:
    """The changes that the text offers, each a keyword argument in Python."""
    text = str(error)
    if "Change one of: " in text:
        return text.split("Change one of: ")[1].split("; ")
    assert "No single change is enough" in text
    return []


def follow(case: tuple, change: str) -> MultiBlockMask:
    grid, arguments = case
    return MultiBlockMask(grid, **arguments | eval(f"dict({change})"))


@settings(max_examples=200)
@given(case=multiblock_cases(max_side=16), batch=BATCHES, seed=st.integers(0, 2**31))
def test_guarantee(case, batch, seed):
    """Law 1. Traps: minimum checked before subtraction or batching; retry loops; quiet fallbacks.

    Where the arguments are infeasible, every change that the text offers is followed.
    """
    grid, arguments = case
    generator = torch.Generator().manual_seed(seed)
    try:
        samplers = [MultiBlockMask(grid, **arguments)]
    except InfeasibleMaskError as error:
        samplers = [follow(case, change) for change in suggestions(error)]
    for sampler in samplers:
        assert_guarantee(sampler, sampler(batch, generator=generator), batch)


@given(
    case=multiblock_cases(max_side=10),
    batch=BATCHES,
    extreme=st.sampled_from([0.0, 1 - 2**-24]),
    seed=st.integers(0, 2**31),
)
def test_guarantee_at_the_ends_of_the_uniforms(case, batch, extreme, seed):
    """A uniform of 0, or the largest below 1, is a legal draw for every purpose."""
    grid, arguments = case
    try:
        sampler = MultiBlockMask(grid, **arguments)
    except InfeasibleMaskError:
        return
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(batch, sampler.num_uniforms, generator=generator)
    for share in (1.0, 0.5):
        fixed = torch.rand(uniforms.shape, generator=generator) < share
        table = uniforms.masked_fill(fixed, extreme)
        assert_guarantee(sampler, sampler.from_uniforms(table), batch)


@given(seed=st.integers(0, 2**31), target_size_per=st.sampled_from(["batch", "sample"]))
@example(seed=0, target_size_per="sample")
def test_a_perfect_packing_is_found(seed, target_size_per):
    """Four 4x4 blocks on 8x8 fit in one way only: free placement dead-ends almost always."""
    sampler = MultiBlockMask(
        (8, 8),
        target_scale=(0.25, 0.25),
        target_aspect_ratio=(1.0, 1.0),
        context_scale=(1.0, 1.0),
        allow_target_overlap=False,
        min_context_coverage=0.0,
        num_targets=3,
        target_size_per=target_size_per,
    )
    masks = sampler(16, generator=torch.Generator().manual_seed(seed))
    assert_guarantee(sampler, masks, 16)


def test_a_tight_budget_is_used_up():
    """At need + a = A contexts of exactly `min_context_tokens` occur."""
    sampler = MultiBlockMask(
        (14, 14), context_scale=(1.0, 1.0), min_context_coverage=154 / 196, target_size_per="sample"
    )
    masks = sampler(256, generator=torch.Generator().manual_seed(0))
    assert_guarantee(sampler, masks, 256)
    assert masks.context.counts().min() == sampler.min_context_tokens == 154


@pytest.mark.slow
@pytest.mark.no_hook
@pytest.mark.parametrize("part", range(4))
def test_guarantee_over_20000_configurations(part):
    """Law 1 over 5,000 feasible configurations in each part, none above a second."""
    rng = random.Random(part)
    done = 0
    while done < 5_000:
        grid, arguments = random_multiblock_case(rng)
        batch = rng.randint(1, 64)
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        start = time.thread_time()
        try:
            sampler = MultiBlockMask(grid, **arguments)
        except InfeasibleMaskError:
            continue
        masks = sampler(batch, generator=generator)
        seconds = time.thread_time() - start
        assert_guarantee(sampler, masks, batch)
        # No measure of speed: a retry loop would take for ever. Time of this thread's own, so that
        # a busy machine cannot fail the test.
        assert seconds < 1, sampler
        done += 1


@pytest.mark.slow
@pytest.mark.no_hook
def test_every_suggestion_works():
    rng = random.Random(4)
    followed = 0
    while followed < 1_000:
        case = random_multiblock_case(rng)
        batch = rng.randint(1, 8)
        try:
            MultiBlockMask(case[0], **case[1])
        except InfeasibleMaskError as error:
            for change in suggestions(error):
                sampler = follow(case, change)
                generator = torch.Generator().manual_seed(rng.getrandbits(32))
                assert_guarantee(sampler, sampler(batch, generator=generator), batch)
                followed += 1
