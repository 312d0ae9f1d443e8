"""The masked losses against a Python loop over valid tokens, and what padding may not do."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepakit.losses import (
    masked_cosine,
    masked_huber,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
)

LOSSES = [masked_mse, masked_l1, masked_smooth_l1, masked_huber, masked_cosine]
REDUCTIONS = ["mean", "sum", "sample", "none"]


class Case(NamedTuple):
    pred: Tensor
    target: Tensor
    valid: Tensor


@st.composite
def cases(draw: st.DrawFn, *, batch_axes: tuple[int, ...] = (0, 1, 2)) -> Case:
    axes = draw(st.sampled_from(batch_axes))
    batch = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    n, d = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    flags = math.prod(batch) * n
    valid = draw(st.lists(st.booleans(), min_size=flags, max_size=flags))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    pred, target = (
        2 * torch.randn(*batch, n, d, dtype=torch.float64, generator=random) for _ in range(2)
    )
    return Case(pred.requires_grad_(), target.requires_grad_(), torch.tensor(valid).view(*batch, n))


def token_values(loss: Callable[..., Tensor], pred: Tensor, target: Tensor) -> list[Tensor]:
    """Terms that one valid token of dimension d adds, value by value, straight from the formula."""
    if loss is masked_cosine:
        dot = sum(p * t for p, t in zip(pred, target, strict=True))
        return [1 - dot / (pred.norm() * target.norm())]
    values = []
    for p, t in zip(pred, target, strict=True):
        r = abs(p - t)
        if loss is masked_mse:
            values.append(r * r)
        elif loss is masked_l1:
            values.append(r)
        else:  # smooth-L1 and Huber agree at 1, their default
            values.append(0.5 * r * r if r < 1 else r - 0.5)
    return values


def naive_mean(loss: Callable[..., Tensor], case: Case) -> Tensor:
    values = []
    for token in case.valid.nonzero().tolist():
        values += token_values(loss, case.pred[tuple(token)], case.target[tuple(token)])
    nothing = (case.pred.sum() + case.target.sum()) * 0
    return nothing + sum(values) / len(values) if values else nothing


def gradients(value: Tensor, case: Case) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, [case.pred, case.target])


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=25)
@given(case=cases())
def test_mean_equals_a_loop_over_valid_tokens(loss: Callable[..., Tensor], case: Case) -> None:
    """Law 7, value and gradient. Trap: mask first, average, average again."""
    ours, naive = loss(*case), naive_mean(loss, case)
    torch.testing.assert_close(ours, naive)
    torch.testing.assert_close(gradients(ours, case), gradients(naive, case))


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=15)
@given(case=cases(batch_axes=(1, 2)))
def test_reductions_agree_with_each_other(loss: Callable[..., Tensor], case: Case) -> None:
    """`sum` and `sample` are the loop's; `none` sums to `sum`, exactly 0 where not valid."""
    per_token = 1 if loss is masked_cosine else case.pred.shape[-1]
    elementwise = loss(*case, reduction="none")
    assert elementwise.shape == (case.valid if loss is masked_cosine else case.pred).shape
    assert (elementwise[~case.valid] == 0).all()
    total = loss(*case, reduction="sum")
    torch.testing.assert_close(elementwise.sum(), total)
    torch.testing.assert_close(total, naive_mean(loss, case) * case.valid.sum() * per_token)
    samples = loss(*case, reduction="sample")
    assert samples.shape == case.pred.shape[:1]
    for i, sample in enumerate(samples):
        alone = Case(case.pred[i], case.target[i], case.valid[i])
        torch.testing.assert_close(sample, naive_mean(loss, alone))


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=5)
@given(case=cases())
def test_gradcheck(loss: Callable[..., Tensor], case: Case) -> None:
    """Law 7: the analytic gradient is the numerical one, in both inputs."""
    torch.autograd.gradcheck(
        lambda pred, target: loss(pred, target, case.valid), (case.pred, case.target)
    )


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=15)
@given(case=cases(batch_axes=(1, 2)))
def test_padding_enters_neither_value_nor_gradient(
    loss: Callable[..., Tensor], reduction: str, poison: float, case: Case
) -> None:
    """Law 6. Trap: padded rows enter the loss, and a NaN there reaches the gradient as 0 * NaN."""
    absent = ~case.valid.unsqueeze(-1)
    bad = Case(
        case.pred.detach().masked_fill(absent, poison).requires_grad_(),
        case.target.detach().masked_fill(absent, poison).requires_grad_(),
        case.valid,
    )
    clean, poisoned = loss(*case, reduction=reduction), loss(*bad, reduction=reduction)
    assert torch.equal(clean, poisoned)
    for ours, theirs in zip(
        gradients(poisoned.sum(), bad), gradients(clean.sum(), case), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert (ours[~case.valid] == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_valid_is_zero_with_a_graph(loss: Callable[..., Tensor], reduction: str) -> None:
    """Law 6. Trap: an all-masked batch returning NaN, or a number without a graph."""
    pred = torch.randn(2, 3, 4, requires_grad=True)
    value = loss(
        pred, torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool), reduction=reduction
    )
    assert value.requires_grad
    assert (value == 0).all()
    value.sum().backward()
    assert torch.equal(pred.grad, torch.zeros_like(pred))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_set_without_tokens_is_zero(loss: Callable[..., Tensor]) -> None:
    pred = torch.zeros(2, 0, 4, requires_grad=True)
    value = loss(pred, torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool))
    value.backward()
    assert value == 0


@pytest.mark.parametrize("dim", [1, 64])
@pytest.mark.parametrize(
    ("loss", "expected"),
    [(masked_mse, 4.0), (masked_l1, 2.0), (masked_smooth_l1, 1.5), (masked_huber, 1.5)],
)
def test_the_loss_does_not_grow_with_the_dimension(
    loss: Callable[..., Tensor], expected: float, dim: int
) -> None:
    """Trap: dividing by positions where elements were summed makes the loss 64x at dim 64."""
    pred = torch.full((3, 5, dim), 2.0)
    valid = torch.arange(5).expand(3, 5) < torch.tensor([[5], [1], [2]])
    assert loss(pred, torch.zeros_like(pred), valid) == expected


@given(case=cases(), scale=st.floats(0.1, 4.0))
def test_beta_and_delta_matter(case: Case, scale: float) -> None:
    """Law 12: the knee is where it was put; Huber is delta times smooth-L1."""
    r = (case.pred - case.target).abs()
    knee = torch.where(r < scale, 0.5 * r * r / scale, r - scale / 2)
    knee = knee * case.valid.unsqueeze(-1)
    smooth = masked_smooth_l1(*case, beta=scale, reduction="none")
    huber = masked_huber(*case, delta=scale, reduction="none")
    torch.testing.assert_close(smooth, knee)
    torch.testing.assert_close(huber, knee * scale)


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=25)
@given(
    counts=st.lists(st.integers(0, 5), min_size=2, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_accumulated_micro_batches_equal_one_batch(
    loss: Callable[..., Tensor], counts: list[int], seed: int
) -> None:
    """Law 8: `sum` over the window's count, also when counts differ or one is 0."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 4, dtype=torch.float64, generator=random, requires_grad=True)
    x = torch.randn(len(counts), 5, 3, dtype=torch.float64, generator=random)
    target = torch.randn(len(counts), 5, 4, dtype=torch.float64, generator=random)
    valid = torch.arange(5) < torch.tensor(counts)[:, None]
    whole = torch.autograd.grad(loss(x @ weight, target, valid), weight)

    window = max(1, sum(counts)) * (1 if loss is masked_cosine else 4)
    for i in range(len(counts)):
        part = slice(i, i + 1)
        (loss(x[part] @ weight, target[part], valid[part], reduction="sum") / window).backward()
    torch.testing.assert_close(weight.grad, whole[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_are_computed_in_float32(
    loss: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    """A bf16 mean over many elements would stop growing."""
    pred, target = torch.randn(2, 50, 32).to(dtype), torch.randn(2, 50, 32).to(dtype)
    valid = torch.rand(2, 50) < 0.5
    for ours in (loss(pred, target, valid), loss(pred, target.float(), valid)):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, loss(pred.float(), target.float(), valid))


@pytest.mark.parametrize("loss", LOSSES)
def test_fp16_squares_do_not_overflow(loss: Callable[..., Tensor]) -> None:
    pred = torch.full((1, 2, 3), 1000.0, dtype=torch.float16)
    assert loss(pred, -pred, torch.ones(1, 2, dtype=torch.bool)).isfinite()


def test_cosine_of_a_zero_vector_is_finite() -> None:
    """A predictor whose last layer starts at 0 predicts zero vectors at valid places."""
    pred = torch.zeros(1, 2, 3, requires_grad=True)
    value = masked_cosine(pred, torch.randn(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    value.backward()
    assert value == 1
    assert pred.grad.isfinite().all()
    assert (pred.grad != 0).any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_no_host_synchronisation(loss: Callable[..., Tensor], reduction: str) -> None:
    """On the meta device there are no values: `.item()` and boolean indexing would raise."""
    pred = torch.empty(2, 3, 4, 5, device="meta", requires_grad=True)
    valid = torch.empty(2, 3, 4, device="meta", dtype=torch.bool)
    loss(pred, pred.detach(), valid, reduction=reduction).sum().backward()
    assert pred.grad.shape == pred.shape
