"""InfoNCE, its queue of negatives and its learned temperature."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit.losses import FeatureQueue, LearnableTemperature, info_nce

# info_nce: false negatives, the queue, one-sided and symmetric, and collapse


def test_equal_features_give_the_logarithm_of_the_candidates() -> None:
    """Law 11: at full collapse all candidates are equal, and all samples get the same gradient."""
    x = torch.ones(8, 4, requires_grad=True)
    for negatives, expected in ((None, math.log(8)), (torch.ones(5, 4), math.log(13))):
        value = info_nce(x, x, negatives=negatives)
        assert value.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(gradient, gradient[:1].expand_as(gradient))


def test_a_small_difference_is_driven_apart() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.ones(16, 4, dtype=torch.float64)
    x += 1e-4 * torch.randn(16, 4, generator=random, dtype=torch.float64)
    x.requires_grad_()
    info_nce(x, x).backward()
    after = (x - 2 * x.grad).detach()
    assert after.std(dim=0).norm() > 1.05 * x.detach().std(dim=0).norm()


def test_false_negatives_are_no_negatives() -> None:
    """Trap: samples of the same kind pushed apart. As if they were not in the batch."""
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    ids = torch.tensor([0, 1, 0, 2, 1])
    queued = torch.randn(2, 3)
    same = torch.cat([ids[:, None] == ids, ids[:, None] == torch.tensor([0, 9])], dim=1)
    terms = []
    for i in range(5):
        others = [y[i], *(y[j] for j in range(5) if ids[j] != ids[i])]
        others += [queued[k] for k in range(2) if not same[i, 5 + k]]
        scores = torch.cosine_similarity(x[i], torch.stack(others), dim=-1) / 0.1
        terms.append(torch.logsumexp(scores, 0) - scores[0])
    ours = info_nce(x, y, negatives=queued, false_negatives=same)
    torch.testing.assert_close(ours, torch.stack(terms).mean())
    # Whether the own key is marked does not matter.
    unmarked = same & ~torch.eye(5, 7, dtype=torch.bool)
    assert info_nce(x, y, negatives=queued, false_negatives=unmarked) == ours
    assert info_nce(x, y, negatives=queued) > ours


def test_symmetric_with_a_one_sided_mask() -> None:
    """The reverse direction transposes the mask, and has no queue of keys."""
    x, y, queued = torch.randn(4, 3), torch.randn(4, 3), torch.randn(6, 3)
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[0, 2] = mask[1, 7] = True
    there = info_nce(x, y, negatives=queued, false_negatives=mask)
    back = info_nce(y, x, false_negatives=mask[:, :4].T)
    both = info_nce(x, y, negatives=queued, false_negatives=mask, symmetric=True)
    torch.testing.assert_close(both, (there + back) / 2)


def test_all_others_false_leaves_nothing_to_learn() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    value = info_nce(x, x.detach(), false_negatives=torch.ones(4, 4, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert not x.grad.any()


def test_the_temperature_learns() -> None:
    temperature = LearnableTemperature()
    x = torch.randn(6, 3)
    info_nce(x, x + 0.1 * torch.randn(6, 3), temperature=temperature()).backward()
    assert temperature.theta.grad != 0
    assert info_nce(x, x, temperature=0.1) != info_nce(x, x, temperature=0.2)


@pytest.mark.no_hook
def test_one_graph_with_a_learned_temperature() -> None:
    """Law 14. Trap: whether the temperature is above 0, asked inside the graph."""
    temperature = LearnableTemperature()
    x, y = torch.randn(6, 3), torch.randn(6, 3)

    def loss() -> torch.Tensor:
        return info_nce(x, y, temperature=temperature())

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    found = [
        (value, *torch.autograd.grad(value, temperature.theta)) for value in (compiled(), loss())
    ]
    assert found[0] == found[1] and found[0][1] != 0


def test_scale_of_the_features_does_not_matter() -> None:
    x, y = torch.randn(6, 3), torch.randn(6, 3)
    torch.testing.assert_close(info_nce(x, y), info_nce(1e3 * x, 10 * y))


def test_a_step_with_the_queue() -> None:
    """Pushing before the backward leaves the graph alone."""
    queue = FeatureQueue(8, 3)
    queue.push(torch.randn(5, 3))
    x, y = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    value = info_nce(x, y, negatives=queue.negatives)
    queue.push(y)
    value.backward()
    assert len(queue.negatives) == 8


def test_an_empty_queue_adds_nothing() -> None:
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    assert info_nce(x, y, negatives=FeatureQueue(8, 3).negatives) == info_nce(x, y)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"temperature": 0.0}, ValueError, "temperature=0: must be above 0"),
        ({"temperature": "hot"}, TypeError, "temperature='hot': must be a number"),
        ({"temperature": torch.ones(2)}, ValueError, r"temperature \(2,\): must be a scalar"),
        ({"negatives": torch.ones(2, 4)}, ValueError, r"negatives \(2, 4\): must have .* \[k, 3\]"),
        ({"symmetric": 1}, TypeError, "symmetric=1: must be a bool"),
        (
            {"false_negatives": torch.ones(4, 3, dtype=torch.bool)},
            ValueError,
            r"false_negatives \(4, 3\): must have the shape \[rows, candidates\], \(4, 4\)",
        ),
        ({"false_negatives": torch.ones(4, 4)}, TypeError, "false_negatives: must be bool"),
        ({"key": torch.ones(1, 3)}, ValueError, r"key \(1, 3\): must have the shape of query"),
    ],
)
@pytest.mark.no_hook
def test_bad_arguments(change: dict, error: type[Exception], text: str) -> None:
    good = {"query": torch.randn(4, 3), "key": torch.randn(4, 3)}
    with pytest.raises(error, match=text):
        info_nce(**(good | change))


@pytest.mark.parametrize("temperature", [-1.0, 0.0, math.nan])
def test_a_tensor_that_is_no_temperature_raises(temperature: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        info_nce(torch.eye(4), torch.eye(4), temperature=torch.tensor(temperature))


# FeatureQueue: first in, first out; in training only; resumed where it was


@given(size=st.integers(1, 7), pushes=st.lists(st.integers(0, 9), max_size=6))
def test_the_queue_holds_the_latest_in_order(size: int, pushes: list[int]) -> None:
    queue = FeatureQueue(size, 2)
    everything = torch.arange(2.0 * sum(pushes)).view(-1, 2)
    for part in everything.split(pushes):
        queue.push(part)
    assert torch.equal(queue.negatives, everything[-size:])


def test_the_queue_ignores_eval_mode() -> None:
    """Trap: a queue that enters validation."""
    queue = FeatureQueue(4, 2)
    queue.push(torch.ones(2, 2))
    queue.eval()
    queue.push(torch.full((3, 2), 9.0))
    assert torch.equal(queue.negatives, torch.ones(2, 2))
    queue.train()
    queue.push(torch.zeros(1, 2))
    assert len(queue.negatives) == 3


def test_queue_state_round_trip() -> None:
    """Law 13: a resumed queue goes on where it was, through a file that holds tensors alone."""
    queue, resumed = FeatureQueue(4, 2), FeatureQueue(4, 2)
    queue.push(torch.randn(3, 2))
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for each in (queue, resumed, copied := copy.deepcopy(queue)):
        each.push(torch.ones(2, 2))
    assert torch.equal(resumed.negatives, queue.negatives)
    assert torch.equal(copied.negatives, queue.negatives)
    assert repr(queue) == "FeatureQueue(4, 2)"


def test_the_queue_has_no_gradient_and_no_alias() -> None:
    """Pushed features may change afterwards; negatives that were read must not."""
    queue = FeatureQueue(2, 2)
    features = torch.ones(2, 2, requires_grad=True)
    queue.push(features)
    seen = queue.negatives
    assert not seen.requires_grad
    with torch.no_grad():
        features.zero_()
    queue.push(torch.zeros(2, 2))
    assert torch.equal(seen, torch.ones(2, 2))


def test_a_queue_refuses_another_width() -> None:
    with pytest.raises(ValueError, match=r"features \(2, 3\): must have the shape \[n, 2\]"):
        FeatureQueue(4, 2).push(torch.ones(2, 3))


def test_a_queue_refuses_nan() -> None:
    """It would be every query's negative until it is dropped."""
    queue = FeatureQueue(4, 2)
    with pytest.raises(ValueError, match=r"^features \(1, 2\): must be finite"):
        queue.push(torch.tensor([[1.0, torch.nan]]))
    assert len(queue.negatives) == 0


# LearnableTemperature: it stays in its bounds and returns from them


@given(theta=st.floats(-1e6, 1e6))
def test_temperature_is_within_the_bounds_with_a_gradient(theta: float) -> None:
    """Traps: a clamp has no gradient outside; a sigmoid none in float32 from 17 on."""
    temperature = LearnableTemperature(0.05, 0.2)
    with torch.no_grad():
        temperature.theta.fill_(theta)
    value = temperature()
    assert 0.05 * (1 - 1e-6) <= value.item() <= 0.2 * (1 + 1e-6)
    (slope,) = torch.autograd.grad(value.log(), temperature.theta)
    expected = math.log(4) / math.pi / (1 + temperature.theta.double() ** 2)
    assert slope.item() == pytest.approx(expected.item(), rel=1e-4)
    assert slope > 0


@given(initial=st.floats(0.0501, 0.1999))
def test_temperature_starts_at_its_initial_value(initial: float) -> None:
    temperature = LearnableTemperature(0.05, 0.2, initial=initial)
    assert temperature().item() == pytest.approx(initial, rel=1e-3)
    assert LearnableTemperature(0.05, 0.2)().item() == pytest.approx(0.1)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("pressed", [100, 600])
@pytest.mark.parametrize(
    ("optimizer", "lr"), [(torch.optim.Adam, 0.05), (torch.optim.SGD, 0.05)], ids=["adam", "sgd"]
)
def test_temperature_returns_from_a_bound(
    optimizer: type[torch.optim.Optimizer], lr: float, pressed: int, direction: int
) -> None:
    """In as many steps as it was pressed there. Trap: with a clamp it never comes back."""
    temperature = LearnableTemperature(0.05, 0.2)
    steps = optimizer(temperature.parameters(), lr=lr)

    def step(sign: int) -> None:
        steps.zero_grad()
        (sign * temperature().log()).backward()
        steps.step()

    for _ in range(pressed):
        step(-direction)
    far = temperature().log().item()
    assert abs(far - math.log(0.1)) > 0.3
    for _ in range(round(1.05 * pressed) + 20):
        step(direction)
    assert direction * (temperature().item() - 0.1) < 1e-4


def test_temperature_round_trip_and_repr() -> None:
    temperature = LearnableTemperature(0.05, 0.2, initial=0.07)
    other = LearnableTemperature(0.05, 0.2)
    other.load_state_dict(temperature.state_dict())
    assert torch.equal(other(), temperature())
    assert repr(temperature) == "LearnableTemperature(low=0.05, high=0.2)"
    # Rules by number of axes keep scalars out of weight decay.
    assert temperature.theta.dim() == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.0, 0.2), "low=0: must be above 0"),
        ((0.2, 0.2), r"high=0\.2: must be above low=0\.2"),
        ((0.05, 0.2, 0.2), r"initial=0\.2: must lie in \(0\.05, 0\.2\)"),
    ],
)
def test_bad_temperature_bounds(arguments: tuple[float, ...], text: str) -> None:
    low, high, *initial = arguments
    with pytest.raises(ValueError, match=text):
        LearnableTemperature(low, high, initial=initial[0] if initial else None)
