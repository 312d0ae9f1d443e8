"""`assert_sampler_contract`: what every mask sampler keeps."""

import copy
import inspect
import pickle
import sys
from typing import Any

import torch
from torch import Tensor

import jepakit.masking
from jepakit._checks import check_bool, check_int
from jepakit.masking import MaskSampler
from jepakit.testing.breach import Law, fail, first_of
from jepakit.testing.global_random import global_seed, global_states
from jepakit.tokens import Masks, TokenSet

__all__ = ["assert_sampler_contract"]


def assert_sampler_contract(
    sampler: MaskSampler[Any],
    *,
    batch_size: int = 8,
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

    A sampler with `grid_size`, `num_targets` or `need` is held to them. One with `num_draws` and
    `from_uniforms(table)`, as jepakit's own, must be a function of that table, the ends of the
    uniforms included, and with `per_sample` of each row by itself.

    What this does not see: how often each position is shown. Copies are pickled only where the
    sampler's class can be imported by name.

    Args:
        sampler: Called `(batch_size, generator=..., device=...)`; gives `Masks` or a list of them.
        batch_size: Samples in a batch; at least 2.
        seed: Of the generators that the sampler is given.
        min_context: Tokens that every context has at least. None for the sampler's own `need` (or
            its int `context_length`, where that is less), and 1 where it has none.
        varies: Expect batches, and the samples of a batch, to differ. False for a sampler without
            randomness, or on a grid with hardly any choice.
        device: Where masks are drawn too; they must be those of the CPU.

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
    check_bool("varies", varies)
    if min_context is not None:
        check_int("min_context", min_context, minimum=0)
    floor = _floor(sampler) if min_context is None else min_context
    for size in (1, batch_size):
        _check_guarantee(sampler, _drawn(sampler, size, seed), size, floor)
    _check_pure(sampler, batch_size, seed, device)
    if varies:
        _check_varies(sampler, batch_size, seed)
    _check_copies(sampler, batch_size, seed)
    if hasattr(sampler, "from_uniforms") and hasattr(sampler, "num_draws"):
        _check_uniforms(sampler, batch_size, seed, floor)


def _floor(sampler: Any) -> int:
    need = getattr(sampler, "need", 1)
    length = getattr(sampler, "context_length", None)
    floor = need if isinstance(need, int) else 1
    return min(floor, length) if isinstance(length, int) else floor


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _drawn(sampler: Any, batch_size: int, seed: int) -> Any:
    return sampler(batch_size, generator=_generator(seed))


def _members(drawn: Any) -> list[Masks]:
    members = drawn if isinstance(drawn, list | tuple) else [drawn]
    if not members or not all(isinstance(masks, Masks) for masks in members):
        kinds = ", ".join(sorted({type(masks).__name__ for masks in members})) or "an empty list"
        fail(Law.INTERFACE, f"a sampler must return Masks or a list of Masks, got {kinds}")
    return list(members)


def _same(one: Any, other: Any) -> bool:
    ours, theirs = _members(one), _members(other)
    return len(ours) == len(theirs) and all(
        a.grid_size == b.grid_size and torch.equal(a.idx, b.idx) and torch.equal(a.valid, b.valid)
        for mine, yours in zip(ours, theirs, strict=True)
        for a, b in ((mine.context, yours.context), (mine.targets, yours.targets))
    )


# Law 1


def _check_guarantee(sampler: Any, drawn: Any, batch_size: int, floor: int) -> None:
    for masks in _members(drawn):
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
        _check_sets(masks.context.to_mask(), masks.targets.to_mask(), floor)


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


# Law 2


def _check_pure(sampler: Any, batch_size: int, seed: int, device: torch.device | str) -> None:
    drawn = []
    for other in (seed + 1, seed + 2):
        with global_seed(other):
            before = global_states()
            drawn.append(_drawn(sampler, batch_size, seed))
            for name, state in global_states().items():
                if state != before.get(name, state):
                    fail(
                        Law.PURE,
                        f"the sampler was given a generator and moved the global state of {name}",
                    )
    if not _same(*drawn):
        fail(
            Law.PURE,
            f"two generators seeded with {seed} gave different masks; the sampler draws on "
            "something else, or keeps state between calls",
        )
    there = sampler(batch_size, generator=_generator(seed), device=device)
    if not _same([masks.to("cpu") for masks in _members(there)], _members(drawn[0])):
        fail(Law.PURE, f"device={str(device)!r} gave other masks than no device")
    drawn.clear()
    for _ in range(2):
        with global_seed(seed):
            drawn.append(sampler(batch_size))
    if not _same(*drawn):
        fail(
            Law.PURE,
            "without a generator the masks must be a function of torch's global one; seeded twice "
            f"with {seed} it gave different masks",
        )


def _check_varies(sampler: Any, batch_size: int, seed: int) -> None:
    generator = _generator(seed)
    batches = [sampler(batch_size, generator=generator) for _ in range(4)]
    if all(_same(batches[0], batch) for batch in batches[1:]):
        fail(
            Law.PURE,
            f"four batches of {batch_size} drawn one after another from one generator are equal; "
            "the sampler does not draw on it (varies=False if there is nothing to draw)",
        )
    for batch in batches:
        for masks in _members(batch):
            both = torch.cat([masks.context.to_mask()[:, None], masks.targets.to_mask()], dim=1)
            if (both != both[:1]).any():
                return
    fail(
        Law.PURE,
        f"in four batches of {batch_size} every sample has the masks of its batch-mates; each must "
        "draw its own (varies=False if there is nothing to draw)",
    )


# Law 13


def _check_copies(sampler: Any, batch_size: int, seed: int) -> None:
    expected = _drawn(sampler, batch_size, seed)
    twins = {"deepcopy": copy.deepcopy(sampler)}
    if _importable(sampler):
        try:
            twins["pickle"] = pickle.loads(pickle.dumps(sampler))
        except Exception as error:
            fail(Law.COPIES, f"pickle, as DataLoader workers need it, raised {error!r}")
    text = repr(sampler)
    try:
        twins[f"eval({text!r})"] = eval(text, _names(sampler))
    except (SyntaxError, NameError):
        pass  # no expression, or of names that are not to be had here
    except Exception as error:
        fail(Law.COPIES, f"repr {text!r} looks like a call, and evaluating it raised {error!r}")
    for how, twin in twins.items():
        # An object without an `==` of its own equals itself alone.
        comparable = any("__eq__" in vars(kind) for kind in type(sampler).__mro__[:-1])
        if comparable and twin != sampler:
            fail(Law.COPIES, f"{how} gave {twin!r}, which is not equal to {sampler!r}")
        if not callable(twin) or not _same(_drawn(twin, batch_size, seed), expected):
            fail(Law.COPIES, f"what {how} gave draws other masks from the same generator")


def _importable(sampler: Any) -> bool:
    definition = sampler if inspect.isroutine(sampler) else type(sampler)
    found: Any = sys.modules.get(definition.__module__ or "")
    for name in definition.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is definition


def _names(sampler: Any) -> dict[str, Any]:
    home = sys.modules.get(type(sampler).__module__)
    return {**vars(jepakit.masking), **(vars(home) if home else {})}


# Samplers that are a function of a table of uniforms


def _check_uniforms(sampler: Any, batch_size: int, seed: int, floor: int) -> None:
    generator = _generator(seed)
    table = torch.rand(batch_size, sampler.num_draws, generator=generator)
    given = table.clone()
    drawn = sampler.from_uniforms(given)
    if not torch.equal(given, table):
        fail(Law.PURE, f"from_uniforms changed its table, first at {first_of(given != table)}")
    if not _same(sampler.from_uniforms(table), drawn):
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
        for mine, batch in zip(_members(lone), _members(drawn), strict=True):
            for name in ("context", "targets"):
                one = getattr(mine, name).to_mask()[0]
                if not torch.equal(one, getattr(batch, name).to_mask()[sample]):
                    fail(
                        Law.BATCH,
                        f"per_sample is True, but the {name} of sample {sample} depends on its "
                        "batch-mates",
                    )
