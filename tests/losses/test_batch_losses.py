"""Laws of every loss over a whole batch: its paper's formula, validity, dtypes, no host sync."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses import batch_losses
from tests.losses.batch_losses import BATCH_LOSSES
from torch import Tensor


def leaves(*shape: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x, y = (
        scale * torch.randn(*shape, generator=random, dtype=torch.float64) + 0.3 for _ in range(2)
    )
    return x.requires_grad_(), y.requires_grad_()


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)


def assert_equal_losses(ours: Tensor, naive: Tensor, *inputs: Tensor) -> None:
    """To 1e-6 of the value and of the largest gradient."""
    torch.testing.assert_close(ours, naive, rtol=1e-6, atol=1e-12)
    for found, expected in zip(gradients(ours, *inputs), gradients(naive, *inputs), strict=True):
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max() + 1e-12


@pytest.mark.parametrize("name", BATCH_LOSSES)
@settings(max_examples=15)
@given(n=st.integers(2, 6), d=st.integers(2, 4), seed=st.integers(0, 2**31), log=st.integers(-2, 1))
def test_equals_a_loop_from_the_paper(name: str, n: int, d: int, seed: int, log: int) -> None:
    """Value and gradient in float64, for small and for large features."""
    x, y = leaves(n, d, seed=seed, scale=10.0**log)
    loss = BATCH_LOSSES[name]
    assert_equal_losses(loss.call(x, y), loss.naive(x, y), x, y)


@pytest.mark.parametrize("name", BATCH_LOSSES)
@settings(max_examples=10)
@given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(lambda c: sum(c) >= 2),
    seed=st.integers(0, 2**31),
)
def test_valid_tokens_are_the_rows(name: str, counts: list[int], seed: int) -> None:
    """Laws 6 and 7: what is not valid, NaN included, is as if it were not there."""
    x, y = leaves(len(counts), 3, 4, seed=seed)
    valid = torch.arange(3) < torch.tensor(counts)[:, None]
    loss = BATCH_LOSSES[name]
    naive = loss.naive(x[valid], y[valid])
    assert_equal_losses(loss.call(x, y, valid), naive, x, y)
    expected = gradients(loss.call(x, y, valid), x, y)
    for poison in (math.nan, math.inf):
        bad = [
            t.detach().masked_fill(~valid.unsqueeze(-1), poison).requires_grad_() for t in (x, y)
        ]
        value = loss.call(*bad, valid)
        assert torch.equal(value, loss.call(x, y, valid))
        for found, clean in zip(gradients(value, *bad), expected, strict=True):
            assert torch.equal(found, clean)
            assert (found[~valid] == 0).all()


@pytest.mark.parametrize("name", BATCH_LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradcheck(name: str, seed: int) -> None:
    x, y = leaves(5, 3, seed=seed, scale=0.7)
    if BATCH_LOSSES[name].stops:
        y.requires_grad_(False)
    torch.autograd.gradcheck(lambda x, y: BATCH_LOSSES[name].call(x, y), (x, y))


@pytest.mark.parametrize("name", BATCH_LOSSES)
@pytest.mark.parametrize("left", [0, 1])
def test_none_or_one_valid_is_finite(name: str, left: int) -> None:
    """Traps: NaN at batch 1; an all-masked batch that returns NaN, or a number without a graph."""
    x, y = (torch.randn(2, 3, 4, requires_grad=True) for _ in range(2))
    valid = torch.arange(6).view(2, 3) < left
    value = BATCH_LOSSES[name].call(x, y, valid)
    assert value.requires_grad
    assert value.isfinite()
    if left == 0:
        assert value == 0
    for gradient in gradients(value, x, y):
        assert gradient.isfinite().all()
        assert left or not gradient.any()


@pytest.mark.parametrize("name", BATCH_LOSSES)
def test_too_few_rows_say_so(name: str) -> None:
    """Trap: the NaN of a variance over one sample."""
    minimum = BATCH_LOSSES[name].minimum
    x, y = (torch.randn(minimum - 1, 4) for _ in range(2))
    with pytest.raises(ValueError, match=rf"must have at least {minimum} rows?, got {minimum - 1}"):
        BATCH_LOSSES[name].call(x, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BATCH_LOSSES)
def test_half_precision_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    """And under autocast nothing is computed in less."""
    x, y = (torch.randn(40, 8).to(dtype) for _ in range(2))
    loss = BATCH_LOSSES[name]
    expected = loss.call(x.float(), y.float())
    assert expected.dtype == torch.float32
    assert torch.equal(loss.call(x, y), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss.call(x.float(), y.float()), expected)


@pytest.mark.parametrize("name", BATCH_LOSSES)
def test_autocast_leaves_the_gradient_alone(name: str) -> None:
    loss = BATCH_LOSSES[name]
    found = []
    for autocast in (False, True):
        torch.manual_seed(0)
        x, y = (torch.randn(12, 8, requires_grad=True) for _ in range(2))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = loss.call(x, y)
        found.append(gradients(value, x, y))
    for plain, under in zip(*found, strict=True):
        torch.testing.assert_close(under, plain)


@pytest.mark.parametrize("name", BATCH_LOSSES)
def test_no_host_synchronisation(name: str) -> None:
    """On the meta device there are no values: `.item()` and boolean indexing would raise."""
    x, y = (torch.empty(3, 5, 4, device="meta", requires_grad=True) for _ in range(2))
    valid = torch.empty(3, 5, device="meta", dtype=torch.bool)
    BATCH_LOSSES[name].call(x, y, valid).backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("name", BATCH_LOSSES)
@pytest.mark.no_hook
def test_compiles_as_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 14, forward and backward, under autocast too."""
    # No generator is made in a compiled function; slices come from the global one, seeded alike.
    monkeypatch.setattr(batch_losses, "_seeded", lambda process_group: None)
    torch.compiler.reset()
    loss = BATCH_LOSSES[name]

    def step(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss.call(x, y)

    found = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        x, y = (torch.randn(12, 4, requires_grad=True) for _ in range(2))
        value = function(x, y)
        found.append((value.detach(), *gradients(value, x, y)))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("name", BATCH_LOSSES)
@pytest.mark.no_hook
def test_shapes_are_refused_not_broadcast(name: str) -> None:
    """Also a valid mask that is no mask."""
    x, valid = torch.randn(3, 5, 4), torch.ones(3, 5, dtype=torch.bool)
    call = BATCH_LOSSES[name].call
    for wrong in (valid[:1], valid[:, :1], valid[0]):
        with pytest.raises(ValueError, match=r"nothing is broadcast"):
            call(x, x, wrong)
    with pytest.raises(TypeError, match=r"valid: must be bool"):
        call(x, x, valid.float())
    with pytest.raises(TypeError, match="must be floating point"):
        call(x.long(), x.long(), valid)
    with pytest.raises(TypeError, match="process_group=-100: must be a torch"):
        call(x, x, valid, process_group=-100)


@pytest.mark.parametrize("name", BATCH_LOSSES)
def test_ranks_without_any_sample(name: str, process_group: None) -> None:
    """Trap: a rank at the end of an epoch that raises while the others wait for it."""
    x = torch.randn(0, 4, requires_grad=True)
    value = BATCH_LOSSES[name].call(x, x, None, process_group=torch.distributed.group.WORLD)
    value.backward()
    assert value == 0
