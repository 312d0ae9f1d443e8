"""Law 14 for the pools and `CausalPredictor`: compiled as one graph, in half precision."""

import copy
from collections.abc import Callable

import pytest
import torch
from tests.nn.test_causal_predictor import build as build_predictor
from tests.nn.test_causal_predictor import inputs, past_of
from tests.nn.test_pooling import DIM, POOLS
from tests.nn.test_pooling import build as build_pool
from torch import Tensor, nn

from jepakit.losses import next_step_loss
from jepakit.nn import CausalPredictor

pytestmark = pytest.mark.no_hook
SLOW = pytest.mark.slow
QUICK = {"attention"}
KINDS = [pytest.param(kind, marks=() if kind in QUICK else SLOW) for kind in POOLS]


@pytest.fixture(autouse=True)
def _forget_compiled() -> None:
    torch.compiler.reset()


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def same_with_gradients(
    module: nn.Module, functions: list[Callable[..., Tensor]], calls: list[Callable[..., Tensor]]
) -> None:
    """Both functions give the same values and gradients in all calls."""
    for call in calls:
        found = []
        for function in functions:
            module.zero_grad()
            out = call(function)
            out.square().sum().backward()
            found.append([out.detach(), *(p.grad.clone() for p in module.parameters())])
        for ours, theirs in zip(*found, strict=True):
            largest = float(theirs.abs().max()) + 1e-12
            assert (ours - theirs).abs().max() <= 1e-4 * largest


class Scaled(nn.Module):
    """With a parameter, which the last step has none of."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool, self.scale = pool, nn.Parameter(torch.ones(DIM))

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.pool(self.scale * features, valid)


@pytest.mark.parametrize("kind", KINDS)
def test_pools_compile_as_one_graph(kind: str) -> None:
    """Ragged and whole, two sizes. Trap: a branch on values of `valid`."""
    pool = build_pool(kind)
    valid = torch.rand(3, 6) < 0.5
    features = torch.randn(3, 6, DIM)
    if kind == "last":
        pool = Scaled(pool)
    calls = [
        lambda f: f(features, valid),
        lambda f: f(features),
        lambda f: f(features[:, :4].clone()),
    ]
    same_with_gradients(pool, [pool, compiled(pool)], calls)


@pytest.mark.parametrize("sizes", [(4,), pytest.param((4, 3, 5), marks=SLOW)])
@pytest.mark.parametrize("ragged", [True, pytest.param(False, marks=SLOW)])
def test_the_predictor_compiles_as_one_graph(sizes: tuple[int, ...], ragged: bool) -> None:
    """Trap: a length that a check makes a constant."""
    predictor = build_predictor((5,), depth=1, action_dim=2, state_dim=1)
    calls = []
    for steps in sizes:
        options = inputs(predictor, 3, steps)
        if ragged:
            options["valid"] = torch.rand(3, steps) < 0.7
        calls.append(lambda f, options=options: f(**options))
    same_with_gradients(predictor, [predictor, compiled(predictor)], calls)


@pytest.mark.slow
@pytest.mark.parametrize("ragged", [False, True])
def test_a_rollout_compiles_as_one_graph(ragged: bool) -> None:
    """For planning: one graph for all candidates and steps."""
    predictor = build_predictor((5,), action_dim=2)
    options = past_of(predictor, inputs(predictor)) | {"actions": torch.randn(3, 2, 3, 2)}
    if ragged:
        options["valid"] = torch.rand(3, 4) < 0.7
    run = compiled(predictor.rollout)
    same_with_gradients(predictor, [predictor.rollout, run], [lambda f: f(**options)])


@pytest.mark.slow
def test_predictor_and_loss_compile_as_one_function() -> None:
    predictor = build_predictor((5,), action_dim=2)
    given_inputs = inputs(predictor)
    features, actions = given_inputs["features"], given_inputs["actions"][:, :-1]

    def step(features: Tensor, actions: Tensor) -> Tensor:
        return next_step_loss(predictor, features, actions, rollout_steps=2)[0]

    same_with_gradients(predictor, [step, compiled(step)], [lambda f: f(features, actions)])


@pytest.mark.parametrize("kind", POOLS)
def test_pools_in_half_precision(kind: str) -> None:
    """Under autocast, and in bf16 altogether; padding stays exactly zero."""
    pool, features = build_pool(kind), torch.randn(4, 6, DIM)
    valid = torch.rand(4, 6) < 0.6
    valid[0] = False
    expected = pool(features, valid)
    with torch.autocast("cpu", torch.bfloat16):
        out = pool(features, valid)
    whole = copy.deepcopy(pool).bfloat16()(features.bfloat16(), valid)
    assert whole.dtype == torch.bfloat16
    for found in (out, whole):
        assert not found[0].any()
        assert (found.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
    if kind != "last":
        out.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in pool.parameters())


def test_the_predictor_in_half_precision() -> None:
    predictor = build_predictor(action_dim=2, state_dim=1)
    given_inputs, valid = inputs(predictor), torch.rand(3, 4) < 0.7
    plans, options = torch.randn(3, 2, 3, 2), past_of(predictor, given_inputs)
    results = [predictor(**given_inputs, valid=valid), predictor.rollout(actions=plans, **options)]
    with torch.autocast("cpu", torch.bfloat16):
        halves = [
            predictor(**given_inputs, valid=valid),
            predictor.rollout(actions=plans, **options),
        ]
    for half, expected in zip(halves, results, strict=True):
        assert (half.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert not halves[0][~valid].any()
    halves[1].float().sum().backward()
    halved = {name: tensor.bfloat16() for name, tensor in given_inputs.items()}
    whole: CausalPredictor = predictor.bfloat16()
    out = whole(**halved, valid=valid)
    assert out.dtype == torch.bfloat16
    assert (out.float() - results[0]).abs().mean() < 0.05 * results[0].abs().mean()


def test_positions_survive_half_precision() -> None:
    """Trap: a table that was rounded once stays rounded."""
    predictor = build_predictor((5,))
    given_inputs = inputs(predictor)
    table = predictor.positions.position_table.clone()
    assert torch.equal(predictor.half().float().positions.position_table, table)
    predictor(**given_inputs)
