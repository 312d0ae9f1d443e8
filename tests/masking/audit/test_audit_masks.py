"""`audit_masks`: what it counts is what a naive loop counts, and planted faults are found."""

import dataclasses
import functools
import math
import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepakit import Masks, MultiBlockMask, RandomMask, TokenSet
from jepakit.masking import (
    BlockMask,
    CausalMask,
    ComplementMask,
    InverseBlockMask,
    MaskAudit,
    MultiContextMask,
    NestedMask,
    ReferenceMultiBlockMask,
    Spread,
    TubeMask,
    UnionMask,
    audit_masks,
    masks_from_indices,
)
from jepakit.testing.strategies import grid_sizes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def from_masks(context: torch.Tensor, targets: torch.Tensor, grid: tuple[int, ...]) -> Masks:
    return Masks(TokenSet.from_mask(context, grid), TokenSet.from_mask(targets, grid))


class Anything:
    """A sampler that keeps no promise: sets of any kind; it remembers them for a naive count."""

    def __init__(self, grid: tuple[int, ...], num_targets: int) -> None:
        self.grid, self.num_targets, self.drawn = grid, num_targets, []

    def __call__(self, batch_size: int, *, generator: torch.Generator) -> Masks:
        size = math.prod(self.grid)
        level = torch.rand(batch_size, 1 + self.num_targets, 1, generator=generator)
        # Some sets empty, some full, some equal.
        level = (level * 1.6 - 0.3).clamp(0, 1)
        sets = torch.rand(batch_size, 1 + self.num_targets, size, generator=generator) < level
        if self.num_targets > 1:
            sets[::2, 1] = sets[::2, 2]
        self.drawn.append((sets[:, 0], sets[:, 1:]))
        return from_masks(sets[:, 0], sets[:, 1:], self.grid)


def box_of(members: list[int], grid: tuple[int, ...]) -> tuple[int, ...]:
    places = []
    for member in members:
        place = []
        for side in reversed(grid):
            place.insert(0, member % side)
            member //= side
        places.append(place)
    return tuple(max(axis) - min(axis) + 1 for axis in zip(*places, strict=True))


@settings(max_examples=25)
@given(
    grid=grid_sizes(max_side=4),
    num_targets=st.integers(1, 4),
    num_batches=st.integers(1, 3),
    batch=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_it_counts_what_a_naive_loop_counts(grid, num_targets, num_batches, batch, seed):
    sampler, size = Anything(grid, num_targets), math.prod(grid)
    found = audit_masks(
        sampler, num_batches=num_batches, batch_size=batch, generator=generator(seed)
    )
    samples = [
        (context, list(blocks))
        for contexts, targets in sampler.drawn
        for context, blocks in zip(contexts, targets, strict=True)
    ]
    total = len(samples)
    assert total == num_batches * batch
    context, target = [0] * size, [0] * size
    leaks = empty = duplicate = partial = 0
    boxes: Counter[tuple[int, ...]] = Counter()
    for seen, blocks in samples:
        sets = [set(block.nonzero().flatten().tolist()) for block in blocks]
        visible = set(seen.nonzero().flatten().tolist())
        for p in visible:
            context[p] += 1
        leaks += any(visible & members for members in sets)
        for k, members in enumerate(sets):
            for p in members:
                target[p] += 1
            if not members:
                empty += 1
                continue
            duplicate += any(members == other for j, other in enumerate(sets) if j != k)
            box = box_of(sorted(members), grid)
            boxes[box] += 1
            partial += math.prod(box) != len(members)
    blocks = total * num_targets
    counts = [int(seen.sum()) for seen, _ in samples]
    torch.testing.assert_close(found.context_frequency, torch.tensor(context) / total)
    torch.testing.assert_close(found.target_frequency, torch.tensor(target) / blocks)
    assert found.context_coverage == pytest.approx(
        (min(counts) / size, sum(counts) / total / size, max(counts) / size)
    )
    assert found.leak_ratio == leaks / total
    assert found.empty_target_ratio == empty / blocks
    assert found.duplicate_target_ratio == duplicate / blocks
    assert found.partial_target_ratio == partial / blocks
    assert found.undersized_context_ratio == sum(count < 1 for count in counts) / total
    assert found.target_sizes == dict(boxes)
    assert list(found.target_sizes.values()) == sorted(boxes.values(), reverse=True)
    assert found.mean_trimmed_tokens is None and found.min_context_tokens == 1
    assert found.seconds_per_image > 0
    assert str(found)


GOOD = [
    MultiBlockMask((9, 8)),
    MultiBlockMask((9, 8), target_size_per="sample", context_length="trim"),
    MultiBlockMask((9, 8), context_length=10),
    RandomMask((20,), context_length=3),
    RandomMask((2, 3, 4)),
]


@pytest.mark.parametrize("sampler", GOOD, ids=repr)
def test_good_samplers_have_no_faults(sampler):
    found = audit_masks(sampler, num_batches=5, batch_size=8, generator=generator())
    assert found.grid_size == sampler.grid_size and found.sampler == repr(sampler)
    assert found.leak_ratio == found.empty_target_ratio == found.undersized_context_ratio == 0
    if isinstance(sampler, MultiBlockMask):
        length = sampler.context_length
        assert found.partial_target_ratio == 0
        assert found.min_context_tokens == (
            length if isinstance(length, int) else sampler.min_context_tokens
        )
    # The masks are those that the sampler draws for the same generator.
    g = generator()
    contexts = torch.cat([sampler(8, generator=g).context.to_mask() for _ in range(5)])
    torch.testing.assert_close(found.context_frequency, contexts.float().mean(dim=0))


def test_trimmed_tokens():
    """The same draw, once trimmed and once not."""
    whole = MultiBlockMask((12, 12), context_length="pad")
    for length in ("fixed", "trim", 20):
        sampler = dataclasses.replace(whole, context_length=length)
        found = audit_masks(sampler, num_batches=6, batch_size=16, generator=generator())
        g, lost = generator(), 0
        for _ in range(6):
            uniforms = torch.rand(16, sampler.num_uniforms, generator=g)
            before = whole.from_uniforms(uniforms[:, : whole.num_uniforms]).context.counts()
            lost += int((before - sampler.from_uniforms(uniforms).context.counts()).sum())
        assert found.mean_trimmed_tokens == lost / 96 > 5
    assert audit_masks(whole, num_batches=2, batch_size=4).mean_trimmed_tokens == 0
    found = audit_masks(RandomMask((16,), context_length=1), num_batches=2, batch_size=4)
    assert found.mean_trimmed_tokens == 3
    found = audit_masks(ReferenceMultiBlockMask((12, 12)), num_batches=6, batch_size=16)
    assert found.mean_trimmed_tokens > 5
    # Only jepakit's samplers can be drawn again without trimming.
    assert (
        audit_masks(lambda n, **_: whole(n), num_batches=1, batch_size=2).mean_trimmed_tokens
        is None
    )


TRIMMED = MultiBlockMask((12, 12), context_length=20)


@pytest.mark.parametrize(
    ("sampler", "least"),
    [
        (BlockMask((9, 8)), 0),
        (InverseBlockMask((9, 8)), 0),
        (CausalMask((9,), context_size_per="sample"), 0),
        (NestedMask((24, 24), MultiBlockMask((6, 6), context_length="pad")), 0),
        (NestedMask((24, 24), MultiBlockMask((6, 6), context_length=5)), 64),
        (TubeMask(3, RandomMask((4, 4))), 0),
        (TubeMask(3, TRIMMED), 15),
        (ComplementMask(RandomMask((4, 4))), 0),
        (ComplementMask(TRIMMED), 5),
        (UnionMask(TRIMMED), 5),
        (ComplementMask(ReferenceMultiBlockMask((12, 12))), 5),
        (MultiContextMask((RandomMask((12, 12)),)), 0),
        (MultiContextMask((TRIMMED,)), 5),
    ],
    ids=repr,
)
def test_trimmed_tokens_are_known_for_every_sampler(sampler, least):
    found = audit_masks(sampler, num_batches=3, batch_size=8, generator=generator())
    (found,) = found if isinstance(found, list) else [found]
    assert found.mean_trimmed_tokens >= least and bool(found.mean_trimmed_tokens) == bool(least)


def test_a_mixture_is_held_to_its_members():
    plain = MultiBlockMask((12, 12), min_context_coverage=0.3, context_length="pad")
    found = audit_masks(MultiContextMask((plain, TRIMMED)), num_batches=3, batch_size=8)
    assert [one.min_context_tokens for one in found] == [plain.min_context_tokens, 20]
    assert found[0].mean_trimmed_tokens == 0 < found[1].mean_trimmed_tokens


def test_prefix_truncation_shows():
    """Trap: a foreign sampler that cuts contexts to a prefix, so that bottom rows are rare."""

    def prefix(batch_size: int, *, generator: torch.Generator) -> Masks:
        masks = MultiBlockMask((12, 12), context_length="pad")(batch_size, generator=generator)
        length = int(masks.context.counts().min())
        return masks_from_indices(
            masks.context.idx[:, :length], [*masks.targets.idx.unbind(1)], (12, 12)
        )

    found = audit_masks(prefix, num_batches=20, batch_size=32, generator=generator())
    context = found.context_frequency.view(12, 12)
    assert context[:3].mean() > 2 * context[-3:].mean()
    assert found.leak_ratio == found.partial_target_ratio == 0 and found.sampler == "prefix"


@pytest.mark.parametrize("num_samples", [1, 3])
def test_planted_faults(num_samples):
    """Of four samples: leaks, empty targets, duplicates, empty contexts."""

    def planted(batch_size: int, *, generator: torch.Generator) -> Masks:
        context = torch.zeros(4, 4, dtype=torch.bool)
        context[:, 0] = True
        targets = torch.zeros(4, 2, 4, dtype=torch.bool)
        targets[:, 0, 2] = targets[:, 1, 3] = True
        if num_samples >= 1:
            targets[0, 1, 0] = True  # a leak; and {0, 3} does not fill its 2 x 2 box
        if num_samples >= 3:
            targets[1, 1] = False  # empty
            targets[2, 1] = targets[2, 0]  # two equal ones
            context[3] = False
        return from_masks(context, targets, (2, 2))

    found = audit_masks(planted, num_batches=3, batch_size=4)
    assert found.leak_ratio == 1 / 4 and found.partial_target_ratio == 1 / 8
    assert found.empty_target_ratio == (0 if num_samples == 1 else 1 / 8)
    assert found.duplicate_target_ratio == (0 if num_samples == 1 else 2 / 8)
    assert found.undersized_context_ratio == (0 if num_samples == 1 else 1 / 4)


def test_large_targets_are_told_apart_under_autocast():
    """Trap: tokens counted by a product in bfloat16, for which 599 and 600 are one number."""
    targets = torch.ones(1, 2, 900, dtype=torch.bool)
    targets[:, :, :299] = targets[:, 0, 299] = targets[:, 1, 300] = False

    def planted(batch_size: int, *, generator: torch.Generator) -> Masks:
        return from_masks(~targets.any(dim=1), targets, (30, 30))

    with torch.autocast("cpu", torch.bfloat16):
        assert audit_masks(planted, num_batches=1, batch_size=1).duplicate_target_ratio == 0


def test_a_sampler_that_breaks_its_own_promise():
    class Boasting:
        min_context_tokens = 5

        def __call__(self, batch_size: int, *, generator: torch.Generator | None = None) -> Masks:
            return RandomMask((16,), target_ratio=0.75)(batch_size, generator=generator)

    found = audit_masks(Boasting(), num_batches=2, batch_size=2)
    assert (
        found.undersized_context_ratio == 1
        and found.min_context_tokens == 5
        and found.sampler == "Boasting"
    )
    assert "contexts below 5 tokens" in str(found)


def test_lists_of_masks_are_audited_one_by_one():
    def two(batch_size: int, *, generator: torch.Generator) -> list[Masks]:
        samplers = RandomMask((16,)), MultiBlockMask((12, 12))
        return [sampler(batch_size, generator=generator) for sampler in samplers]

    found = audit_masks(two, num_batches=3, batch_size=4, generator=generator())
    assert [one.sampler for one in found] == ["two[0]", "two[1]"]
    assert [one.grid_size for one in found] == [(16,), (12, 12)]
    assert found[0].context_coverage == Spread(0.25, 0.25, 0.25)


def test_a_collator_of_indices():
    """In I-JEPA's style: the batch, a list of context indices, a list of target indices."""

    def collate(samples):
        n = len(samples)
        context = torch.tensor([[3, 0, 2]]).repeat(n, 1)  # in no order
        return torch.stack(samples), [context], [torch.tensor([[5, 6]]), torch.tensor([[7]])]

    def sampler(batch_size: int, **_) -> Masks:
        _, contexts, targets = collate([torch.zeros(1)] * batch_size)
        return masks_from_indices(
            contexts[0], [idx.repeat(batch_size, 1).int() for idx in targets], (2, 4)
        )

    found = audit_masks(sampler, num_batches=2, batch_size=3)
    assert found.context_frequency.tolist() == [1, 0, 1, 1, 0, 0, 0, 0]
    assert found.target_frequency.tolist() == [0, 0, 0, 0, 0, 0.5, 0.5, 0.5]
    assert found.target_sizes == {(1, 1): 6, (1, 2): 6}


def raises(error: type[Exception], text: str) -> pytest.RaisesExc:
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def test_errors():
    good = RandomMask((4,))
    with raises(ValueError, "num_batches=0: must be at least 1"):
        audit_masks(good, num_batches=0)
    with raises(ValueError, "batch_size=0: must be at least 1"):
        audit_masks(good, batch_size=0)
    with raises(
        TypeError,
        "sampler returned tuple: must be Masks or a list of them; index tensors become Masks "
        "through masks_from_indices",
    ):
        audit_masks(lambda n, **_: (1, 2))
    with raises(ValueError, "sampler returned []: must be at least one Masks"):
        audit_masks(lambda n, **_: [])
    with raises(
        ValueError,
        "sampler returned masks for 3 samples: must be for the 4 that it was called for",
    ):
        audit_masks(lambda n, **_: good(3), batch_size=4)
    several = iter([1, 2])
    with raises(
        ValueError,
        "sampler returned 2 Masks, 1 before: must be as many for every batch",
    ):
        audit_masks(lambda n, **_: [good(n)] * next(several))
    grids = iter([(4,), (5,)])
    with raises(
        ValueError, "sampler returned masks on the grid (5,), before on (4,): must be on one grid"
    ):
        audit_masks(lambda n, **_: RandomMask(next(grids))(n))


def test_any_callable():
    """A sampler need not take a generator, nor be written in Python."""

    def plain(batch_size: int) -> Masks:
        return RandomMask((4,))(batch_size)

    for sampler in (plain, lambda n: plain(n), functools.partial(plain)):
        assert audit_masks(sampler, num_batches=2, batch_size=3).context_coverage.mean == 0.25

    def hungry(batch_size: int, *, generator: torch.Generator) -> Masks:
        return RandomMask((16,))(batch_size, generator=generator)

    one, other = (audit_masks(hungry, num_batches=2, generator=generator()) for _ in range(2))
    assert torch.equal(one.context_frequency, other.context_frequency)


@pytest.mark.no_hook
def test_kinds():
    with raises(TypeError, "sampler=3: must be callable as sampler(batch_size)"):
        audit_masks(3)


@pytest.mark.parametrize(
    ("sampler", "axes"),
    [
        (RandomMask((40,)), ["position"]),
        (MultiBlockMask((12, 12)), ["row", "column"]),
        (RandomMask((2, 3, 4)), ["frame", "row", "column"]),
    ],
)
def test_the_table(sampler, axes):
    found = audit_masks(sampler, num_batches=3, batch_size=8, generator=generator())
    lines = str(found).splitlines()
    table = lines[lines.index("") + 1 :]
    head = next(k for k, line in enumerate(table) if line.startswith("frequency"))
    assert [line.split("  ")[0] for line in table[head + 1 :]] == [
        f"{where} {axis}" for axis in axes for where in ("first", "middle", "last")
    ]
    # Aligned: the last digit of every figure stands in one column.
    ends = {line[:41].rstrip().endswith(("%", *"0123456789")) for line in table[: head - 1]}
    assert ends == {True}
    assert len({len(line) for line in table[head:]}) == 1
    first = found.context_frequency.view(found.grid_size)[0].mean()
    assert f"{float(first):.1%}".rstrip("%") in table[head + 1]
    assert max(map(len, lines)) <= 100


def test_frozen_and_short_repr():
    found = audit_masks(RandomMask((4,)), num_batches=1, batch_size=2)
    with pytest.raises(AttributeError):
        found.leak_ratio = 1.0
    assert isinstance(found, MaskAudit) and "tensor" not in repr(found)


def test_the_size_of_the_audit_is_reported():
    report = audit_masks(RandomMask((16,)), num_batches=3, batch_size=4)
    assert (report.num_batches, report.batch_size) == (3, 4)


def test_an_int_length_of_a_users_sampler_is_its_promise():
    class Own:
        min_context_tokens, context_length = 5, 3

        def __call__(self, batch_size):
            return RandomMask((16,), target_ratio=0.75)(batch_size)

    assert audit_masks(Own(), num_batches=1, batch_size=2).min_context_tokens == 3
