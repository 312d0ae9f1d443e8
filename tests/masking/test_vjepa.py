"""V-JEPA's two sets: the union of blocks through time is the target, the rest is context."""

import math

import pytest
import torch
from benchmarks.published import clip_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from jepakit import IndexedDataset, MaskCollator, Masks
from jepakit.masking import InfeasibleMaskError, MultiContextMask, audit_masks, vjepa_masks

GRID = (8, 14, 14)
SETS = ((8, 0.15), (2, 0.7))  # blocks, and the fraction of a frame that each covers


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_union(frame: tuple[int, int], num_blocks: int, scale: float, needed: int) -> torch.Tensor:
    """The union of random blocks on a frame, drawn again until `needed` patches are left."""
    height, width = frame
    aspect = math.exp(float(torch.empty(()).uniform_(math.log(0.75), math.log(1.5))))
    area = height * width * scale
    h = min(height, math.floor(math.sqrt(area * aspect) + 0.5))
    w = min(width, math.floor(math.sqrt(area / aspect) + 0.5))
    while True:
        union = torch.zeros(frame, dtype=torch.bool)
        for _ in range(num_blocks):
            top = int(torch.randint(0, height - h + 1, ()))
            left = int(torch.randint(0, width - w + 1, ()))
            union[top : top + h, left : left + w] = True
        if int((~union).sum()) >= needed:
            return union


@settings(max_examples=40)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(4, 16), st.integers(4, 16)),
    size=st.sampled_from(["batch", "sample"]),
    length=st.sampled_from(["fixed", "pad", "trim"]),
    batch=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_each_set_keeps_its_promise(grid, size, length, batch, seed):
    """Law 1. Traps: a minimum of one token; targets that are cut to the shortest of the batch."""
    floor = (0.15, 0.05)
    sampler = vjepa_masks(grid, target_size_per=size, context_length=length)
    size_of_frame = math.prod(grid[1:])
    for masks, coverage in zip(sampler(batch, generator=seeded(seed)), floor, strict=True):
        needed = max(1, math.ceil(coverage * math.prod(grid) - 1e-9))
        counts = masks.context.counts()
        assert (counts >= needed).all()
        assert length != "fixed" or (counts == needed).all()
        assert length == "pad" or (counts == counts[0]).all()
        assert masks.targets.shape[:2] == (batch, 1)
        context, target = masks.context.to_mask(), masks.targets.to_mask()[:, 0]
        assert not (context & target).any()
        frames = target.view(batch, grid[0], size_of_frame)
        assert torch.equal(frames, frames[:, :1].expand_as(frames)), "blocks last all frames"
        if length == "pad":
            assert torch.equal(context, ~target), "the context is all that no block covers"


def test_the_target_is_the_union_of_the_blocks():
    """Trap: the complement of a shortened context, which predicts what no block covers."""
    sampler = vjepa_masks(GRID, context_length="fixed")
    uniforms = torch.rand(5, sampler.num_uniforms, generator=seeded(0))
    parts = uniforms.split([member.num_uniforms for member in sampler.samplers], dim=1)
    for member, masks, part in zip(
        sampler.samplers, sampler.from_uniforms(uniforms), parts, strict=True
    ):
        blocks = member.sampler.from_uniforms(part).targets
        assert torch.equal(masks.targets.to_mask()[:, 0], blocks.to_mask().any(dim=1))
        assert masks.targets.shape[1] == 1 < blocks.shape[1]


def test_coverage_is_that_of_random_blocks():
    """Against a loop: the two sets hide 63 % and 81 % of a clip on average."""
    torch.manual_seed(0)
    sampler = vjepa_masks((1, 14, 14), target_size_per="sample", context_length="pad")
    drawn = sampler(4_000, generator=seeded(0))
    for masks, (num_blocks, scale), floor in zip(drawn, SETS, (0.15, 0.05), strict=True):
        needed = math.ceil(floor * 14 * 14)
        naive = torch.stack([naive_union((14, 14), num_blocks, scale, needed) for _ in range(600)])
        expected, found = naive.double().mean(), masks.targets.counts().double().mean() / 196
        # The loop draws whole arrangements again, the sampler only blocks that leave too little.
        assert abs(float(found - expected)) < 0.015
        assert abs(float(found) - (0.63 if num_blocks == 8 else 0.81)) < 0.01  # as documented


def test_context_lengths_are_those_of_the_published_code():
    """In batches of 24; those of the long-range set are longer by what is promised."""
    torch.manual_seed(0)
    sampler, generator = vjepa_masks(GRID, context_length="trim"), seeded(0)
    size = math.prod(GRID)
    drawn = [[m.context.shape[1] for m in sampler(24, generator=generator)] for _ in range(150)]
    found = torch.tensor(drawn, dtype=torch.float64).mean(dim=0) / size
    assert ((found - torch.tensor([0.23, 0.08])).abs() < 0.01).all()  # as documented
    for length, (num_blocks, scale) in zip(found, SETS, strict=True):
        sets = (clip_masks(GRID, 24, num_blocks=num_blocks, scale=scale)[0] for _ in range(20))
        published = torch.tensor([context.shape[1] / size for context in sets])
        # A batch shares its size, so lengths differ from batch to batch.
        error = float(published.std()) / math.sqrt(len(published))
        assert abs(float(length) - float(published.mean())) < 4 * error + 0.02


@pytest.mark.parametrize(
    "change",
    [
        {"min_context_coverage": (0.2, 0.05)},
        {"min_context_coverage": (0.15, 0.06)},
        {"target_size_per": "sample"},
        {"context_length": "pad"},
        {"context_length": "trim"},
        {"context_subset": "random"},
    ],
    ids=repr,
)
def test_every_argument_matters(change):
    """Law 12."""
    plain = vjepa_masks((2, 8, 8), context_length="fixed")(8, generator=seeded(0))
    changed = vjepa_masks((2, 8, 8), **{"context_length": "fixed"} | change)(8, generator=seeded(0))
    leaves = zip(pytree.tree_leaves(plain), pytree.tree_leaves(changed), strict=True)
    assert not all(one.shape == two.shape and torch.equal(one, two) for one, two in leaves)


def test_collator_and_audit():
    sampler = vjepa_masks((2, 8, 8), target_size_per="sample", context_length="fixed")
    assert isinstance(sampler, MultiContextMask) and sampler.per_sample
    dataset = IndexedDataset(torch.zeros(6, 1))
    loader = DataLoader(dataset, batch_size=3, collate_fn=MaskCollator(sampler, seed=1))
    for _, masks in loader:
        assert [type(one) for one in masks] == [Masks, Masks]
        assert all(one.grid_size == (2, 8, 8) and len(one) == 3 for one in masks)
    short, long = audit_masks(sampler, num_batches=3, batch_size=8, generator=seeded(0))
    assert (short.min_context_tokens, long.min_context_tokens) == (20, 7)
    assert short.undersized_context_ratio == long.undersized_context_ratio == 0
    assert short.leak_ratio == short.empty_target_ratio == 0


def test_a_promise_for_clips_of_other_lengths():
    """Law 1 with `valid`: the fractions count what is there."""
    frames = torch.tensor([8, 3, 5])
    valid = (torch.arange(8) < frames[:, None]).repeat_interleave(196, dim=1)
    for masks, floor in zip(vjepa_masks(GRID)(3, valid=valid), (0.15, 0.05), strict=True):
        needed = torch.ceil(floor * frames * 196 - 1e-9)
        assert (masks.context.counts() >= needed).all()
        for tokens in (masks.context, masks.targets[:, 0]):
            assert not (tokens.to_mask() & ~valid).any() and (tokens.counts() > 0).all()


@pytest.mark.no_hook
def test_frames_that_a_block_covers_are_refused():
    """Trap: draw again until one token is left, for ever where none can be."""
    for frame in [(2, 2), (3, 2), (3, 3)]:
        with pytest.raises(InfeasibleMaskError):
            vjepa_masks((4, *frame))
