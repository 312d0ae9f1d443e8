"""`ReferenceMultiBlockMask`: the known defects, each switch alone, and all of them off."""

import copy
import dataclasses
import itertools
import math
import pickle
import random
import re
import time
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from jepakit import InfeasibleMaskError, Masks, MultiBlockMask
from jepakit.masking import ReferenceMultiBlockMask, audit_masks
from jepakit.masking._engine.block_sizes import ContextBlockSizes, draw_sizes

QUIRKS = (
    "prefix_truncation",
    "skip_last",
    "tied_aspect",
    "floor_area",
    "clip_below_grid",
    "square_context",
    "relax_when_stuck",
)
ALL_OFF = dict.fromkeys(QUIRKS, False)
TRIM = {"context_length": "trim", "context_subset": "random"}
NOISE = 5.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(one: Masks, other: Masks) -> bool:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def side_of(rng: random.Random, grid, scale, aspect) -> tuple[int, int]:
    u = rng.random()
    area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    while h >= grid[0]:
        h -= 1
    while w >= grid[1]:
        w -= 1
    return h, w


def naive_batch(rng: random.Random, sampler: ReferenceMultiBlockMask, batch: int):
    """The published sampler as its description reads, sample by sample, with its loops."""
    grid = sampler.grid_size
    h, w = side_of(rng, grid, sampler.target_scale, sampler.target_aspect_ratio)
    big = side_of(rng, grid, sampler.context_scale, (1.0, 1.0))

    def block(h: int, w: int) -> set[int]:
        top, left = rng.randrange(grid[0] - h), rng.randrange(grid[1] - w)
        rows, columns = range(top, top + h), range(left, left + w)
        return {i * grid[1] + j for i, j in itertools.product(rows, columns)}

    contexts, targets = [], []
    for _ in range(batch):
        hidden = [block(h, w) for _ in range(sampler.num_targets)]
        tries = 0
        while True:
            subtracted = hidden[: max(0, sampler.num_targets - tries // 20)]
            context = block(*big).difference(*subtracted)
            if len(context) > sampler.min_keep:
                break
            tries += 1
        contexts.append(sorted(context))
        targets.append(hidden)
    length = min(map(len, contexts))
    return [context[:length] for context in contexts], targets


def frequencies(draw, batches: int, num_positions: int) -> dict[str, Tensor]:
    """One row for each batch: how often each position has a role, and the context's length."""
    rows: dict[str, list[Tensor]] = {"context": [], "target": [], "length": [], "leak": []}
    for _ in range(batches):
        contexts, targets = draw()
        rows["context"].append(contexts.double().mean(dim=0))
        rows["target"].append(targets.double().mean(dim=(0, 1)))
        rows["length"].append(contexts.sum(dim=1).double().mean()[None])
        rows["leak"].append((contexts & targets.any(dim=1)).any(dim=1).double().mean()[None])
    return {role: torch.stack(values) for role, values in rows.items()}


def of_sampler(sampler, batch: int, seed: int):
    g = generator(seed)

    def draw() -> tuple[Tensor, Tensor]:
        masks = sampler(batch, generator=g)
        return masks.context.to_mask(), masks.targets.to_mask()

    return draw


def of_naive(sampler, batch: int, seed: int):
    rng, size = random.Random(seed), math.prod(sampler.grid_size)

    def as_masks(sets: list[list[int]]) -> Tensor:
        mask = torch.zeros(len(sets), size, dtype=torch.bool)
        for row, members in zip(mask, sets, strict=True):
            row[list(members)] = True
        return mask

    def draw() -> tuple[Tensor, Tensor]:
        contexts, targets = naive_batch(rng, sampler, batch)
        return as_masks(contexts), torch.stack([as_masks(blocks) for blocks in targets])

    return draw


def worst(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of the means of each role, in standard errors over batches."""
    found = {}
    for role in one:
        a, b = one[role], other[role]
        error = (a.var(dim=0) / len(a) + b.var(dim=0) / len(b)).sqrt()
        difference = (a.mean(dim=0) - b.mean(dim=0)).abs()
        found[role] = float((difference / error.clamp_min(1e-9)).max())
    return found


# What it is known for


@pytest.mark.no_hook
def test_the_known_defects():
    """Published settings, 14x14, batches of 64, with the numbers that were measured of it."""
    found = audit_masks(ReferenceMultiBlockMask((14, 14)), num_batches=100, generator=generator())
    assert abs(found.context_coverage.mean - 0.27) < 0.015
    context, target = (
        role.view(14, 14) for role in (found.context_frequency, found.target_frequency)
    )
    for role in (context, target):
        assert (role[-1] == 0).all() and (role[:, -1] == 0).all()
        assert (role[:-1, :-1] > 0).all()
    assert abs(float(context[0].mean()) - 0.75) < 0.02
    assert abs(float(context[6:8].mean()) - 0.20) < 0.03
    assert found.leak_ratio == 0 and found.undersized_context_ratio == 0
    assert len(found.target_sizes) == 5


@pytest.mark.no_hook
def test_the_context_shrinks_as_the_batch_grows():
    """Of one draw, 82 tokens alone, 50 when cut to the shortest of 128."""
    sampler = ReferenceMultiBlockMask((14, 14))
    lengths = {}
    for batch, count in ((1, 1000), (16, 150), (128, 150)):
        g = generator(batch)
        drawn = [sampler(batch, generator=g).context.shape[1] for _ in range(count)]
        lengths[batch] = sum(drawn) / count
    assert lengths[1] > lengths[16] + 15 > lengths[128] + 20
    assert abs(lengths[1] - 82) < 2.5 and abs(lengths[128] - 50.5) < 3


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("arguments", "batch"),
    [
        ({"grid_size": (14, 14)}, 8),
        ({"grid_size": (9, 13), "num_targets": 2, "context_scale": (0.3, 0.6)}, 4),
        # Places are often tried again and targets given up.
        (
            {
                "grid_size": (8, 8),
                "target_scale": (0.2, 0.4),
                "context_scale": (0.2, 0.4),
                "min_keep": 7,
            },
            2,
        ),
    ],
)
def test_it_is_the_description(arguments, batch):
    """Same distribution as a naive loop over samples, tries and patches."""
    sampler = ReferenceMultiBlockMask(**arguments)
    size = math.prod(sampler.grid_size)
    one = frequencies(of_sampler(sampler, batch, 1), 400, size)
    other = frequencies(of_naive(sampler, batch, 2), 400, size)
    found = worst(one, other)
    assert all(value < NOISE for value in found.values()), found
    if sampler.min_keep == 7:
        assert 0.05 < float(other["leak"].mean()) < 0.95  # so the case is what it is meant to be


# Each switch alone


def off(*quirks: str, **arguments: object) -> tuple:
    """The sampler with some quirks off, and the audits with and without them."""
    base = ReferenceMultiBlockMask(**{"grid_size": (14, 14)} | arguments)
    other = dataclasses.replace(base, **dict.fromkeys(quirks, False))
    return tuple(
        audit_masks(s, num_batches=30, batch_size=32, generator=generator()) for s in (base, other)
    )


@pytest.mark.no_hook
def test_the_minimum_is_what_an_accepted_place_keeps():
    """Places that keep `min_keep` + 1 tokens are accepted, and none that keeps less."""
    sampler = ReferenceMultiBlockMask((10, 10), target_scale=(0.3, 0.4), min_keep=24)
    # Batches of one, so that nothing is truncated.
    draws = generator()
    counts = {int(sampler(1, generator=draws).context.counts()) for _ in range(400)}
    assert min(counts) == sampler.min_context_tokens == 25 and len(counts) > 10


@pytest.mark.no_hook
def test_prefix_truncation():
    base = ReferenceMultiBlockMask((14, 14))
    other = dataclasses.replace(base, prefix_truncation=False)
    uniforms = torch.rand(64, other.num_uniforms, generator=generator())
    prefix, subset = (
        base.from_uniforms(uniforms[:, : base.num_uniforms]),
        other.from_uniforms(uniforms),
    )
    whole = base._untrimmed(uniforms[:, : base.num_uniforms]).context
    assert same_set(prefix.targets, subset.targets)
    assert prefix.context.shape == subset.context.shape
    assert prefix.context.shape[1] == int(whole.counts().min())
    # A prefix: the first tokens of the whole context; a subset: some of them.
    assert torch.equal(prefix.context.idx, whole.idx[:, : prefix.context.shape[1]])
    assert not (subset.context.to_mask() & ~whole.to_mask()).any()
    # Kept at random, the first and the second half of a context are kept alike.
    on, removed = off("prefix_truncation")
    assert (
        on.context_frequency.view(14, 14)[7:].sum()
        < 0.5 * on.context_frequency.view(14, 14)[:7].sum()
    )
    halves = removed.context_frequency.view(14, 14)[:13].view(13, 14)
    assert abs(float(halves[:6].mean() - halves[7:].mean())) < 0.01


def same_set(one, other) -> bool:
    return torch.equal(one.idx, other.idx) and torch.equal(one.valid, other.valid)


@pytest.mark.no_hook
def test_skip_last():
    on, removed = off("skip_last")
    for found, zero in ((on, True), (removed, False)):
        for role in (found.context_frequency, found.target_frequency):
            field = role.view(14, 14)
            assert bool((field[-1] == 0).all()) is zero
            assert bool((field[:, -1] == 0).all()) is zero
    # Sizes do not depend on it.
    assert on.target_sizes.keys() == removed.target_sizes.keys()


@pytest.mark.no_hook
def test_skip_last_leaves_full_blocks_one_place():
    """A block as high as the grid: `randint(0, 0)` has no value."""
    sampler = ReferenceMultiBlockMask(
        (6, 12),
        clip_below_grid=False,
        context_scale=(1.0, 1.0),
        square_context=False,
        num_targets=1,
        min_keep=5,
    )
    masks = sampler(8, generator=generator())
    union = masks.context.counts() + masks.targets.counts().sum(dim=1)
    assert (masks.targets.to_mask().sum(dim=(1, 2)) > 0).all()
    assert int(union.max()) <= 72


@pytest.mark.no_hook
def test_tied_aspect():
    on, removed = off("tied_aspect")
    # One number: the higher the larger, and the width always about the same.
    heights = sorted(h for h, _ in on.target_sizes)
    by_height = sorted(on.target_sizes, key=lambda size: (size[0], -size[1]))
    areas = [h * w for h, w in by_height]
    assert heights[0] < heights[-1] and areas[0] < areas[-1]
    assert len(removed.target_sizes) > len(on.target_sizes)
    # Log-uniform: tall and wide are equally likely where the range is symmetric.
    symmetric = ReferenceMultiBlockMask((14, 14), target_aspect_ratio=(0.5, 2.0))
    uniforms = torch.rand(20_000, 2, generator=generator())
    for tied in (True, False):
        h, w = dataclasses.replace(symmetric, tied_aspect=tied)._target_sizes(uniforms)
        uneven = h != w
        tall = float((h > w)[uneven].double().mean())
        if tied:
            assert tall > 0.6
        else:
            assert abs(tall - 0.5) < NOISE * 0.5 / float(uneven.sum()) ** 0.5


@pytest.mark.no_hook
def test_floor_area():
    """A 5.0-patch scale on the edge of a side: 30.9 patches are 30, so 5.48 rounds down."""
    arguments = {
        "grid_size": (10, 10),
        "target_scale": (0.309, 0.309),
        "target_aspect_ratio": (1.0, 1.0),
    }
    assert off("floor_area", **arguments)[0].target_sizes.keys() == {(5, 5)}
    assert off("floor_area", **arguments)[1].target_sizes.keys() == {(6, 6)}


@pytest.mark.no_hook
def test_clip_below_grid():
    """Trap: a 0.85 to 1.0 context is always the same block in one place."""
    base = ReferenceMultiBlockMask((14, 14))
    narrow = dataclasses.replace(base, context_scale=(1.0, 1.0))
    g, h = generator(), generator()
    assert all(same(base(4, generator=g), narrow(4, generator=h)) for _ in range(50))
    on, removed = off("clip_below_grid")
    assert on.context_coverage.max <= 169 / 196
    assert on.target_frequency.equal(removed.target_frequency)
    assert removed.context_frequency.view(14, 14)[-1].sum() > 0
    other = dataclasses.replace(base, clip_below_grid=False)
    wide = dataclasses.replace(narrow, clip_below_grid=False)
    g, h = generator(), generator()
    assert not all(same(other(4, generator=g), wide(4, generator=h)) for _ in range(50))


@pytest.mark.no_hook
def test_square_context():
    on, removed = off("square_context", grid_size=(8, 24), target_scale=(0.1, 0.12))
    assert on.target_frequency.equal(removed.target_frequency)
    # A square of 90 % of the area is 13 wide, cut to the height that there is.
    assert on.context_coverage.max < 0.4 < removed.context_coverage.max
    square = off("square_context")
    assert square[0].context_frequency.equal(square[1].context_frequency)


STUCK = {
    "grid_size": (8, 8),
    "target_scale": (0.3, 0.4),
    "context_scale": (0.2, 0.3),
    "min_keep": 8,
}


@pytest.mark.no_hook
def test_relax_when_stuck():
    """Trap: after n tries the context overlaps targets, silently."""
    on, removed = off("relax_when_stuck", **STUCK)
    assert on.leak_ratio > 0.3 and on.undersized_context_ratio == 0
    assert removed.leak_ratio == 0 and removed.undersized_context_ratio > 0.3
    assert on.target_frequency.equal(removed.target_frequency)
    assert off("relax_when_stuck")[0].context_frequency.equal(
        off("relax_when_stuck")[1].context_frequency
    )


@pytest.mark.no_hook
def test_without_relaxing_the_place_that_keeps_most_is_taken():
    sampler = ReferenceMultiBlockMask(**STUCK, relax_when_stuck=False, num_targets=2)
    uniforms = torch.rand(64, sampler.num_uniforms, generator=generator())
    contexts = sampler._untrimmed(uniforms).context.to_mask()
    hidden = sampler.from_uniforms(uniforms).targets.to_mask().any(dim=1)
    h, w = (int(side) for side in sampler._context_sizes(uniforms[:1, 2]))
    places = sampler._draw_blocks(h, w, uniforms[:, 5:46])
    kept = (~hidden).gather(1, places.flatten(1)).view(places.shape).sum(dim=2)
    enough = (kept > sampler.min_keep).any(dim=1)
    first = (kept > sampler.min_keep).int().argmax(dim=1)
    expected = torch.where(enough, kept.gather(1, first[:, None]).squeeze(1), kept.amax(dim=1))
    assert torch.equal(contexts.sum(dim=1), expected)
    assert enough.any() and not enough.all()


# All off


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("grid", "arguments"),
    [
        ((14, 14), {"num_targets": 3}),
        ((9, 12), {"num_targets": 2, "target_scale": (0.1, 0.3), "context_scale": (0.8, 1.0)}),
    ],
)
def test_all_off_agrees_with_multiblockmask(grid, arguments):
    """In distribution, where the budget of `MultiBlockMask` does not bind."""
    reference = ReferenceMultiBlockMask(grid, min_keep=0, **ALL_OFF, **arguments)
    other = MultiBlockMask(grid, min_context_coverage=0.0, **TRIM, **arguments)
    size = math.prod(grid)
    for batch, count in ((1, 800), (8, 400)):
        one = frequencies(of_sampler(reference, batch, 1), count, size)
        two = frequencies(of_sampler(other, batch, 2), count, size)
        found = worst(one, two)
        assert all(value < NOISE for value in found.values()), found


@pytest.mark.no_hook
@pytest.mark.parametrize("grid", [(14, 14), (9, 12), (5, 31)])
def test_all_off_has_the_sizes_of_multiblockmask(grid):
    reference = ReferenceMultiBlockMask(grid, min_keep=0, **ALL_OFF)
    uniforms = torch.rand(20_000, 3, generator=generator())
    h, w = reference._target_sizes(uniforms[:, :2])
    expected = draw_sizes(
        grid, (0.15, 0.2), (0.75, 1.5), (1.0, 1.0), uniforms, largest_rectangle=math.prod(grid)
    )
    # Up to the last bit of a root, here and there.
    assert float((torch.stack([h, w], dim=1) != expected).any(dim=1).double().mean()) < 1e-3
    h, w = reference._context_sizes(uniforms[:, 0])
    scaled = ContextBlockSizes.from_range(grid, (0.85, 1.0), frames=1, min_volume=0)
    chances = dict(
        zip(
            map(tuple, scaled.sizes.tolist()),
            scaled.cumulative_probability.diff(prepend=torch.zeros(1)).tolist(),
            strict=True,
        )
    )
    found = Counter(zip(h.tolist(), w.tolist(), strict=True))
    assert found.keys() == chances.keys()
    for size, chance in chances.items():
        error = math.sqrt(chance * (1 - chance) / 20_000)
        assert abs(found[size] / 20_000 - chance) <= NOISE * error + 1e-12


@pytest.mark.no_hook
def test_the_comparison_can_fail():
    """Any one quirk left on is seen by the comparison above, where it matters."""
    # Ranges in which each of them matters.
    ranges = {"target_scale": (0.1, 0.3), "target_aspect_ratio": (0.3, 1.0), "num_targets": 2}
    other = MultiBlockMask((9, 12), min_context_coverage=0.0, **TRIM, **ranges)
    two = frequencies(of_sampler(other, 8, 2), 400, 108)
    for quirk in QUIRKS[:-1]:
        switches = ALL_OFF | {quirk: True}
        one = ReferenceMultiBlockMask((9, 12), min_keep=0, **ranges, **switches)
        if quirk in ("floor_area", "tied_aspect"):  # seen in the sizes
            uniforms = torch.rand(20_000, 2, generator=generator())
            h, _ = one._target_sizes(uniforms)
            without, _ = dataclasses.replace(one, **{quirk: False})._target_sizes(uniforms)
            assert float((h != without).double().mean()) > 0.01
            continue
        found = worst(frequencies(of_sampler(one, 8, 1), 400, 108), two)
        assert max(found.values()) > NOISE, quirk


# The laws that all samplers keep

SAMPLERS = [
    ReferenceMultiBlockMask((8, 9), min_keep=5),
    ReferenceMultiBlockMask((8, 9), min_keep=0, **ALL_OFF),
    ReferenceMultiBlockMask(**STUCK),
]


@given(sampler=st.sampled_from(SAMPLERS), seed=st.integers(0, 2**63 - 1), batch=st.integers(1, 6))
def test_pure_function_of_the_generator(sampler, seed, batch):
    """Law 2."""
    g = generator(seed)
    first, second = (sampler(batch, generator=g) for _ in range(2))
    torch.manual_seed(seed ^ 1)
    g = generator(seed)
    assert same(sampler(batch, generator=g), first)
    assert same(sampler(batch, generator=g), second)
    uniforms = torch.rand(batch, sampler.num_uniforms, generator=generator(seed))
    before = uniforms.clone()
    assert same(sampler.from_uniforms(uniforms), first) and torch.equal(uniforms, before)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_repr_builds_and_copies_draw_the_same(sampler):
    """Law 13."""
    for twin in (eval(repr(sampler)), copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert twin == sampler and hash(twin) == hash(sampler)
        assert same(twin(4, generator=generator(3)), sampler(4, generator=generator(3)))
    with pytest.raises(AttributeError):
        sampler.grid_size = (4, 4)
    assert not sampler.per_sample


CHANGES = {
    "num_targets": 2,
    "target_scale": (0.3, 0.4),
    "target_aspect_ratio": (0.4, 0.5),
    "context_scale": (0.3, 0.4),
    "min_keep": 15,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_argument_matters(name):
    base = STUCK | {"context_scale": (0.4, 0.6), "target_scale": (0.36, 0.4)}
    one, other = (
        ReferenceMultiBlockMask(**a)(32, generator=generator())
        for a in (base, base | {name: CHANGES[name]})
    )
    assert not (one.context.shape == other.context.shape and same(one, other))


def test_all_arguments_are_tried():
    fields = {field.name for field in dataclasses.fields(ReferenceMultiBlockMask)}
    assert fields - {"_", "grid_size"} == {*CHANGES, *QUIRKS}


def raises(error: type[Exception], text: str) -> pytest.RaisesExc:
    return pytest.raises(error, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"target_scale": (0.03, 0.05)},
            "ReferenceMultiBlockMask on the grid (14, 14): a target block can be 2 x 2 = 4 "
            "patches, and only blocks of more than min_keep=10 are accepted, so the published "
            "sampler would never end. Change min_keep to at most 3, or target_scale or "
            "grid_size to a larger one",
        ),
        (
            {"context_scale": (0.05, 0.06)},
            "ReferenceMultiBlockMask on the grid (14, 14): a context block can be 3 x 3 = 9 "
            "patches, and only blocks of more than min_keep=10 are accepted, so the published "
            "sampler would never end. Change min_keep to at most 8, or context_scale or "
            "grid_size to a larger one",
        ),
        (
            {"grid_size": (1, 90), "target_aspect_ratio": (0.1, 0.1)},
            "ReferenceMultiBlockMask on the grid (1, 90): a target block can be 0 x 11 = 0 "
            "patches, and only blocks of more than min_keep=10 are accepted, so the published "
            "sampler would never end. Change target_scale or grid_size to a larger one",
        ),
        (
            {"grid_size": (1, 5)},
            "ReferenceMultiBlockMask on the grid (1, 5): a target block can be 0 x 0 = 0 patches, "
            "and only blocks of more than min_keep=10 are accepted, so the published sampler would "
            "never end. Change target_scale or grid_size to a larger one",
        ),
    ],
)
def test_what_would_never_end(arguments, text):
    """Trap: a loop that no draw can leave."""
    with raises(InfeasibleMaskError, text):
        ReferenceMultiBlockMask(**{"grid_size": (14, 14)} | arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"grid_size": (4, 4, 4)}, "grid_size=(4, 4, 4): must have 2 axes, got 3"),
        ({"num_targets": 0}, "num_targets=0: must be at least 1"),
        ({"min_keep": -1}, "min_keep=-1: must be at least 0"),
        (
            {"target_scale": (0.2, 0.1)},
            "target_scale=(0.2, 0.1): the low end must not exceed the high end",
        ),
    ],
)
@pytest.mark.no_hook
def test_errors(arguments, text):
    with raises(ValueError, text):
        ReferenceMultiBlockMask(**{"grid_size": (14, 14)} | arguments)


def check_any(grid, switches, num_targets, scale, context, min_keep, seed) -> bool:
    """Always ends; targets whole; contexts of one length, disjoint unless `relax_when_stuck`."""
    try:
        sampler = ReferenceMultiBlockMask(
            grid,
            num_targets=num_targets,
            target_scale=(scale * 0.8, scale),
            context_scale=(context * 0.8, context),
            min_keep=min_keep,
            **dict(zip(QUIRKS, switches, strict=True)),
        )
    except InfeasibleMaskError:
        return False
    start = time.thread_time()
    masks = sampler(3, generator=generator(seed))
    assert time.thread_time() - start < 1, sampler
    assert not masks.context.padded and not masks.targets.padded
    assert masks.targets.shape[:2] == (3, num_targets) and masks.targets.shape[2] > min_keep
    if sampler.relax_when_stuck:
        assert masks.context.shape[1] >= sampler.min_context_tokens
    else:
        hidden = masks.targets.to_mask().any(dim=1)
        assert not (masks.context.to_mask() & hidden).any()
    return True


@given(
    grid=st.tuples(st.integers(2, 16), st.integers(2, 16)),
    switches=st.tuples(*[st.booleans()] * len(QUIRKS)),
    num_targets=st.integers(1, 6),
    scale=st.floats(0.05, 0.7),
    context=st.floats(0.1, 1.0),
    min_keep=st.integers(0, 12),
    seed=st.integers(0, 2**31),
)
def test_any_switches_any_grid(grid, switches, num_targets, scale, context, min_keep, seed):
    check_any(grid, switches, num_targets, scale, context, min_keep, seed)


@pytest.mark.slow
@pytest.mark.no_hook
def test_5000_configurations():
    """Up to 32 x 32 patches; none above a second."""
    rng, feasible = random.Random(0), 0
    while feasible < 5_000:
        feasible += check_any(
            (rng.randint(2, 32), rng.randint(2, 32)),
            [rng.random() < 0.5 for _ in QUIRKS],
            rng.randint(1, 6),
            rng.uniform(0.05, 0.7),
            rng.uniform(0.1, 1.0),
            rng.randint(0, 12),
            rng.getrandbits(31),
        )
