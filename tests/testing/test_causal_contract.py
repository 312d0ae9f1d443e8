"""`assert_causal_contract` passes `CausalPredictor` and fails predictors with known errors."""

from typing import Any

import pytest
import torch
from tests.testing.violations import violates
from torch import Tensor, nn

from jepakit.nn import CausalPredictor, causal_predictor
from jepakit.testing import assert_causal_contract
from jepakit.testing._violation import Law

DIM, TOKENS, ACTION = 8, 3, 2


@pytest.mark.parametrize(("action_dim", "state_dim"), [(0, 0), (2, 0), (2, 3), (0, 3)])
@pytest.mark.parametrize("grid", [(1,), (3,), (2, 2)])
def test_the_predictor_passes_and_is_left_as_it_was(grid, action_dim, state_dim) -> None:
    predictor = CausalPredictor(
        grid,
        DIM,
        action_dim=action_dim,
        state_dim=state_dim,
        predictor_embed_dim=24,
        depth=2,
        num_heads=2,
    ).train()
    before = {name: tensor.clone() for name, tensor in predictor.state_dict().items()}
    assert_causal_contract(
        predictor,
        torch.Size(grid).numel(),
        DIM,
        action_dim=action_dim,
        state_dim=state_dim,
        seed=len(grid) + action_dim,
    )
    assert predictor.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in predictor.state_dict().items())


def build(kind: type[CausalPredictor] = CausalPredictor, **arguments: Any) -> CausalPredictor:
    arguments = {"action_dim": ACTION} | arguments
    return kind((TOKENS,), DIM, predictor_embed_dim=24, depth=2, num_heads=2, **arguments)


def check(predictor: nn.Module, state_dim: int = 0, seed: int = 0) -> None:
    assert_causal_contract(
        predictor, TOKENS, DIM, action_dim=ACTION, state_dim=state_dim, seed=seed
    )


# Faults in the mask, the positions and the cache of the predictor itself


def not_causal(tokens: Any, valid: Tensor | None) -> Tensor:
    mask = causal_predictor._additive(
        torch.ones(len(tokens.step), len(tokens.step)) > 0, torch.float
    )
    return mask[None, None]


def one_step_ahead(tokens: Any, valid: Tensor | None) -> Tensor:
    allowed = tokens.step[:, None] + 1 >= tokens.step[None]
    return causal_predictor._additive(allowed, torch.float)[None, None]


def own_step_hidden(tokens: Any, valid: Tensor | None) -> Tensor:
    allowed = tokens.step[:, None] > tokens.step[None]
    allowed = allowed | torch.eye(len(tokens.step), dtype=torch.bool)
    return causal_predictor._additive(allowed, torch.float)[None, None]


def by_tokens(tokens: Any, valid: Tensor | None) -> Tensor:
    """Trap: a lower triangle over tokens: no action ever sees features, tokens see each other
    in raster order."""
    size = len(tokens.step)
    return causal_predictor._additive(torch.ones(size, size).tril() > 0, torch.float)[None, None]


MASKS = [
    (
        not_causal,
        Law.LEAK,
        "other features from step 1 on changed the prediction, at sample 0, step 0",
    ),
    (one_step_ahead, Law.LEAK, "other features from step 1 on changed the prediction"),
    (own_step_hidden, Law.LEARNS, "the past of (features|actions) gets no gradient"),
    (by_tokens, Law.LEAK, "other (features|actions) from step 1 on changed"),
]


@pytest.mark.parametrize(("mask", "law", "text"), MASKS, ids=[case[0].__name__ for case in MASKS])
def test_wrong_masks_fail(mask, law, text, monkeypatch) -> None:
    monkeypatch.setattr(causal_predictor, "_causal_mask", mask)
    with violates(law, text):
        check(build())


class Broken(CausalPredictor):
    """Faults of a cache, which `forward` knows nothing of."""

    fault = ""

    def _tokens(self, features, actions, states, valid, time, num_rows):
        one_step = features.shape[1] == 1 and self.rolling
        if self.fault == "off by one" and one_step:
            time = time + 1
        if self.fault == "no time" and one_step:
            time = 0 * time
        if self.fault == "no action" and one_step and actions is not None:
            actions = 0 * actions
        return super()._tokens(features, actions, states, valid, time, num_rows)

    rolling = False

    def rollout(self, features, actions, states=None, valid=None, *, past_actions=None):
        self.rolling = True
        if self.fault == "one candidate":
            actions = actions[:, :1].expand_as(actions)
        if self.fault == "shifted past" and past_actions is not None:
            past_actions = past_actions.roll(1, dims=1)
        if self.fault == "padding at the end":
            valid = None
        if self.fault == "stale state" and states is not None:
            states = states.roll(1, dims=1)
        out = super().rollout(features, actions, states, valid, past_actions=past_actions)
        self.rolling = False
        if self.fault == "candidates of other samples":
            out = out.flatten(0, 1).unflatten(0, (out.shape[1], out.shape[0])).transpose(0, 1)
        return out


FAULTS = [
    ("off by one", "of 4 steps"),
    ("no time", "of one step"),
    ("no action", "of one step"),
    ("one candidate", "of one step"),
    ("shifted past", "of 4 steps"),
    ("padding at the end", "of ragged lengths"),
    ("candidates of other samples", "of one step"),
    ("stale state", "of 4 steps"),
]


@pytest.mark.parametrize(("fault", "text"), FAULTS, ids=[case[0] for case in FAULTS])
def test_wrong_caches_fail(fault: str, text: str) -> None:
    """Traps: a cache off by one, the past of another candidate, a padded last step."""
    state_dim = 2 if fault == "stale state" else 0
    predictor = build(Broken, state_dim=state_dim)
    check(predictor, state_dim)
    predictor.fault = fault
    with violates(Law.ROLLOUT, f"a rollout from a past {text}"):
        check(predictor, state_dim)


class LostKeys(CausalPredictor):
    """A cache that is read before the last step of the past is in it."""

    def _encode_past(self, *arguments):
        caches, mask = super()._encode_past(*arguments)
        for cache in caches:
            cache[:] = [part._replace(v=part.v * 0) for part in cache]
        return caches, mask


def test_a_cache_without_its_past_fails() -> None:
    with violates(Law.ROLLOUT, "from a past of 4 steps"):
        check(build(LostKeys))


# A user's own predictor, without attention and without a rollout


class Own(nn.Module):
    """A running mean over the valid steps; the broken ones change one method of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.action = nn.Linear(ACTION, DIM)

    def mean(self, x: Tensor, present: Tensor) -> Tensor:
        total = (x * present[..., None]).cumsum(dim=1)
        return total / present.cumsum(dim=1)[..., None].clamp(min=1)

    def enter(self, actions: Tensor) -> Tensor:
        return self.action(actions)

    def finish(self, out: Tensor, present: Tensor) -> Tensor:
        return out.masked_fill(~present[..., None, None], 0)

    def forward(self, features, actions, states=None, valid=None):
        present = torch.ones(features.shape[:2], dtype=torch.bool) if valid is None else valid
        features = features.masked_fill(~present[..., None, None], 0)
        actions = actions.masked_fill(~present[..., None], 0)
        x = torch.tanh(self.first(features)).mean(dim=2) + torch.tanh(self.enter(actions))
        out = self.second(self.mean(x, present))[:, :, None] + 0.1 * features.tanh()
        return self.finish(out, present)


@pytest.mark.parametrize("seed", range(3))
def test_an_own_predictor_passes(seed: int) -> None:
    check(Own(), seed=seed)


class NextAction(Own):
    """Trap: the action that leads to a step is stored with that step."""

    def enter(self, actions: Tensor) -> Tensor:
        return super().enter(torch.cat([actions[:, 1:], actions[:, -1:]], dim=1))


class ActionOneStepLate(Own):
    def enter(self, actions: Tensor) -> Tensor:
        return super().enter(torch.cat([0 * actions[:, :1], actions[:, :-1]], dim=1))


class MeanOverAllSteps(Own):
    def mean(self, x: Tensor, present: Tensor) -> Tensor:
        total = (x * present[..., None]).sum(dim=1, keepdim=True)
        return (total / present.sum(dim=1)[:, None, None].clamp(min=1)).expand_as(x)


class LeaksInTheGradientOnly(Own):
    def mean(self, x: Tensor, present: Tensor) -> Tensor:
        everything = x.sum(dim=1, keepdim=True)
        return super().mean(x, present) + everything - everything.detach()


class NormalisesOverTime(Own):
    """Trap: statistics of the whole sequence."""

    def mean(self, x: Tensor, present: Tensor) -> Tensor:
        return super().mean(x / x.std(dim=1, keepdim=True, correction=0).add(0.1), present)


class LeavesPadding(Own):
    def finish(self, out: Tensor, present: Tensor) -> Tensor:
        return out


class SeesItsBatchMates(Own):
    def finish(self, out: Tensor, present: Tensor) -> Tensor:
        return super().finish(out + out.mean(dim=0), present)


class OnlyTheLast(Own):
    def mean(self, x: Tensor, present: Tensor) -> Tensor:
        return x


class CountsPadding(Own):
    """The steps are averaged with the padding in front of them."""

    def forward(self, features, actions, states=None, valid=None):
        out = super().forward(features, actions, states, valid)
        scale = 1.0 / features.shape[1]
        return out * (1 + scale)


class PredictsOneStepLess(Own):
    def finish(self, out: Tensor, present: Tensor) -> Tensor:
        return super().finish(out, present)[:, 1:]


OWN = [
    (
        NextAction,
        Law.LEAK,
        "other actions from step 1 on changed the prediction, at sample 0, step 0",
    ),
    (ActionOneStepLate, Law.LEARNS, "the past of actions gets no gradient"),
    (MeanOverAllSteps, Law.LEAK, "other features from step 1 on changed the prediction"),
    (LeaksInTheGradientOnly, Law.LEAK, "the future of features gets a gradient|changed the"),
    (NormalisesOverTime, Law.LEAK, "other features from step 1 on changed the prediction"),
    (LeavesPadding, Law.PADDING, "the output of padding must be exactly zero"),
    (SeesItsBatchMates, Law.BATCH, "in a padded batch must equal the sample alone"),
    (OnlyTheLast, Law.LEARNS, "the past of features gets no gradient"),
    (CountsPadding, Law.LEAK, "one pass over 4 steps must equal one over the first 1"),
    (PredictsOneStepLess, Law.INTERFACE, "the output must be"),
]


@pytest.mark.parametrize(("broken", "law", "text"), OWN, ids=[case[0].__name__ for case in OWN])
def test_broken_predictors_fail(broken: type[Own], law: Law, text: str) -> None:
    with violates(law, text):
        check(broken())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_steps": 2}, "num_steps=2: must be at least 3"),
        ({"batch_size": 1}, "batch_size=1: must be at least 2"),
        ({"action_dim": -1}, "action_dim=-1: must be at least 0"),
    ],
)
def test_bad_arguments(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        assert_causal_contract(Own(), TOKENS, DIM, **{"action_dim": ACTION} | arguments)
