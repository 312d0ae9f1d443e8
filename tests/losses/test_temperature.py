"""A learned temperature stays in its bounds and comes back from them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit.losses import LearnableTemperature


@given(theta=st.floats(-1e6, 1e6))
def test_within_the_bounds_with_a_live_gradient(theta: float) -> None:
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
def test_starts_where_it_was_told(initial: float) -> None:
    temperature = LearnableTemperature(0.05, 0.2, initial=initial)
    assert temperature().item() == pytest.approx(initial, rel=1e-3)
    assert LearnableTemperature(0.05, 0.2)().item() == pytest.approx(0.1)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("pressed", [100, 600])
@pytest.mark.parametrize(
    ("optimizer", "lr"), [(torch.optim.Adam, 0.05), (torch.optim.SGD, 0.05)], ids=["adam", "sgd"]
)
def test_comes_back_from_a_bound(
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


def test_round_trip_and_repr() -> None:
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
        ((0.0, 0.2), r"low=0\.0: must be above 0"),
        ((0.2, 0.2), r"high=0\.2: must be above low=0\.2"),
        ((0.05, 0.2, 0.2), r"initial=0\.2: must lie strictly between 0\.05 and 0\.2"),
    ],
)
def test_bad_bounds(arguments: tuple[float, ...], text: str) -> None:
    low, high, *initial = arguments
    with pytest.raises(ValueError, match=text):
        LearnableTemperature(low, high, initial=initial[0] if initial else None)
