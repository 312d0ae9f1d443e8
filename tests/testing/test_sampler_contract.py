"""`assert_sampler_contract` passes jepakit's samplers and fails samplers with known errors."""

import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import samplers
from tests.testing.violations import violates
from torch import Tensor

from jepakit import Masks, MultiBlockMask, RandomMask, TokenSet
from jepakit.masking import MultiContextMask
from jepakit.masking.base import UniformSampler
from jepakit.testing import assert_sampler_contract
from jepakit.testing._violation import Law


def masks_of(context: Tensor, targets: Tensor, grid: tuple[int, ...] = (4, 4)) -> Masks:
    return Masks(TokenSet.from_mask(context, grid), TokenSet.from_mask(targets, grid))


@dataclass(frozen=True)
class Own:
    """A user's sampler that keeps the contract; the broken ones change one method of it."""

    grid_size: tuple[int, ...] = (4, 4)
    num_context: int = 6

    def order(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        return torch.rand(batch_size, 16, generator=generator).argsort(dim=1)

    def masks(self, order: Tensor) -> Masks:
        targets = torch.stack([order // 4 == 2, order // 4 == 3], dim=1)
        return masks_of(order < self.num_context, targets, self.grid_size)

    def __call__(self, batch_size: int, *, generator: Any = None, device: Any = None) -> Masks:
        return self.masks(self.order(batch_size, generator)).to(device or "cpu")


def draw(batch_size: int, *, generator: Any = None, device: Any = None) -> Masks:
    """A sampler may be a function."""
    return Own()(batch_size, generator=generator, device=device)


@pytest.mark.parametrize("sampler", [Own(), Own(num_context=3), draw, lambda b, **k: draw(b, **k)])
def test_a_users_own_sampler_passes(sampler):
    assert_sampler_contract(sampler)


@settings(max_examples=25)
@given(sampler=samplers(), seed=st.integers(0, 2**31))
def test_jepakits_samplers_pass(sampler, seed):
    assert_sampler_contract(sampler, seed=seed, batch_size=3, varies=False)


def test_several_masks_for_an_image_pass():
    def mixture(batch_size: int, **keywords: Any) -> list[Masks]:
        return [draw(batch_size, **keywords), RandomMask((3, 3))(batch_size, **keywords)]

    assert_sampler_contract(mixture)


def test_members_are_held_to_their_own_minimum():
    class Broken(RandomMask):
        pass

    assert_sampler_contract(MultiContextMask((RandomMask((4, 4)), RandomMask((4, 4)))))
    both = MultiContextMask((RandomMask((4, 4), target_ratio=0.5), Broken((4, 4))))
    Broken.min_context_tokens = 7  # not before: `RandomMask` refuses a promise it cannot keep
    with violates(Law.GUARANTEE, "the context has 4 tokens, must have at least 7, at sample 0"):
        assert_sampler_contract(both)


# Law 1


class LeakyContext(Own):
    def masks(self, order: Tensor) -> Masks:
        return masks_of(order < 9, (order >= 8)[:, None])


class AllPatchesAsContext(Own):
    def masks(self, order: Tensor) -> Masks:
        return masks_of(order < 16, (order >= 12)[:, None])


class EmptyTarget(Own):
    def masks(self, order: Tensor) -> Masks:
        targets = torch.stack([order > 12, (order > 12) & (order[:, :1] > 0)], dim=1)
        return masks_of(order < 6, targets)


class EmptyContext(Own):
    def masks(self, order: Tensor) -> Masks:
        return masks_of((order < 6) & (order[:, :1] > 0), (order > 12)[:, None])


class MinimumCheckedBeforeSubtraction(Own):
    min_context_tokens = 10


class FewerTargetsThanNumTargets(Own):
    num_targets = 4


class NoTargets(Own):
    def masks(self, order: Tensor) -> Masks:
        return masks_of(order < 6, (order > 12)[:, None][:, :0])


class Unsorted(Own):
    def masks(self, order: Tensor) -> Masks:
        masks = super().masks(order)
        masks.context.idx.copy_(masks.context.idx.flip(-1))
        return masks


LAW_1 = [
    (LeakyContext, r"overlap, at sample 0, target 0, position \d+"),
    (AllPatchesAsContext, r"context and targets overlap"),
    (EmptyTarget, r"a target is empty, at sample \d+, target 1"),
    (EmptyContext, r"the context has 0 tokens, must have at least 1, at sample \d+"),
    (
        MinimumCheckedBeforeSubtraction,
        "the context has 6 tokens, must have at least 10, at sample 0",
    ),
    (FewerTargetsThanNumTargets, "2 targets for each sample, must be num_targets=4"),
    (NoTargets, "0 targets for each sample, must be at least one"),
    (Unsorted, "the context is not a legal TokenSet: idx: must ascend"),
]


@pytest.mark.parametrize(("kind", "text"), LAW_1)
def test_the_guarantee(kind, text):
    """Traps: fallbacks that let context meet targets or use all patches; a minimum checked before
    subtraction; fewer targets than `num_targets`; empty ones."""
    with violates(Law.GUARANTEE, text):
        assert_sampler_contract(kind(), batch_size=64)


class LeaksInOneOfTwenty(Own):
    def masks(self, order: Tensor) -> Masks:
        masks = super().masks(order)
        leak = (order[:, :1] == 0) & (order[:, 1:2] < 12)
        return masks_of(masks.context.to_mask() | leak, masks.targets.to_mask())


class EmptyInOneOfTwenty(Own):
    def masks(self, order: Tensor) -> Masks:
        masks = super().masks(order)
        empty = (order[:, :1] == 0) & (order[:, 1:2] < 12)
        return masks_of(masks.context.to_mask(), masks.targets.to_mask() & ~empty[:, None])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (LeaksInOneOfTwenty, "context and targets overlap"),
        (EmptyInOneOfTwenty, "a target is empty"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_rare_violations_are_found(kind, text, seed):
    with violates(Law.GUARANTEE, text):
        assert_sampler_contract(kind(), seed=seed)
    assert_sampler_contract(Own(), num_samples=1)


class OtherLengthThanItSays(Own):
    context_length = 5


def test_an_int_context_length_is_kept():
    with violates(Law.GUARANTEE, "the context has 6 tokens, context_length is 5, at sample 0"):
        assert_sampler_contract(OtherLengthThanItSays())


def test_min_context():
    assert_sampler_contract(Own(), min_context_tokens=6)
    with violates(Law.GUARANTEE, "the context has 6 tokens, must have at least 7, at sample 0"):
        assert_sampler_contract(Own(), min_context_tokens=7)
    with violates(Law.GUARANTEE, "must have at least 50"):
        assert_sampler_contract(MultiBlockMask((14, 14), context_length=49), min_context_tokens=50)


# Interface


class BareIndices(Own):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        masks = super().__call__(*args, **keywords)
        return masks.context.idx, masks.targets.idx


class TupleOfMasks(Own):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return (super().__call__(*args, **keywords),)


class ListOfIndices(BareIndices):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return list(super().__call__(*args, **keywords))


class OneSampleTooMany(Own):
    def order(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        return super().order(batch_size + 1, generator)


class OtherGrid(Own):
    def masks(self, order: Tensor) -> Masks:
        return masks_of(order < 6, (order > 12)[:, None], (2, 8))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (BareIndices, "must return Masks or a list of Masks, got tuple"),
        (TupleOfMasks, "must return Masks or a list of Masks, got tuple"),
        (ListOfIndices, "must return Masks or a list of Masks, got Tensor"),
        (OneSampleTooMany, "batch_size is 1, context has 2 samples"),
        (OtherGrid, r"grid_size is \(4, 4\), context is on the grid \(2, 8\)"),
    ],
)
def test_the_interface(kind, text):
    with violates(Law.INTERFACE, text):
        assert_sampler_contract(kind())


# Law 2


class GlobalTorch(Own):
    def order(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        return super().order(batch_size, None)


class SizesSeededPlacesGlobal(Own):
    def masks(self, order: Tensor) -> Masks:
        turned = order.roll(int(torch.randint(16, ())), dims=1)
        return super().masks(turned)


class GlobalNumpy(Own):
    def order(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        return torch.from_numpy(np.random.rand(batch_size, 16)).argsort(dim=1)


class GlobalPython(Own):
    def order(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        rows = [random.sample(range(16), 16) for _ in range(batch_size)]
        return torch.tensor(rows)


class CountsItsCalls(Own):
    calls = itertools.count()

    def order(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        return super().order(batch_size, torch.Generator().manual_seed(next(self.calls)))


class FixedSeed(Own):
    def order(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        return super().order(batch_size, torch.Generator().manual_seed(0))


class OneForTheBatch(Own):
    def order(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        return super().order(1, generator).expand(batch_size, -1).clone()


class TargetsForTheBatch(Own):
    """Contexts differ."""

    def __call__(self, batch_size: int, *, generator: Any = None, device: Any = None) -> Masks:
        target = self.order(1, generator) > 11
        context = ~target & (self.order(batch_size, generator) > 2)
        return masks_of(context, target[:, None].expand(batch_size, -1, -1))


class OwnSeedWithoutGenerator(Own):
    def order(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        return super().order(batch_size, generator)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (GlobalTorch, "changed the global state of torch"),
        (SizesSeededPlacesGlobal, "changed the global state of torch"),
        (GlobalNumpy, "changed the global state of numpy.random"),
        (GlobalPython, "(changed the global state of random|gave different masks)"),
        (CountsItsCalls, "two generators seeded with 0 gave different masks"),
        (FixedSeed, "four batches of 8 drawn in turn from one generator are equal"),
        (OneForTheBatch, "every sample has the targets of its batch-mates"),
        (TargetsForTheBatch, "every sample has the targets of its batch-mates"),
        (OwnSeedWithoutGenerator, "without a generator .* torch's global one"),
    ],
)
def test_pure_function_of_the_generator(kind, text):
    """Traps: sizes seeded and positions not; NumPy's global state; a counter in call order; an
    ignored seed; one target set for a whole batch."""
    with violates(Law.PURE, text):
        assert_sampler_contract(kind())


@pytest.mark.parametrize("kind", [GlobalTorch, GlobalNumpy, GlobalPython])
def test_the_contract_leaves_global_generators_alone(kind):
    """Law 15, for a sampler that breaks it itself too."""
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with violates(Law.PURE):
        assert_sampler_contract(kind(), varies=False)
    assert_sampler_contract(Own())
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    if kind is not GlobalTorch:  # its batches of the first law's check come from the global one
        assert torch.equal(before[0], after[0])
    assert kind is GlobalNumpy or before[1] == after[1]


class DependsOnTheDevice(Own):
    def __call__(self, batch_size: int, *, generator: Any = None, device: Any = None) -> Masks:
        order = self.order(batch_size, generator)
        return self.masks(order if device is None else order.flip(1))


class IgnoresTheDevice(Own):
    def __call__(self, batch_size: int, *, generator: Any = None, device: Any = None) -> Masks:
        return super().__call__(batch_size, generator=generator)


def test_device():
    assert_sampler_contract(Own(), device="meta")
    with violates(Law.PURE, "a call with device='meta' gave the context on cpu"):
        assert_sampler_contract(IgnoresTheDevice(), device="meta")
    with violates(Law.PURE, "device='cpu' gave other masks than no device"):
        assert_sampler_contract(DependsOnTheDevice())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sampler", [MultiBlockMask((8, 9)), RandomMask((8, 9)), Own()])
def test_on_a_gpu(sampler):
    assert_sampler_contract(sampler, device="cuda")


def test_without_randomness():
    def causal(batch_size: int, *, generator: Any = None, device: Any = None) -> Masks:
        past = (torch.arange(16) < 8).expand(batch_size, -1)
        return masks_of(past, ~past[:, None], (16,))

    assert_sampler_contract(causal, varies=False)
    with violates(Law.PURE, "varies=False if there is nothing to draw"):
        assert_sampler_contract(causal)


# Law 13


@dataclass(frozen=True)
class ReprLacksAnArgument(Own):
    num_context: int = field(default=6, repr=False)


class ReprRaises(Own):
    def __repr__(self) -> str:
        return "ReprRaises(no_such_argument=1)"


class SeededByItsBirth(Own):
    births = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "turn", next(self.births))

    def __reduce__(self) -> Any:
        return SeededByItsBirth, ()

    def __repr__(self) -> str:
        return "<born>"

    def masks(self, order: Tensor) -> Masks:
        return super().masks(order.roll(self.turn, dims=1))


class HoldsALambda(Own):
    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "rule", lambda order: order)


@pytest.mark.parametrize(
    ("sampler", "text"),
    [
        (ReprLacksAnArgument(num_context=3), "eval.* which is not equal to"),
        (ReprRaises(), "evaluating it raised TypeError"),
        (SeededByItsBirth(), "the result of deepcopy draws other masks"),
        (HoldsALambda(), "pickle, which DataLoader workers need, raised"),
    ],
)
def test_copies(sampler, text):
    with violates(Law.COPIES, text):
        assert_sampler_contract(sampler)


# Functions of uniforms


@dataclass(frozen=True)
class OwnUniform(UniformSampler[Masks]):
    """One position is context, another the target; both from two numbers."""

    grid_size: tuple[int, ...] = (5,)
    num_uniforms = 2
    per_sample = True

    def positions(self, u: Tensor) -> Tensor:
        return (u * 5).long()

    def _draw(self, uniforms: Tensor, valid: Tensor | None) -> Masks:
        context = self.positions(uniforms[:, 0])
        target = (context + 1 + (uniforms[:, 1] * 4).long()) % 5
        one_hot = torch.nn.functional.one_hot
        return masks_of(one_hot(context, 5).bool(), one_hot(target, 5).bool()[:, None], (5,))

    def _check_feasible_in(self, valid: Tensor) -> None:
        """Nothing is checked."""


class OffTheGridAtTheEnds(OwnUniform):
    def positions(self, u: Tensor) -> Tensor:
        return (u * 5).ceil().long() - 1


class OffTheGridNearOne(OwnUniform):
    def positions(self, u: Tensor) -> Tensor:
        return (u * (5 + 1e-6)).long()


class DependsOnItsBatch(OwnUniform):
    def positions(self, u: Tensor) -> Tensor:
        return (u[:1] * 5).long().expand_as(u)


class ChangesItsTable(OwnUniform):
    def _draw(self, uniforms: Tensor, valid: Tensor | None) -> Masks:
        masks = super()._draw(uniforms, valid)
        uniforms.mul_(0.5)
        return masks


@pytest.mark.parametrize(
    ("kind", "law", "text"),
    [
        (OffTheGridAtTheEnds, Law.GUARANTEE, "with uniforms of 0.0, a legal draw, RuntimeError"),
        (OffTheGridNearOne, Law.GUARANTEE, r"with uniforms of 0\.9999999\d*, a legal draw"),
        (DependsOnItsBatch, Law.BATCH, r"the context depends on batch-mates, at sample \d"),
        (ChangesItsTable, Law.PURE, r"from_uniforms changed its table, at index \(0, 0\)"),
    ],
)
def test_uniforms(kind, law, text):
    assert_sampler_contract(OwnUniform())
    with violates(law, text):
        assert_sampler_contract(kind())


# What it does not test, and its own arguments


class PrefixOfTheShortest(Own):
    """The reference sampler's truncation: legal for every sample, and a matter for an audit."""

    def masks(self, order: Tensor) -> Masks:
        context = order < 3 + order[:, :1] % 4
        shortest = int(context.sum(1).min())
        return masks_of(context & (context.cumsum(1) <= shortest), (order >= 8)[:, None])


def test_a_prefix_is_no_violation():
    assert_sampler_contract(PrefixOfTheShortest())


def test_arguments():
    with pytest.raises(ValueError, match=r"^batch_size=1: must be at least 2$"):
        assert_sampler_contract(Own(), batch_size=1)
    with pytest.raises(ValueError, match=r"^min_context_tokens=-1: must be at least 0$"):
        assert_sampler_contract(Own(), min_context_tokens=-1)


@pytest.mark.parametrize(
    ("attribute", "value", "text"),
    [
        ("min_context_tokens", np.int64(12), "the context has 6 tokens, must have at least 12"),
        ("context_length", np.int64(9), "the context has 6 tokens, context_length is 9"),
        ("num_targets", np.int64(7), "must be num_targets=7"),
    ],
)
def test_promises_may_be_numpy_numbers(attribute, value, text):
    """Trap: a promise of another type of int is overlooked, and any masks pass."""
    promising = type("Promising", (Own,), {attribute: value})
    with violates(Law.GUARANTEE, text):
        assert_sampler_contract(promising())
