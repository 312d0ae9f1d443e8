"""Laws 2 and 13 for every sampler: pure functions of a generator, built by their `repr`."""

import copy
import dataclasses
import pickle
import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from jepakit import Masks, MultiBlockMask, RandomMask
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
from jepakit.testing import assert_sampler_contract

SAMPLERS = [
    MultiBlockMask((8, 9)),
    MultiBlockMask((8, 9), target_size_per="sample"),
    MultiBlockMask((8, 9), context_length="trim"),
    MultiBlockMask((8, 9), target_size_per="sample", context_length=5, num_targets=2),
    MultiBlockMask(
        (8, 9), target_size_per="sample", allow_target_overlap=False, target_scale=(0.05, 0.1)
    ),
    MultiBlockMask(
        (8, 9), min_context_coverage=0.5, context_length="trim", target_size_per="sample"
    ),
    RandomMask((8, 9)),
    RandomMask((30,), target_ratio=0.5, context_length=7),
    RandomMask((2, 3, 4), target_ratio=0.9),
    MultiBlockMask((30,), target_size_per="sample"),
    MultiBlockMask((4, 6, 6), temporal_scale=(0.5, 1.0), context_frames_ratio=0.75),
    BlockMask((8, 9)),
    InverseBlockMask((8, 9), block_scale=(0.1, 0.1)),
    TubeMask(2, MultiBlockMask((8, 9), target_size_per="sample")),
    ComplementMask(MultiBlockMask((8, 9), context_length=5)),
    UnionMask(MultiBlockMask((8, 9))),
    MultiContextMask((RandomMask((8, 9)), MultiBlockMask((8, 9)))),
    vjepa_masks((2, 14, 14), target_size_per="sample"),
    NestedMask((17, 20), MultiBlockMask((5, 5), target_size_per="sample", context_length=3)),
    CausalMask((60,), context_size_per="sample"),
    CausalMask((2, 60), axis=1, context_size_per="sample"),
]
samplers = st.sampled_from(SAMPLERS)
seeds = st.integers(0, 2**63 - 1)


def dense(masks: Masks | list[Masks]) -> list[torch.Tensor]:
    """Contexts and targets as flat masks, `[b, ...]` each."""
    members = masks if isinstance(masks, list) else [masks]
    return [tokens.to_mask() for one in members for tokens in (one.context, one.targets)]


def same(one: Masks | list[Masks], other: Masks | list[Masks]) -> bool:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


@settings(max_examples=25)
@given(sampler=samplers, seed=st.integers(0, 2**62))
def test_contract(sampler, seed):
    """Laws 1, 2, 5 for masks, and 13, as a user's own sampler is held to them."""
    assert_sampler_contract(sampler, seed=seed)


@given(sampler=samplers, seed=seeds, batch=st.integers(1, 8))
def test_same_generator_state_same_masks(sampler, seed, batch):
    """Law 2. Trap: sizes seeded, positions from the global generator."""
    generator = torch.Generator().manual_seed(seed)
    first = sampler(batch, generator=generator)
    second = sampler(batch, generator=generator)
    torch.manual_seed(seed ^ 1)
    again = torch.Generator().manual_seed(seed)
    assert same(sampler(batch, generator=again), first)
    assert same(sampler(batch, generator=again), second)


@pytest.mark.no_hook
def test_python_random_is_left_alone():
    """Law 15."""
    before = random.getstate()
    for sampler in SAMPLERS:
        sampler(3)
    assert random.getstate() == before


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_without_a_generator_the_global_one_is_used(sampler):
    torch.manual_seed(3)
    one = sampler(4)
    torch.manual_seed(3)
    assert same(sampler(4), one)
    assert same(sampler(4, generator=torch.Generator().manual_seed(3)), one)


@given(sampler=samplers, seed=seeds)
def test_masks_are_a_function_of_the_uniforms(sampler, seed):
    uniforms = torch.rand(4, sampler.num_uniforms, generator=torch.Generator().manual_seed(seed))
    before = uniforms.clone()
    masks = sampler.from_uniforms(uniforms)
    assert torch.equal(uniforms, before)
    assert same(sampler.from_uniforms(uniforms), masks)
    assert same(sampler(4, generator=torch.Generator().manual_seed(seed)), masks)


def test_per_sample_by_mode():
    for target_size_per in ("batch", "sample"):
        for length in ("pad", "trim", 5):
            sampler = MultiBlockMask((8, 8), target_size_per=target_size_per, context_length=length)
            assert sampler.per_sample == (target_size_per == "sample" and length != "trim")
    assert RandomMask((4,)).per_sample


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samples_of_a_batch_differ(sampler):
    """Trap: one target set shared by a whole batch."""
    masks = sampler(16, generator=torch.Generator().manual_seed(0))
    for mask in dense(masks):
        different = len(mask.flatten(1).unique(dim=0))
        assert different > 10, (
            f"{different} different masks in 16 samples: must be more than 10. If the sampler "
            "draws for each sample, add it to SAMPLERS with a larger grid or wider ranges"
        )


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_repr_builds(sampler):
    """Law 13."""
    twin = eval(repr(sampler))
    assert twin == sampler and hash(twin) == hash(sampler) and repr(twin) == repr(sampler)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("used", [False, True])
def test_copies_draw_the_same(sampler, used):
    sampler = eval(repr(sampler))
    if used:
        sampler(1)
    expected = sampler(4, generator=torch.Generator().manual_seed(1))
    for twin in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert twin == sampler
        assert same(twin(4, generator=torch.Generator().manual_seed(1)), expected)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_frozen(sampler):
    with pytest.raises(AttributeError):
        sampler.grid_size = (4, 4)
    with pytest.raises(AttributeError):
        setattr(sampler, dataclasses.fields(sampler)[-1].name, None)


@pytest.mark.no_hook
def test_generators_of_a_device_are_refused():
    class OfACard(torch.Generator):
        device = torch.device("cuda:0")

    text = (
        "generator on cuda:0: must be a CPU generator, so that masks are the same on every device; "
        "pass `device` to get them elsewhere"
    )
    for sampler in (SAMPLERS[0], SAMPLERS[-1]):
        with pytest.raises(ValueError, match=re.escape(text)):
            sampler(2, generator=OfACard())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_masks_are_the_same_on_every_device(sampler):
    for seed in range(20):
        here = sampler(16, generator=torch.Generator().manual_seed(seed))
        there = sampler(16, generator=torch.Generator().manual_seed(seed), device="cuda")
        assert all(leaf.device.type == "cuda" for leaf in pytree.tree_leaves(there))
        assert same(pytree.tree_map(lambda leaf: leaf.cpu(), there), here)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("table", "error"),
    [
        (torch.ones(2, 1), ValueError),
        (torch.full((2, 1), float("nan")), ValueError),
        (-torch.ones(2, 1), ValueError),
        (torch.zeros(2, 1, dtype=torch.int64), TypeError),
        ([[0.5]], TypeError),
    ],
)
def test_uniforms_lie_below_1(table, error):
    """Trap: for the number 1 a causal mask draws the step after the last, an empty target."""
    with pytest.raises(error, match=r"^uniforms: must "):
        CausalMask((8, 2)).from_uniforms(table)
