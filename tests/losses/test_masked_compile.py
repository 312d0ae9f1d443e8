"""Law 14 for the losses: one graph, bf16 autocast, no break and the same numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepakit.losses import (
    masked_cosine,
    masked_huber,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
    normalize_targets,
)

pytestmark = pytest.mark.no_hook

LOSSES = [masked_mse, masked_l1, masked_smooth_l1, masked_huber, masked_cosine]


def _step(
    loss: Callable[..., Tensor], reduction: str, kind: str, autocast: bool
) -> Callable[..., Tensor]:
    def step(x: Tensor, weight: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return loss(x @ weight, normalize_targets(teacher, kind), valid, reduction=reduction)

    return step


def _run(step: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(6, 8, requires_grad=True)
    value = step(
        torch.randn(2, 3, 5, 6), weight, torch.randn(2, 3, 5, 8), torch.rand(2, 3, 5) < 0.5
    )
    value.sum().backward()
    return value.detach(), weight.grad


@pytest.mark.parametrize(
    ("loss", "reduction", "autocast"),
    [
        *[(loss, "mean", autocast) for loss in LOSSES for autocast in (False, True)],
        *[(masked_mse, reduction, False) for reduction in ("sum", "sample", "none")],
    ],
)
def test_compiles_as_one_graph(loss: Callable[..., Tensor], reduction: str, autocast: bool) -> None:
    torch.compiler.reset()
    kind = "l2" if loss is masked_cosine else "layer"
    step = _step(loss, reduction, kind, autocast)
    value, gradient = _run(step)
    assert value.dtype == torch.float32
    compiled = _run(torch.compile(step, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(compiled, (value, gradient))


@pytest.mark.slow
@pytest.mark.parametrize("loss", [masked_smooth_l1, masked_cosine])
def test_compiles_to_machine_code(loss: Callable[..., Tensor]) -> None:
    torch.compiler.reset()
    step = _step(loss, "mean", "layer", autocast=False)
    torch.testing.assert_close(_run(torch.compile(step, fullgraph=True)), _run(step))
