"""`assert_sampler_contract`: what every mask sampler keeps."""

from typing import Any

import torch
from torch import Tensor

from jepakit._checks import check_bool, check_int
from jepakit.masking import MaskSampler, NestedMask
from jepakit.masking.base import promised_tokens
from jepakit.testing.breach import Law, fail, first_of
from jepakit.testing.copies import check_copies
from jepakit.testing.draws import drawn_by, generator_of, members_of, same_masks
from jepakit.testing.global_random import global_seed, global_states
from jepakit.tokens import Masks, TokenSet

__all__ = ["assert_sampler_contract"]


def assert_sampler_contract(
    sampler: MaskSampler[Any],
    *,
    batch_size: int = 8,
    num_samples: int = 256,
    seed: int = 0,
    min_context: int | None = None,
    varies: bool = True,
    device: torch.device | str = "cpu",
) -> None:
    r"""Raise unless a sampler keeps the laws of masks.

    Law 1: for every sample, $|C| \ge$ `min_context` and $C \cap T_j = \emptyset$, no $T_j$ is empty
    and every index is on the grid. Law 2: the masks are a function of the generator alone, on every
    device, and no global random state is read or moved. Law 13: `deepcopy`, `pickle` and, where
    `repr` is an expression, what it builds draw the same.

    A sampler with `grid_size`, `num_targets`, `min_context_tokens` or an int `context_length` (the number of
    tokens of every context) is held to them. One with `num_uniforms` and
    `from_uniforms(table)`, as jepakit's own, must be a function of that table, the ends of the
    uniforms included, and with `per_sample` of each row by itself.

    What this does not see: how often each position is shown. Copies are pickled only where the
    sampler's class can be imported by name.

    Args:
        sampler: Called `(batch_size, generator=..., device=...)`; gives `Masks` or a list of them.
        batch_size: Samples in a batch; at least 2.
        num_samples: Samples that law 1 is looked at in besides, all in one batch; what goes wrong
            in a share $p$ of samples is missed with a chance of $(1 - p)^n$.
        seed: Of the generators that the sampler is given.
        min_context: Tokens that every context has at least. None for the sampler's own `min_context_tokens` (or
            its int `context_length`, where that is less; its members' in `samplers`, where it gives
            a list), and 1 where it has none.
        varies: Expect batches, and the targets in a batch, to differ. False for a sampler without
            randomness or with one draw for a batch, or on a grid with hardly any choice.
        device: Where masks are drawn too; they must be those of the CPU, and lie on it. On
            `"meta"` only their shapes are compared.

    Raises:
        AssertionError: Names the law that is broken, what was seen, and where.
        ValueError: If `batch_size` is below 2 or `min_context` negative.

    Example:
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.testing import assert_sampler_contract
        >>> assert_sampler_contract(MultiBlockMask((14, 14), min_context_coverage=0.25))

    Source:
        jepakit's own.
    """
    check_int("batch_size", batch_size, minimum=2)
    check_int("num_samples", num_samples, minimum=1)
    check_bool("varies", varies)
    if min_context is not None:
        check_int("min_context", min_context, minimum=0)
    for size in (1, batch_size, num_samples):
        _check_guarantee(sampler, drawn_by(sampler, size, seed), size, min_context)
    _check_pure(sampler, batch_size, seed, device)
    if varies:
        _check_varies(sampler, batch_size, seed)
    check_copies(sampler, batch_size, seed)
    if hasattr(sampler, "from_uniforms") and hasattr(sampler, "num_uniforms"):
        _check_uniforms(sampler, batch_size, seed, min_context)


# Law 1


def _check_guarantee(sampler: Any, drawn: Any, batch_size: int, floor: int | None) -> None:
    members = members_of(drawn)
    floors = promised_tokens(sampler, len(members)) if floor is None else [floor] * len(members)
    for masks, least in zip(members, floors, strict=True):
        for name, tokens in (("context", masks.context), ("targets", masks.targets)):
            try:  # the values are checked when a set is built, so build it again
                TokenSet(tokens.idx, tokens.valid, tokens.grid_size, tokens.padded)
            except (TypeError, ValueError) as error:
                fail(Law.GUARANTEE, f"the {name} is no legal TokenSet; {error}")
            if len(tokens.idx) != batch_size:
                fail(Law.INTERFACE, f"asked for {batch_size} samples, {name} has {len(tokens.idx)}")
            grid = getattr(sampler, "grid_size", tokens.grid_size)
            if tokens.grid_size != grid:
                fail(
                    Law.INTERFACE, f"grid_size is {grid}, {name} is on the grid {tokens.grid_size}"
                )
        asked, given = getattr(sampler, "num_targets", None), masks.targets.shape[1]
        if given == 0 or (isinstance(asked, int) and asked != given):
            rule = f"num_targets={asked}" if isinstance(asked, int) else "at least one"
            fail(Law.GUARANTEE, f"{given} targets for each sample, must be {rule}")
        _check_sets(masks.context.to_mask(), masks.targets.to_mask(), least)
        _check_length(sampler, masks.context.counts())


def _check_sets(context: Tensor, targets: Tensor, floor: int) -> None:
    shared = context[:, None] & targets
    if shared.any():
        sample, target, position = first_of(shared)
        fail(
            Law.GUARANTEE,
            f"the context of sample {sample} holds position {position} of its target {target}; "
            f"{int(shared.any(1).sum(1)[sample])} positions of that sample are in both",
        )
    empty = ~targets.any(dim=-1)
    if empty.any():
        sample, target = first_of(empty)
        fail(Law.GUARANTEE, f"target {target} of sample {sample} is empty")
    counts = context.sum(dim=1)
    if (counts < floor).any():
        (sample,) = first_of(counts < floor)
        fail(
            Law.GUARANTEE,
            f"the context of sample {sample} has {int(counts[sample])} tokens, must have at least "
            f"{floor}",
        )


def _check_length(sampler: Any, counts: Tensor) -> None:
    length = getattr(sampler, "context_length", None)
    if not isinstance(length, int) or isinstance(sampler, NestedMask):
        return  # nested blocks count cells of their coarsest level
    if (counts != length).any():
        (sample,) = first_of(counts != length)
        fail(
            Law.GUARANTEE,
            f"the context of sample {sample} has {int(counts[sample])} tokens, and the sampler's "
            f"context_length is {length}",
        )


# Law 2


def _check_pure(sampler: Any, batch_size: int, seed: int, device: torch.device | str) -> None:
    drawn = []
    for other in (seed + 1, seed + 2):
        with global_seed(other):
            before = global_states()
            drawn.append(drawn_by(sampler, batch_size, seed))
            for name, state in global_states().items():
                if state != before.get(name, state):
                    fail(
                        Law.PURE,
                        f"the sampler was given a generator and moved the global state of {name}",
                    )
    if not same_masks(*drawn):
        fail(
            Law.PURE,
            f"two generators seeded with {seed} gave different masks; the sampler draws on "
            "something else, or keeps state between calls",
        )
    for asked in dict.fromkeys(("cpu", str(device))):
        there = members_of(sampler(batch_size, generator=generator_of(seed), device=asked))
        _check_device(there, members_of(drawn[0]), asked)
    drawn.clear()
    for _ in range(2):
        with global_seed(seed):
            drawn.append(sampler(batch_size))
    if not same_masks(*drawn):
        fail(
            Law.PURE,
            "without a generator the masks must be a function of torch's global one; seeded twice "
            f"with {seed} it gave different masks",
        )


def _check_device(there: list[Masks], here: list[Masks], asked: str) -> None:
    wanted = torch.device(asked)
    for masks in there:
        for name, tokens in (("context", masks.context), ("targets", masks.targets)):
            found = tokens.device
            if found.type != wanted.type or wanted.index not in (None, found.index):
                fail(Law.PURE, f"device={asked!r} was asked for, and the {name} lies on {found}")
    if wanted.type == "meta":  # where there are no values
        shapes = [[(m.context.shape, m.targets.shape) for m in drawn] for drawn in (there, here)]
        same = shapes[0] == shapes[1]
    else:
        same = same_masks(*([masks.to("cpu") for masks in drawn] for drawn in (there, here)))
    if not same:
        fail(Law.PURE, f"device={asked!r} gave other masks than no device")


def _check_varies(sampler: Any, batch_size: int, seed: int) -> None:
    generator = generator_of(seed)
    batches = [sampler(batch_size, generator=generator) for _ in range(4)]
    if all(same_masks(batches[0], batch) for batch in batches[1:]):
        fail(
            Law.PURE,
            f"four batches of {batch_size} drawn one after another from one generator are equal; "
            "the sampler does not draw on it (varies=False if there is nothing to draw)",
        )
    for batch in batches:
        for masks in members_of(batch):
            targets = masks.targets.to_mask()
            if (targets != targets[:1]).any():
                return
    fail(
        Law.PURE,
        f"in four batches of {batch_size} every sample has the targets of its batch-mates; each "
        "must draw its own (varies=False if there is nothing to draw, or one draw for a batch)",
    )


# Samplers that are a function of a table of uniforms


def _check_uniforms(sampler: Any, batch_size: int, seed: int, floor: int | None) -> None:
    generator = generator_of(seed)
    table = torch.rand(batch_size, sampler.num_uniforms, generator=generator)
    given = table.clone()
    drawn = sampler.from_uniforms(given)
    if not torch.equal(given, table):
        fail(Law.PURE, f"from_uniforms changed its table, first at {first_of(given != table)}")
    if not same_masks(sampler.from_uniforms(table), drawn):
        fail(Law.PURE, "from_uniforms gave different masks for one table")
    for end in (0.0, 1 - 2**-24):
        for share in (1.0, 0.5):
            fixed = torch.rand(table.shape, generator=generator) < share
            extremes = table.masked_fill(fixed, end)
            try:
                _check_guarantee(sampler, sampler.from_uniforms(extremes), batch_size, floor)
            except Exception as error:
                seen = f"with uniforms of {end!r}, a legal draw, {type(error).__name__}: {error}"
                raise AssertionError(f"{Law.GUARANTEE}: {seen}") from error
    if not getattr(sampler, "per_sample", False):
        return
    for sample in range(batch_size):
        lone = sampler.from_uniforms(table[sample : sample + 1])
        for mine, batch in zip(members_of(lone), members_of(drawn), strict=True):
            for name in ("context", "targets"):
                one = getattr(mine, name).to_mask()[0]
                if not torch.equal(one, getattr(batch, name).to_mask()[sample]):
                    fail(
                        Law.BATCH,
                        f"per_sample is True, but the {name} of sample {sample} depends on its "
                        "batch-mates",
                    )
