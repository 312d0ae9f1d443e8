"""Effective rank on known spectra, and invariances."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jepakit.diagnostics import effective_rank


def with_spectrum(variances: list[float], rows: int, seed: int) -> Tensor:
    """Centred rows whose covariance has exactly these eigenvalues, in a random basis."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, len(variances), dtype=torch.float64, generator=random)
    left, _ = torch.linalg.qr(x - x.mean(dim=0))
    basis = torch.randn(len(variances), len(variances), dtype=torch.float64, generator=random)
    basis, _ = torch.linalg.qr(basis)
    return left * torch.tensor(variances, dtype=torch.float64).sqrt() @ basis


@given(
    variances=st.lists(st.floats(0.01, 10), min_size=1, max_size=6),
    extra=st.integers(0, 10),
    seed=st.integers(0, 2**31),
)
def test_known_spectra(variances: list[float], extra: int, seed: int) -> None:
    x = with_spectrum(variances, len(variances) + 1 + extra, seed)
    p = [v / sum(variances) for v in variances]
    expected = math.exp(-sum(q * math.log(q) for q in p))
    assert float(effective_rank(x)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_variances_count_dimensions(rank: int) -> None:
    x = with_spectrum([1.0] * rank + [0.0] * (8 - rank), 40, seed=0)
    assert float(effective_rank(x)) == pytest.approx(rank, rel=1e-6)


@given(rows=st.integers(2, 12), dim=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_invariances(rows: int, dim: int, seed: int) -> None:
    """Shift, scale, rotation, order and the split into axes change nothing; Gram = covariance."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, dtype=torch.float64, generator=random)
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=random))
    rank = effective_rank(x)
    assert 1 - 1e-9 <= rank <= min(rows - 1, dim) + 1e-9
    for same in (x + 10, x * 1e-3, x @ rotation, x.flip(0), x[None, :, None]):
        torch.testing.assert_close(effective_rank(same), rank, rtol=1e-5, atol=1e-5)
    # Doubled rows have the same covariance, but go the other way round.
    torch.testing.assert_close(effective_rank(x.repeat(8, 1)), rank, rtol=1e-5, atol=1e-5)


def test_a_large_mean_does_not_hide_the_rest() -> None:
    """Trap: effective rank of uncentred features, which is near 1 here."""
    x = torch.randn(500, 16)
    assert effective_rank(x + 50) > 14
    torch.testing.assert_close(effective_rank(x + 50), effective_rank(x), rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e4])
@pytest.mark.parametrize("shape", [(64, 8), (4, 32)])
def test_full_collapse_is_zero(value: float, shape: tuple[int, int]) -> None:
    """Law 11. A vector repeated has no variance; what rounding leaves is no rank either."""
    x = torch.full(shape, value) * torch.linspace(0.5, 2, shape[1])
    assert effective_rank(x) == 0
    assert effective_rank(x * (1 + 1e-7 * torch.randn(shape))) == 0


def test_small_variance_around_a_large_mean_is_still_seen() -> None:
    assert effective_rank(100 + 1e-2 * torch.randn(200, 8, dtype=torch.float64)) > 7


def test_no_gradient_and_float64() -> None:
    rank = effective_rank(torch.randn(8, 4, requires_grad=True))
    assert rank.dtype == torch.float64
    assert not rank.requires_grad


def test_half_precision_is_taken() -> None:
    assert effective_rank(torch.randn(200, 8).bfloat16()) > 7


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_values_are_refused(bad: float) -> None:
    x = torch.randn(5, 3)
    x[2, 1] = bad
    with pytest.raises(ValueError, match=r"features \(5, 3\): must be finite, but 1 of 5 rows"):
        effective_rank(x)


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (3, 0), (1, 1, 4)])
def test_too_few_rows_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features \(.*\): must have (at least 2 rows|the shape)"):
        effective_rank(torch.zeros(shape))


@pytest.mark.no_hook
def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"features: must be floating point, got torch\.int64"):
        effective_rank(torch.zeros(3, 4, dtype=torch.int64))
