"""Teacher forcing and a rollout of a few steps, against loops."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jepakit import masked_l1, masked_mse, normalize_targets
from jepakit.losses import next_step_loss, sigreg
from jepakit.nn import CausalPredictor


def build(action_dim: int = 2, state_dim: int = 0) -> CausalPredictor:
    predictor = CausalPredictor(
        (2,), 6, action_dim=action_dim, state_dim=state_dim, predictor_embed_dim=24, depth=1,
        num_heads=2,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return predictor


def gap(pred: Tensor, target: Tensor) -> list[Tensor]:
    return list((pred - target).abs().flatten())


@settings(max_examples=12)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0, 2]),
    st.sampled_from([0, 1]),
    st.integers(0, 3),
    st.booleans(),
)
def test_equals_loops(seed, action_dim, state_dim, rollout_steps, known) -> None:
    """Each part is one mean over its valid pairs. Traps: a missing step is a target; a rollout
    from a step that is not there; the states of the future used unasked."""
    torch.manual_seed(seed)
    predictor = build(action_dim, state_dim)
    features, targets = torch.randn(3, 4, 2, 6), torch.randn(3, 4, 2, 6)
    actions = torch.randn(3, 3, action_dim) if action_dim else None
    states = torch.randn(3, 4, state_dim) if state_dim else None
    valid = torch.rand(3, 4) < 0.7
    known = known and states is not None
    total, parts = next_step_loss(
        predictor, features, actions, states, valid, targets=targets,
        rollout_steps=rollout_steps, use_future_states=known,
    )  # fmt: skip

    pred = predictor(features, None if actions is None else torch.cat(
        [actions, torch.zeros(3, 1, action_dim)], dim=1), states, valid)  # fmt: skip
    forced, rolled = [], []
    for b in range(3):
        for t in range(3):
            if valid[b, t] and valid[b, t + 1]:
                forced += gap(pred[b, t], targets[b, t + 1])
        past = features[b : b + 1, :1]
        for t in range(rollout_steps):
            a = None if actions is None else actions[b : b + 1, : t + 1]
            s = None if states is None else states[b : b + 1, : t + 1 if known else 1]
            now = predictor(past, a, s)[:, -1:]
            past = torch.cat([past, now], dim=1)
            if valid[b, 0] and valid[b, t + 1]:
                rolled += gap(now[0, 0], targets[b, t + 1])
    expected = {"teacher_forced": forced} | ({"rollout": rolled} if rollout_steps else {})
    assert parts.keys() == expected.keys()
    for name, gaps in expected.items():
        mean = torch.stack(gaps).mean() if gaps else torch.zeros(())
        torch.testing.assert_close(parts[name], mean.detach(), rtol=1e-4, atol=1e-6)
        assert not parts[name].requires_grad
    torch.testing.assert_close(total.detach(), torch.stack(list(parts.values())).sum())


def test_gradients_flow_through_what_is_fed_back() -> None:
    """Trap: a detached rollout trains single steps only: of 3 steps, the last target's gradient
    reaches the first action."""
    predictor, features = build(), torch.randn(2, 4, 2, 6)
    actions = torch.randn(2, 3, 2, requires_grad=True)
    total, _ = next_step_loss(
        predictor, features, actions, rollout_steps=3,
        loss=lambda pred, target, valid: pred[:, -1].sum() * (pred.shape[1] == 3),
        valid=torch.tensor([[True] * 4] * 2),
    )  # fmt: skip
    total.backward()
    assert (actions.grad != 0).any(dim=-1).all()


def test_a_teacher_gets_no_gradient_and_an_encoder_does() -> None:
    predictor = build()
    features = torch.randn(2, 4, 2, 6, requires_grad=True)
    actions = torch.randn(2, 3, 2)
    whole = torch.autograd.grad(next_step_loss(predictor, features, actions)[0], features)[0]
    detached = next_step_loss(predictor, features, actions, targets=features.detach())[0]
    part = torch.autograd.grad(detached, features)[0]
    assert (whole[:, -1] != 0).all() and not part[:, -1].any()


@pytest.mark.no_hook
def test_other_losses_and_wrapped_predictors() -> None:
    predictor = build()
    features, actions = normalize_targets(torch.randn(2, 4, 2, 6)), torch.randn(2, 3, 2)
    plain = next_step_loss(predictor, features, actions, loss=masked_mse)[0]
    again = next_step_loss(
        torch.compile(predictor, backend="eager"), features, actions, loss=partial(masked_mse)
    )[0]
    torch.testing.assert_close(plain, again)
    assert plain != next_step_loss(predictor, features, actions, loss=masked_l1)[0]


def test_a_predictor_within_ddp(process_group: None) -> None:
    """Both parts are one graph. Trap: DDP has no `rollout`, and syncs what its forward ran."""
    predictor, features, actions = build(), torch.randn(2, 4, 2, 6), torch.randn(2, 3, 2)
    found = []
    for module in (predictor, nn.parallel.DistributedDataParallel(predictor)):
        predictor.zero_grad()
        next_step_loss(module, features, actions)[0].backward()
        found.append([parameter.grad.clone() for parameter in predictor.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_nothing_valid_gives_zero_with_a_graph() -> None:
    predictor, actions = build(), torch.randn(2, 3, 2)
    features = torch.full((2, 4, 2, 6), torch.nan)
    total, _ = next_step_loss(predictor, features, actions, valid=torch.zeros(2, 4) > 0)
    total.backward()
    assert total == 0
    assert all(p.grad is None or not p.grad.any() for p in predictor.parameters())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rollout_steps": 4}, "rollout_steps=4: must be at most t - 1 = 3"),
        ({"rollout_steps": -1}, "rollout_steps=-1: must be at least 0"),
        ({"use_future_states": True}, "use_future_states=True: must come with states"),
        ({"features": torch.zeros(2, 1, 2, 6)}, "must be .* with t at least 2"),
        ({"targets": torch.zeros(2, 4, 2, 1)}, "must have the shape of features"),
    ],
)
@pytest.mark.no_hook
def test_bad_arguments(change: dict, text: str) -> None:
    given_inputs = {"features": torch.zeros(2, 4, 2, 6), "actions": torch.zeros(2, 3, 2)}
    with pytest.raises(ValueError, match=text):
        next_step_loss(build(), **given_inputs | change)


def test_sigreg_takes_steps_with_validity() -> None:
    """`[b t n d]` counts every valid token; a step at a time, the samples are independent. Trap:
    the steps of one still sequence taken as so many samples."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 5, 3, 8, generator=generator)
    valid = torch.rand(64, 5, 3, generator=generator) < 0.7
    poisoned = features.masked_fill(~valid[..., None], torch.nan).requires_grad_()

    def statistic(x: Tensor, there: Tensor | None = None) -> Tensor:
        return sigreg(x, there, num_slices=32, generator=torch.Generator().manual_seed(1))

    found = statistic(poisoned, valid)
    torch.testing.assert_close(found, statistic(features[valid]))
    (gradient,) = torch.autograd.grad(found, poisoned)
    assert gradient.isfinite().all() and not gradient[~valid].any()

    still = features[:, :1, 0].expand(-1, 5, -1)
    steps = torch.stack([statistic(still[:, t]) for t in range(5)]).mean()
    torch.testing.assert_close(steps, statistic(still[:, 0]))
    assert statistic(still) > 3 * steps, "5 copies of each sample look five times as abnormal"
