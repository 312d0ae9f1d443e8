"""Law 1 for every sampler: random configurations keep what they promise, at once."""

import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.masking.promises import assert_promise

from jepakit.testing.random_samplers import KINDS, LARGEST, random_sampler
from jepakit.testing.strategies import samplers


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
    uniforms = torch.rand(3, sampler.num_draws, generator=torch.Generator().manual_seed(seed))
    uniforms[torch.rand(uniforms.shape) < 0.5] = extreme
    assert_promise(sampler, sampler.from_uniforms(uniforms), 3)
    assert_promise(sampler, sampler.from_uniforms(torch.full_like(uniforms, extreme)), 3)


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
