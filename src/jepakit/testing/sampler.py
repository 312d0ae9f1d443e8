"""`assert_sampler_contract`: the laws of a mask sampler."""

import copy
import inspect
import pickle
import sys
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import jepakit.masking
from jepakit._checks import as_bool, as_int
from jepakit.masking import MaskSampler
from jepakit.masking.base import promised_tokens
from jepakit.testing._global_random import global_seed, global_states
from jepakit.testing._violation import Law, fail, first_index, require, require_nowhere
from jepakit.tokens import Masks, TokenSet

__all__ = ["assert_sampler_contract"]


def assert_sampler_contract(
    sampler: MaskSampler[Any],
    *,
    batch_size: int = 8,
    num_samples: int = 256,
    seed: int = 0,
    min_context_tokens: int | None = None,
    varies: bool = True,
    device: torch.device | str = "cpu",
) -> None:
    r"""Raise unless a sampler follows the laws of masks.

    - Law 1: for every sample, $|C| \ge$ `min_context_tokens` and $C \cap T_j = \emptyset$, no
      $T_j$ is empty and every index lies on the grid.
    - Law 2: the masks are a function of the generator alone, on every device; no global random
      state is read or advanced.
    - Law 13: `deepcopy`, `pickle` and `repr`, where it is an expression, give a sampler that draws
      the same masks.

    Attributes are part of the contract: the masks must agree with `grid_size`, `num_targets`,
    `min_context_tokens` and an int `context_length` (the number of tokens of every context) where
    the sampler has them. Where it has `num_uniforms` and `from_uniforms(table)`, as jepakit's
    samplers do, the masks must be a function of that table, also at the ends of [0, 1); with
    `per_sample` those of a sample depend on its row alone.

    Not tested: how often each position is shown. Copies are pickled only if the sampler's class can
    be imported by name.

    Args:
        sampler: Called `(batch_size, generator=..., device=...)`; returns `Masks` or a list.
        batch_size: Number of samples; at least 2.
        num_samples: Samples of one further batch that tests law 1; an error in a fraction $p$ of
            the samples is missed with probability $(1 - p)^n$.
        seed: For the generators that are passed to the sampler.
        min_context_tokens: Tokens that every context has at least. None for the sampler's own
            `min_context_tokens` (or its int `context_length`, where that is less; those of its
            members in `samplers`, where it returns a list), and 1 where it has none.
        varies: Require that batches, and the targets in a batch, differ. False for a sampler
            without randomness, one draw per batch, or a grid with hardly any choice.
        device: Where masks are drawn too; they must lie there and equal those of the CPU. On
            `"meta"` only their shapes are compared.

    Raises:
        AssertionError: Names the violated law, what was found, and where.

    Example:
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.testing import assert_sampler_contract
        >>> assert_sampler_contract(MultiBlockMask((14, 14), min_context_coverage=0.25))
    """
    batch_size = as_int("batch_size", batch_size, minimum=2)
    num_samples = as_int("num_samples", num_samples, minimum=1)
    seed = as_int("seed", seed)
    as_bool("varies", varies)
    if min_context_tokens is not None:
        min_context_tokens = as_int("min_context_tokens", min_context_tokens, minimum=0)
    for size in (1, batch_size, num_samples):
        _check_guarantee(sampler, _draw(sampler, size, seed), size, min_context_tokens)
    _check_pure(sampler, batch_size, seed)
    for name in dict.fromkeys(("cpu", str(device))):
        _check_device(sampler, batch_size, seed, name)
    if varies:
        _check_varies(sampler, batch_size, seed)
    _check_copies(sampler, batch_size, seed)
    if hasattr(sampler, "from_uniforms") and hasattr(sampler, "num_uniforms"):
        _check_uniforms(sampler, batch_size, seed, min_context_tokens)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _draw(sampler: Any, batch_size: int, seed: int) -> Any:
    return sampler(batch_size, generator=_seeded(seed))


def _as_list(drawn: Any) -> list[Masks]:
    """The drawn `Masks`: one for each context of an image."""
    members = drawn if isinstance(drawn, list) else [drawn]
    if not members or not all(isinstance(masks, Masks) for masks in members):
        types = ", ".join(sorted({type(masks).__name__ for masks in members})) or "an empty list"
        fail(Law.INTERFACE, f"a sampler must return Masks or a list of Masks, got {types}")
    return members


def _equal(one: Any, other: Any) -> bool:
    one, other = _as_list(one), _as_list(other)
    tensors = map(torch.equal, pytree.tree_leaves(one), pytree.tree_leaves(other))
    return [m.grid_size for m in one] == [m.grid_size for m in other] and all(tensors)


# Law 1


def _check_guarantee(
    sampler: Any, drawn: Any, batch_size: int, min_context_tokens: int | None
) -> None:
    members = _as_list(drawn)
    promised = promised_tokens(sampler, len(members))
    for masks, minimum in zip(members, promised, strict=True):
        _check_attributes(sampler, masks, batch_size)
        _check_sets(sampler, masks, minimum if min_context_tokens is None else min_context_tokens)


def _check_attributes(sampler: Any, masks: Masks, batch_size: int) -> None:
    for name, tokens in (("context", masks.context), ("targets", masks.targets)):
        try:  # the constructor checks the values, which may have been changed in place since
            TokenSet(tokens.idx, tokens.valid, tokens.grid_size, tokens.padded)
        except (TypeError, ValueError) as error:
            fail(Law.GUARANTEE, f"the {name} is not a legal TokenSet: {error}")
        found = f"batch_size is {batch_size}, {name} has {len(tokens)} samples"
        require(Law.INTERFACE, len(tokens) == batch_size, found)
        grid = tuple(getattr(sampler, "grid_size", tokens.grid_size))
        found = f"grid_size is {grid}, {name} is on the grid {tokens.grid_size}"
        require(Law.INTERFACE, tokens.grid_size == grid, found)
    expected, count = getattr(sampler, "num_targets", None), masks.targets.shape[1]
    if count == 0 or (isinstance(expected, Integral) and expected != count):
        rule = f"num_targets={expected}" if isinstance(expected, Integral) else "at least one"
        fail(Law.GUARANTEE, f"{count} targets for each sample, must be {rule}")


def _check_sets(sampler: Any, masks: Masks, minimum: int) -> None:
    context, targets = masks.context.to_mask(), masks.targets.to_mask()
    found, axes = "context and targets overlap", "sample target position"
    require_nowhere(Law.GUARANTEE, context[:, None] & targets, found, axes=axes)
    found, axes = "a target is empty", "sample target"
    require_nowhere(Law.GUARANTEE, ~targets.any(dim=-1), found, axes=axes)
    counts, length = context.sum(dim=1), getattr(sampler, "context_length", None)
    rules = {f"must have at least {minimum}": counts < minimum}
    if isinstance(length, Integral):
        rules[f"context_length is {length}"] = counts != int(length)
    for rule, broken in rules.items():
        if broken.any():
            (sample,) = first_index(broken)
            found = f"the context has {counts[sample]} tokens, {rule}"
            fail(Law.GUARANTEE, found, where=f"sample {sample}")


# Law 2


def _check_pure(sampler: Any, batch_size: int, seed: int) -> None:
    drawn = []
    for global_state in (seed + 1, seed + 2):
        with global_seed(global_state):
            before = global_states()
            drawn.append(_draw(sampler, batch_size, seed))
            for name, state in global_states().items():
                found = f"a call with a generator changed the global state of {name}"
                require(Law.PURE, state == before.get(name, state), found)
    found = f"two generators seeded with {seed} gave different masks"
    hint = "the sampler draws from something else, or keeps state between calls"
    require(Law.PURE, _equal(*drawn), found, hint=hint)
    drawn.clear()
    for _ in range(2):
        with global_seed(seed):
            drawn.append(sampler(batch_size))
    found = "without a generator the masks must be a function of torch's global one, and are not"
    require(Law.PURE, _equal(*drawn), found)


def _check_device(sampler: Any, batch_size: int, seed: int, device: str) -> None:
    wanted = torch.device(device)
    moved = _as_list(sampler(batch_size, generator=_seeded(seed), device=device))
    expected = _as_list(_draw(sampler, batch_size, seed))
    for masks in moved:
        for name, on in (("context", masks.context.device), ("targets", masks.targets.device)):
            there = on.type == wanted.type and wanted.index in (None, on.index)
            require(Law.PURE, there, f"a call with device={device!r} gave the {name} on {on}")
    if wanted.type == "meta":  # tensors without values
        ours, theirs = pytree.tree_leaves(moved), pytree.tree_leaves(expected)
        equal = [leaf.shape for leaf in ours] == [leaf.shape for leaf in theirs]
    else:
        equal = _equal(*([masks.to("cpu") for masks in each] for each in (moved, expected)))
    require(Law.PURE, equal, f"device={device!r} gave other masks than no device")


def _check_varies(sampler: Any, batch_size: int, seed: int) -> None:
    generator = _seeded(seed)
    batches = [sampler(batch_size, generator=generator) for _ in range(4)]
    hint = "varies=False if there is nothing to draw, or one draw per batch"
    differ = not all(_equal(batches[0], batch) for batch in batches[1:])
    found = f"four batches of {batch_size} drawn in turn from one generator are equal"
    require(Law.PURE, differ, found, hint=hint)
    targets = [masks.targets.to_mask() for batch in batches for masks in _as_list(batch)]
    differ = any(bool((target != target[:1]).any()) for target in targets)
    found = f"in four batches of {batch_size} every sample has the targets of its batch-mates"
    require(Law.PURE, differ, found, hint=hint)


# Law 13


def _check_copies(sampler: Any, batch_size: int, seed: int) -> None:
    expected = _draw(sampler, batch_size, seed)
    copies = {"deepcopy": copy.deepcopy(sampler)}
    if _importable(sampler):
        try:
            copies["pickle"] = pickle.loads(pickle.dumps(sampler))
        except Exception as error:
            fail(Law.COPIES, f"pickle, which DataLoader workers need, raised {error!r}")
    text = repr(sampler)
    module = sys.modules.get(type(sampler).__module__, jepakit.masking)
    try:
        copies[f"eval({text!r})"] = eval(text, {**vars(jepakit.masking), **vars(module)})
    except (SyntaxError, NameError):
        pass  # not an expression, or one of names that are not known here
    except Exception as error:
        fail(Law.COPIES, f"repr {text!r} looks like a call, and evaluating it raised {error!r}")
    # An object without an `__eq__` of its own equals itself alone.
    comparable = any("__eq__" in vars(base) for base in type(sampler).__mro__[:-1])
    for how, copied in copies.items():
        if comparable and copied != sampler:
            fail(Law.COPIES, f"{how} gave {copied!r}, which is not equal to {sampler!r}")
        if not callable(copied) or not _equal(_draw(copied, batch_size, seed), expected):
            fail(Law.COPIES, f"the result of {how} draws other masks from the same generator")


def _importable(sampler: Any) -> bool:
    """True if pickle can find the sampler's class, or the sampler if it is a function, by name."""
    definition = sampler if inspect.isroutine(sampler) else type(sampler)
    found: Any = sys.modules.get(definition.__module__ or "")
    for name in definition.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is definition


# Samplers that are a function of a table of uniforms


def _check_uniforms(
    sampler: Any, batch_size: int, seed: int, min_context_tokens: int | None
) -> None:
    generator = _seeded(seed)
    table = torch.rand(batch_size, sampler.num_uniforms, generator=generator)
    given = table.clone()
    drawn = sampler.from_uniforms(given)
    require_nowhere(Law.PURE, given != table, "from_uniforms changed its table")
    again = sampler.from_uniforms(table)
    require(Law.PURE, _equal(again, drawn), "from_uniforms gave different masks for one table")
    for end in (0.0, 1 - 2**-24):  # the smallest and the largest float32 that `torch.rand` gives
        for fraction in (1.0, 0.5):
            at_end = torch.rand(table.shape, generator=generator) < fraction
            try:
                extremes = sampler.from_uniforms(table.masked_fill(at_end, end))
                _check_guarantee(sampler, extremes, batch_size, min_context_tokens)
            except Exception as error:
                found = f"with uniforms of {end!r}, a legal draw, {type(error).__name__}: {error}"
                fail(Law.GUARANTEE, found)
    if getattr(sampler, "per_sample", False):
        _check_per_sample(sampler, table, drawn)


def _check_per_sample(sampler: Any, table: Tensor, drawn: Any) -> None:
    for sample in range(len(table)):
        alone = sampler.from_uniforms(table[sample : sample + 1])
        for mine, batch in zip(_as_list(alone), _as_list(drawn), strict=True):
            for name in ("context", "targets"):
                one, same = getattr(mine, name).to_mask()[0], getattr(batch, name).to_mask()[sample]
                found = f"per_sample is True, but the {name} depends on batch-mates"
                require(Law.BATCH, torch.equal(one, same), found, where=f"sample {sample}")
