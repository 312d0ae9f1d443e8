"""Law 1 for every sampler: random configurations keep what they promise, at once."""

import random
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.masking.promises import assert_promise
from tests.masking.random_samplers import KINDS, LARGEST, random_sampler
from tests.strategies import samplers

from jepakit import MultiBlockMask, RandomMask
from jepakit.masking import (
    BlockMask,
    CausalMask,
    ComplementMask,
    InverseBlockMask,
    MultiContextMask,
    NestedMask,
    TubeMask,
    UnionMask,
    vjepa_masks,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**31), batch=st.sampled_from([1, 2, 5]))
def test_promise(kind, data, seed, batch):
    """Traps: empty targets, fewer than asked for; nesting in name only; a minimum checked early."""
    sampler = data.draw(samplers(kind))
    masks = sampler(batch, generator=torch.Generator().manual_seed(seed))
    assert_promise(sampler, masks, batch)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(data=st.data(), seed=st.integers(0, 2**31), extreme=st.sampled_from([0.0, 1 - 2**-24]))
def test_promise_at_the_ends_of_the_uniforms(kind, data, seed, extreme):
    sampler = data.draw(samplers(kind))
    uniforms = torch.rand(3, sampler.num_uniforms, generator=torch.Generator().manual_seed(seed))
    uniforms[torch.rand(uniforms.shape) < 0.5] = extreme
    assert_promise(sampler, sampler.from_uniforms(uniforms), 3)
    assert_promise(sampler, sampler.from_uniforms(torch.full_like(uniforms, extreme)), 3)


NEEDS = [
    (RandomMask((4, 5), target_ratio=0.6), 8),
    (RandomMask((4, 5), target_ratio=0.6, context_length=3), 3),
    (BlockMask((4, 5), target_ratio=0.6), 8),
    (InverseBlockMask((4, 5), context_ratio=0.6), 12),
    (CausalMask((4, 5), num_context_steps=(2, 3)), 10),
    (CausalMask((4, 5), axis=1, num_context_steps=(2, 3)), 8),
    (TubeMask(3, RandomMask((4, 5), target_ratio=0.6)), 24),
    (ComplementMask(RandomMask((4, 5), context_length=3)), 3),
    (UnionMask(MultiBlockMask((12, 12), context_length=20)), 20),
    (vjepa_masks((4, 8, 8), min_context_coverage=(0.1, 0.05)), 13),
    (MultiContextMask((RandomMask((4, 5)), BlockMask((4, 5), target_ratio=0.6))), 5),
    (MultiBlockMask((12, 12), min_context_coverage=0.3), 44),
    (MultiBlockMask((12, 12), context_length=20), 20),
    # Of 4 x 4 cells of 16 patches a quarter; with 14 rows and columns the last ones are cut off.
    (NestedMask((16, 16), MultiBlockMask((4, 4))), 4 * 16),
    (NestedMask((16, 16), MultiBlockMask((4, 4), context_length=3)), 3 * 16),
    (NestedMask((14, 14), MultiBlockMask((4, 4))), 4 + 3 * 8),
    (NestedMask((14, 14), MultiBlockMask((14, 14))), 49),
]


@pytest.mark.parametrize(("sampler", "need"), NEEDS, ids=repr)
def test_need(sampler, need):
    """Every sampler states its floor in tokens of its own grid; a mixture the least of members."""
    assert sampler.min_context_tokens == need
    drawn = sampler(500, generator=torch.Generator().manual_seed(0))
    contexts = [m.context.counts() for m in (drawn if isinstance(drawn, list) else [drawn])]
    assert min(int(counts.min()) for counts in contexts) >= need


TIGHT = MultiBlockMask(
    (6, 6),
    context_scale=(1.0, 1.0),
    min_context_coverage=0.5,
    target_size_per="sample",
    context_length="pad",
)
MET = [
    *(sampler for sampler, _ in NEEDS[:8]),
    TIGHT,
    replace(TIGHT, context_length="trim", num_targets=8),
    replace(TIGHT, allow_target_overlap=False, num_targets=3, target_scale=(0.1, 0.12)),
    MultiBlockMask((40,), min_context_coverage=0.7, context_length="pad"),
    MultiBlockMask((4, 6, 6), min_context_coverage=0.5, context_length="pad"),
    CausalMask((4, 5, 3), axis=1, context_size_per="sample"),
    TubeMask(3, TIGHT),
    ComplementMask(TIGHT),
    UnionMask(TIGHT),
    vjepa_masks((1, 8, 8), target_size_per="sample", context_length="pad"),
    NestedMask((7, 7), MultiBlockMask((4, 4), context_subset="random")),
    MultiContextMask((RandomMask((6, 6)), TIGHT)),
]


@pytest.mark.parametrize("sampler", MET, ids=repr)
def test_the_minimum_is_met_with_equality(sampler):
    """Trap: a promise below what every sample has anyway, which a loose bound does not show."""
    drawn = sampler(2000, generator=torch.Generator().manual_seed(0))
    members = drawn if isinstance(drawn, list) else [drawn]
    fewest = min(int(masks.context.counts().min()) for masks in members)
    assert fewest == sampler.min_context_tokens


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_need_is_kept(kind, data, seed):
    sampler = data.draw(samplers(kind))
    drawn = sampler(16, generator=torch.Generator().manual_seed(seed))
    members = getattr(sampler, "samplers", (sampler,))
    for member, masks in zip(members, drawn if isinstance(drawn, list) else [drawn], strict=True):
        assert (
            masks.context.counts() >= member.min_context_tokens
        ).all() and member.min_context_tokens >= 1


@pytest.mark.slow
@pytest.mark.no_hook
@pytest.mark.parametrize("kind", KINDS)
def test_promise_over_5000_configurations(kind):
    """Up to 1,024 tokens, 32 x 32 patches, 16 x 24 x 24 tubelets; none above a second."""
    rng = random.Random(0)
    for _ in range(5_000):
        sampler = random_sampler(kind, rng, LARGEST)
        batch = rng.randint(1, 4)
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        start = time.thread_time()
        masks = sampler(batch, generator=generator)
        seconds = time.thread_time() - start
        assert_promise(sampler, masks, batch)
        # No measure of speed: a retry loop would take for ever. Time of this thread's own, so that
        # a busy machine cannot fail the test.
        assert seconds < 1, sampler
