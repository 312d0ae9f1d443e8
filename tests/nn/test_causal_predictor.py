"""Laws of `CausalPredictor`: no leak from the future, ragged lengths, rollouts with a cache."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepakit import EMATeacher, normalize_targets
from jepakit.nn import CausalPredictor
from jepakit.nn.positions import grid_coordinates, rotary_features
from jepakit.testing import assert_causal_contract

DIM, WIDTH, HEADS = 10, 48, 4
GRIDS = [(1,), (5,), (2, 3)]


def build(grid=(2, 3), seed: int | None = None, **arguments: Any) -> CausalPredictor:
    """Far from the initial values, at which blocks do little and biases nothing."""
    if seed is not None:
        torch.manual_seed(seed)
    arguments = {"predictor_embed_dim": WIDTH, "depth": 2, "num_heads": HEADS} | arguments
    predictor = CausalPredictor(grid, DIM, **arguments).eval()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return predictor


def inputs(predictor: CausalPredictor, batch: int = 3, steps: int = 4) -> dict[str, Tensor]:
    found = {"features": torch.randn(batch, steps, math.prod(predictor.grid_size), DIM)}
    if predictor.action_dim:
        found["actions"] = torch.randn(batch, steps, predictor.action_dim)
    if predictor.state_dim:
        found["states"] = torch.randn(batch, steps, predictor.state_dim)
    return found


SHAPES = st.tuples(
    st.integers(0, 2**31),
    st.sampled_from(GRIDS),
    st.sampled_from([0, 2]),
    st.sampled_from([0, 3]),
    st.integers(1, 5),
)


@settings(max_examples=5)
@given(SHAPES, st.integers(3, 5), st.integers(2, 4))
def test_keeps_the_contract(shape, steps, batch) -> None:
    """Laws 4, 5, 6, 16 over random shapes; rollout with a cache = without."""
    seed, grid, action_dim, state_dim, _ = shape
    assert_causal_contract(
        build(grid, seed, action_dim=action_dim, state_dim=state_dim),
        math.prod(grid),
        DIM,
        action_dim=action_dim,
        state_dim=state_dim,
        num_steps=steps,
        batch_size=batch,
        seed=seed,
    )


def plain(predictor, features, actions=None, states=None, valid=None) -> Tensor:
    """The docstring's formula: a sample at a time, step by step, without padding."""
    batch, steps, num_tokens, _ = features.shape
    space = predictor.grid_size if num_tokens > 1 else ()
    table = rotary_features(grid_coordinates((steps, *space)), WIDTH // HEADS)
    table = table.view(steps, num_tokens, -1)
    out = torch.zeros_like(features)
    for b in range(batch):
        x, rotary, number = [], [], []
        for i in range(steps):
            if valid is not None and not valid[b, i]:
                continue
            tokens = [predictor.embed(features[b, i])]
            turns = [table[i]]
            if states is not None and i < states.shape[1]:
                tokens.insert(0, predictor.embed_state(states[b, i : i + 1]))
                turns.insert(0, table[i, :1])
            if actions is not None:
                tokens.insert(0, predictor.embed_action(actions[b, i : i + 1]))
                turns.insert(0, table[i, :1])
            x += tokens
            rotary += turns
            number += [i] * sum(map(len, tokens))
        if not x:
            continue
        sequence, of_step = torch.cat(x)[None], torch.tensor(number)
        mask = torch.zeros(len(number), len(number))
        mask[of_step[:, None] < of_step] = -torch.inf
        for block in predictor.blocks:
            sequence = block(sequence, mask[None, None], torch.cat(rotary)[None])
        pred = predictor.proj(predictor.norm(sequence))[0]
        for i in set(number):
            out[b, i] = pred[of_step == i][-num_tokens:]
    return out


@settings(max_examples=15)
@given(SHAPES, st.floats(0.3, 1.0), st.integers(0, 5))
@torch.no_grad()
def test_equals_the_formula(shape, density, missing) -> None:
    """Any pattern of valid steps, states of the first steps only. Traps: padded keys; positions
    counted over what is valid; the state of a later step."""
    seed, grid, action_dim, state_dim, steps = shape
    predictor = build(grid, seed, action_dim=action_dim, state_dim=state_dim)
    given_inputs = inputs(predictor, 3, steps)
    if state_dim:
        given_inputs["states"] = given_inputs["states"][:, : max(0, steps - missing)]
    valid = torch.rand(3, steps) < density
    for present in (None, valid):
        expected = plain(predictor, **given_inputs, valid=present)
        found = predictor(**given_inputs, valid=present)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def fed_back(predictor, past, plans, valid=None, future_states=None) -> Tensor:
    """Rollouts without a cache: `forward` on all steps so far, a sample and candidate at a time."""
    batch, candidates, horizon, _ = plans.shape
    out = torch.zeros(batch, candidates, horizon, *past["features"].shape[2:])
    for b in range(batch):
        present = torch.arange(past["features"].shape[1])
        if valid is not None:
            present = valid[b].nonzero()[:, 0]
        if not len(present):
            continue
        length = int(present[-1]) + 1
        for k in range(candidates):
            now = {name: tensor[b : b + 1, :length] for name, tensor in past.items()}
            for step in range(horizon):
                if predictor.action_dim:
                    before = now["actions"][:, : length - 1]
                    now["actions"] = torch.cat([before, plans[b : b + 1, k, : step + 1]], dim=1)
                if step and future_states is not None and step <= future_states.shape[2]:
                    state = future_states[b : b + 1, k, step - 1 : step]
                    now["states"] = torch.cat([now["states"], state], dim=1)
                there = None
                if valid is not None:
                    there = torch.cat([valid[b : b + 1, :length], torch.ones(1, step) > 0], dim=1)
                pred = predictor(**now, valid=there)[:, -1:]
                out[b, k, step] = pred[0, 0]
                now["features"] = torch.cat([now["features"], pred], dim=1)
    return out


def past_of(predictor: CausalPredictor, given_inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arguments of `rollout` from those of `forward`, all but the plans."""
    options = {name: given_inputs[name] for name in ("features", "states") if name in given_inputs}
    if predictor.action_dim:
        options["past_actions"] = given_inputs["actions"][:, :-1]
    return options


@settings(max_examples=12)
@given(
    SHAPES, st.integers(1, 3), st.integers(1, 4), st.booleans(), st.integers(0, 3), st.booleans()
)
def test_rollout_with_a_cache_equals_without(
    shape, candidates, horizon, ragged, num_known, normalize
) -> None:
    """1e-5. Traps: a cache off by one; the padded last step of a short sequence is continued; a
    state of the future from the wrong step."""
    seed, grid, action_dim, state_dim, steps = shape
    predictor = build(grid, seed, action_dim=action_dim, state_dim=state_dim, normalize=normalize)
    given_inputs = inputs(predictor, 3, steps)
    plans = torch.randn(3, candidates, horizon, action_dim)
    valid = torch.rand(3, steps) < 0.6 if ragged else None
    known = None
    if state_dim and 0 < num_known < horizon:
        known = torch.randn(3, candidates, num_known, state_dim)
    with torch.no_grad():
        out = predictor.rollout(
            actions=plans, valid=valid, future_states=known, **past_of(predictor, given_inputs)
        )
    expected = fed_back(predictor, given_inputs, plans, valid, known)
    assert (out - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    if valid is not None:
        assert not out[~valid.any(dim=1)].any(), "nothing to go on from"


@torch.no_grad()
def test_the_past_is_computed_once_for_all_candidates(monkeypatch) -> None:
    """By the rows that the blocks see, for 2 samples, 5 candidates, a past of 4 steps."""
    predictor = build((5,), action_dim=2)
    rows = []
    predictor.embed.register_forward_hook(lambda module, args, out: rows.append(out.shape[0:3]))
    given_inputs = inputs(predictor, 2, 4)
    predictor.rollout(actions=torch.randn(2, 5, 3, 2), **past_of(predictor, given_inputs))
    assert [tuple(shape) for shape in rows] == [(2, 3, 5), *[(10, 1, 5)] * 3]


def test_candidates_are_independent() -> None:
    """A candidate's rollout is the same alone; gradients reach its own actions only."""
    predictor = build(action_dim=2)
    options = past_of(predictor, inputs(predictor))
    plans = torch.randn(3, 4, 3, 2, requires_grad=True)
    out = predictor.rollout(actions=plans, **options)
    alone = predictor.rollout(actions=plans[:, 2:3], **options)
    torch.testing.assert_close(out[:, 2:3], alone, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(out[1, 2, 1].sum(), plans)
    used = (gradient != 0).any(dim=-1)
    assert used.nonzero().tolist() == [[1, 2, 0], [1, 2, 1]]


def test_gradients_of_a_rollout_are_those_of_forward() -> None:
    """Also through the predictions that are fed back. Trap: a cache that is detached."""
    predictor = build(action_dim=2)
    given_inputs = inputs(predictor, 2, 2)
    given_inputs["actions"].requires_grad_()
    given_inputs["features"].requires_grad_()
    plans = torch.randn(2, 1, 2, 2)
    out = predictor.rollout(actions=plans, **past_of(predictor, given_inputs))[:, 0]
    weights = torch.randn_like(out)
    leaves = [given_inputs["features"], *predictor.parameters()]
    found = torch.autograd.grad((out * weights).sum(), leaves)

    actions = torch.cat([given_inputs["actions"][:, :1], plans[:, 0]], dim=1)
    first = predictor(given_inputs["features"], actions[:, :2])[:, -1:]
    longer = torch.cat([given_inputs["features"], first], dim=1)
    second = predictor(longer, actions)[:, -1:]
    again = torch.autograd.grad((torch.cat([first, second], dim=1) * weights).sum(), leaves)
    for ours, theirs in zip(found, again, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_steps_keep_their_number_where_others_are_missing() -> None:
    """Positions are relative: padding in front changes nothing, a gap between does."""
    predictor = build(action_dim=2)
    given_inputs = inputs(predictor, 1, 3)
    padded = {name: torch.cat([x[:, :2] * 0, x], dim=1) for name, x in given_inputs.items()}
    valid = torch.tensor([[False, False, True, True, True]])
    out = predictor(**padded, valid=valid)[:, 2:]
    torch.testing.assert_close(out, predictor(**given_inputs), rtol=1e-4, atol=1e-5)
    gap = {name: x[:, [0, 1, 1, 2]] for name, x in given_inputs.items()}
    out = predictor(**gap, valid=torch.tensor([[True, True, False, True]]))
    torch.testing.assert_close(out[:, :2], predictor(**given_inputs)[:, :2], rtol=1e-4, atol=1e-5)
    assert (out[:, 3] - predictor(**given_inputs)[:, 2]).abs().max() > 1e-3


@torch.no_grad()
def test_tokens_of_a_step_know_their_place_and_their_time() -> None:
    """Trap: no positions in space, or in time: exchanged tokens, or steps, give exchanged
    predictions."""
    predictor = build((5,))
    features = torch.randn(1, 3, 5, DIM)
    exchanged = features[:, :, [1, 0, 2, 3, 4]]
    out, other = predictor(features), predictor(exchanged)[:, :, [1, 0, 2, 3, 4]]
    assert (out - other).abs().max() > 1e-3
    steps = features[:, [1, 0, 2]]
    assert (predictor(steps)[:, 2] - out[:, 2]).abs().max() > 1e-3


def test_predictions_are_normalised() -> None:
    """As `normalize_targets` does with the targets, also those that are fed back."""
    predictor = build(action_dim=2, normalize=True)
    given_inputs = inputs(predictor)
    for out in (
        predictor(**given_inputs),
        predictor.rollout(actions=torch.randn(3, 2, 3, 2), **past_of(predictor, given_inputs)),
    ):
        torch.testing.assert_close(out, normalize_targets(out), rtol=1e-3, atol=1e-3)


def test_learns_a_motion_that_the_action_decides() -> None:
    """The action of a step decides the next one: without it the loss cannot fall below it."""
    torch.manual_seed(0)
    predictor = CausalPredictor((1,), 2, action_dim=2, predictor_embed_dim=32, depth=1, num_heads=2)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=1e-2)
    for _ in range(150):
        actions = torch.randn(32, 5, 2) * 0.5
        path = torch.cat([torch.zeros(32, 1, 2), actions.cumsum(dim=1)], dim=1)[:, :, None]
        loss = (predictor(path[:, :-1], actions) - path[:, 1:]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.02  # the action has a variance of 0.25
    with torch.no_grad():
        out = predictor.rollout(path[:, :1], actions[:, None, :3])[:, 0]
        assert (out - path[:, 1:4]).square().mean() < 0.05


def test_state_copies_and_teacher() -> None:
    """Laws 9 and 13. The table of positions is in no checkpoint."""
    predictor = build(action_dim=2, state_dim=1)
    given_inputs = inputs(predictor)
    with torch.no_grad():
        expected = predictor(**given_inputs)
        other = CausalPredictor(
            (2, 3), DIM, action_dim=2, state_dim=1, predictor_embed_dim=WIDTH, depth=2, num_heads=4
        ).eval()
        other.load_state_dict(predictor.state_dict())
        teacher = EMATeacher(predictor, momentum=0.9)
        for same in (
            other,
            copy.deepcopy(predictor),
            pickle.loads(pickle.dumps(predictor)),
            teacher,
        ):
            assert torch.equal(same(**given_inputs), expected)
    assert all(tensor.requires_grad for tensor in predictor.parameters())
    assert not any("position" in name for name in predictor.state_dict())


def test_every_parameter_gets_a_gradient() -> None:
    """Trap: an unused parameter stops DDP."""
    for arguments in ({}, {"action_dim": 2}, {"action_dim": 2, "state_dim": 3}):
        predictor = build(**arguments)
        predictor(**inputs(predictor)).square().sum().backward()
        assert all((p.grad != 0).any() for p in predictor.parameters())


def test_gradient_checkpointing() -> None:
    predictor = build(action_dim=2)
    given_inputs = inputs(predictor)
    found = []
    for enable in (False, True):
        predictor.set_grad_checkpointing(enable)
        predictor.zero_grad()
        predictor(**given_inputs).square().sum().backward()
        found.append([p.grad.clone() for p in predictor.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_every_argument_matters() -> None:
    """Law 12."""
    features = torch.randn(1, 3, 4, 8)

    def out(**change: Any) -> Tensor:
        torch.manual_seed(0)
        arguments = {"grid_size": (4,), "encoder_dim": 8, "predictor_embed_dim": 16, "depth": 2}
        predictor = CausalPredictor(**arguments | {"num_heads": 2} | change).train()
        with torch.no_grad():
            for parameter in predictor.parameters():
                parameter.add_(0.1)
            return predictor(features)

    base = out()
    for change in (
        {"grid_size": (2, 2)},
        {"predictor_embed_dim": 32},
        {"depth": 1},
        {"num_heads": 4},
        {"mlp_ratio": 2.0},
        {"drop_path": 0.9},
        {"normalize": True},
    ):
        assert not torch.equal(base, out(**change)), change


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"features": torch.zeros(2, 3, 5, DIM)}, r"features .* must be \[batch, steps, 6, 10\]"),
        ({"features": torch.zeros(2, 3, 6, 9)}, r"of grid_size=\(2, 3\) and encoder_dim=10"),
        ({"actions": None}, "actions=None: must be given, since action_dim=2"),
        ({"actions": torch.zeros(2, 2, 2)}, r"actions \(2, 2, 2\): must be \[2, 3, 2\]"),
        ({"actions": torch.zeros(1, 3, 2)}, r"actions \(1, 3, 2\): must be \[2, 3, 2\]"),
        ({"states": torch.zeros(2, 4, 1)}, r"states \(2, 4, 1\): must be \[2, at most 3, 1\]"),
        ({"valid": torch.ones(2, 4) > 0}, "nothing is broadcast"),
    ],
)
def test_wrong_shapes(change: dict, text: str) -> None:
    predictor = build(action_dim=2, state_dim=1)
    with pytest.raises(ValueError, match=text):
        predictor(**inputs(predictor, 2, 3) | change)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"actions": torch.zeros(2, 3, 2)}, r"actions \(2, 3, 2\): must be \[2, k, s, 2\]"),
        ({"actions": torch.zeros(2, 0, 3, 2)}, "with k and s above 0"),
        ({"past_actions": None}, "past_actions=None: must be given, since action_dim=2"),
        ({"past_actions": torch.zeros(2, 3, 2)}, r"past_actions .* must be \[2, 2, 2\]"),
        ({"states": torch.zeros(2, 2, 1)}, r"states \(2, 2, 1\): must be \[2, 3, 1\]"),
        ({"future_states": torch.zeros(2, 4, 3, 1)}, "must be states of at most 2 steps"),
        ({"future_states": torch.zeros(2, 3, 1, 1)}, r"future_states .* must be \[2, 4, s, 1\]"),
    ],
)
def test_wrong_shapes_of_a_rollout(change: dict, text: str) -> None:
    predictor = build(action_dim=2, state_dim=1)
    options = past_of(predictor, inputs(predictor, 2, 3)) | {"actions": torch.zeros(2, 4, 3, 2)}
    with pytest.raises(ValueError, match=text):
        predictor.rollout(**options | change)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_heads=5: must divide predictor_embed_dim=48"):
        build(num_heads=5)
    with pytest.raises(ValueError, match=r"head dim 4 .* at least 6 for rotary"):
        build(num_heads=12)
    with pytest.raises(ValueError, match=r"grid_size=\(2, 2, 2\): must have 1 or 2 axes"):
        build((2, 2, 2))
    predictor = build()
    with pytest.raises(ValueError, match=r"actions .* must be None, since action_dim=0"):
        predictor(torch.zeros(1, 2, 6, DIM), torch.zeros(1, 2, 3))
