"""The diagnostics against loops written from the papers, and cases with a known answer."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jepakit import masked_mse, masked_smooth_l1
from jepakit.diagnostics import (
    alignment,
    alpha_req,
    effective_rank,
    explained_variance,
    feature_std,
    isotropy,
    lidar,
    mean_predictor_loss,
    norm_drift,
    rankme,
    similarity,
    teacher_student_cosine,
    uniformity,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def entropy_rank(values: list[float]) -> float:
    p = [value / sum(values) for value in values]
    return math.exp(-sum(q * math.log(q) for q in p if q > 0))


def naive_covariance(x: Tensor) -> Tensor:
    mean = sum(x.unbind()) / len(x)
    return sum(torch.outer(row - mean, row - mean) for row in x) / (len(x) - 1)


def naive_effective_rank(x: Tensor) -> float:
    return entropy_rank(torch.linalg.svdvals(naive_covariance(x)).tolist())


def naive_rankme(x: Tensor) -> float:
    return entropy_rank(torch.linalg.eigvalsh(x.T @ x).clamp(min=0).sqrt().tolist())


def naive_alpha(x: Tensor) -> float:
    spectrum = torch.linalg.svdvals(naive_covariance(x)).tolist()[: min(x.shape[1], len(x) - 1)]
    points = [(math.log(i), math.log(v)) for i, v in enumerate(spectrum, start=1)]
    mx = sum(p for p, _ in points) / len(points)
    my = sum(q for _, q in points) / len(points)
    return -sum((p - mx) * (q - my) for p, q in points) / sum((p - mx) ** 2 for p, _ in points)


def naive_isotropy(x: Tensor) -> float:
    """The steps of the IsoScore paper: principal axes, normalised variances, defect, fraction."""
    variances = torch.linalg.svdvals(naive_covariance(x))
    d = len(variances)
    normalised = variances * math.sqrt(d) / variances.norm()
    defect = (normalised - 1).norm().item() / math.sqrt(2 * (d - math.sqrt(d)))
    share = (d - defect**2 * (d - math.sqrt(d))) ** 2 / d**2
    return (d * share - 1) / (d - 1)


def naive_uniformity(x: Tensor) -> float:
    units = [row / row.norm() for row in x]
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    kernels = [math.exp(-2 * float((units[i] - units[j]).norm()) ** 2) for i, j in pairs]
    return math.log(sum(kernels) / len(kernels))


def naive_std(x: Tensor) -> list[float]:
    return naive_covariance(x).diagonal().sqrt().tolist()


SINGLE = {
    effective_rank: naive_effective_rank,
    rankme: naive_rankme,
    alpha_req: naive_alpha,
    isotropy: naive_isotropy,
    uniformity: naive_uniformity,
    feature_std: naive_std,
}


@pytest.mark.parametrize("function", SINGLE, ids=lambda function: function.__name__)
@given(rows=st.integers(3, 9), dim=st.integers(2, 7), seed=st.integers(0, 2**31))
def test_equals_a_loop(function, rows: int, dim: int, seed: int) -> None:
    """On features with NaN as padding: only the valid rows are used."""
    x = torch.randn(rows, dim, dtype=torch.float64, generator=seeded(seed)) + 0.5
    padded = torch.full((2, rows, dim), torch.nan, dtype=torch.float64)
    valid = torch.zeros(2, rows, dtype=torch.bool)
    first = rows // 2
    padded[0, :first], padded[1, : rows - first] = x[:first], x[first:]
    valid[0, :first], valid[1, : rows - first] = True, True
    expected = SINGLE[function](x)
    for value in (function(x), function(padded, valid)):
        assert value.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert value.dtype == torch.float64


@pytest.mark.parametrize("function", [*SINGLE, lidar], ids=lambda function: function.__name__)
def test_autocast_around_it_changes_nothing(function) -> None:
    """Trap: covariances in bfloat16, in which a large mean hides small directions."""
    x = torch.randn(30, 4, 8, generator=seeded(0)) + 5
    once = function(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(x), once)


def test_isotropic_gaussian() -> None:
    """The sample's participation ratio is d / (1 + d / n) on average, known in closed form."""
    d, n = 24, 4000
    x = torch.randn(n, d, generator=seeded()) * 3 + 1
    expected = d / (1 + d / n)
    assert float(isotropy(x)) == pytest.approx((expected - 1) / (d - 1), rel=2e-3)
    assert float(effective_rank(x)) == pytest.approx(d, rel=5e-3)
    # On a sphere of d dimensions, E exp(-4 + 4 cos) is a Bessel function; for large d exp(8 / d).
    units = torch.randn(1500, 200, generator=seeded())
    assert float(uniformity(units)) == pytest.approx(-4 + 8 / 200, abs=5e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
def test_alpha_of_a_power_law(alpha: float) -> None:
    noise = torch.randn(200, 30, dtype=torch.float64, generator=seeded())
    whitened, _ = torch.linalg.qr(noise - noise.mean(dim=0))
    spectrum = torch.arange(1, 31, dtype=torch.float64) ** (-alpha)
    x = whitened * spectrum.sqrt()
    assert float(alpha_req(x)) == pytest.approx(alpha, abs=1e-9)
    assert float(alpha_req(x, first=11, last=25)) == pytest.approx(alpha, abs=1e-9)
    bent = x * (torch.arange(30) < 10)
    assert float(alpha_req(bent, last=10)) == pytest.approx(alpha, abs=1e-9)
    assert float(alpha_req(bent)) == pytest.approx(alpha, abs=1e-6)  # zeros are left out


def test_alpha_arguments() -> None:
    x = torch.randn(20, 5)
    assert alpha_req(x[:, :1].expand(20, 5)).isnan()
    for first, last in ((3, 3), (1, 6), (5, None)):
        with pytest.raises(
            ValueError, match="must be 1 <= first < last <= d, the width 5 of features"
        ):
            alpha_req(x, first=first, last=last)


def test_rankme_is_not_effective_rank() -> None:
    """Trap: one name for two numbers. A mean adds a direction to one; it hides all in the other."""
    x = torch.randn(400, 16, generator=seeded()) * 0.8 ** torch.arange(16)
    assert rankme(x) > effective_rank(x) + 2
    shifted = x + 1000
    assert rankme(shifted) < 1.2
    torch.testing.assert_close(effective_rank(shifted), effective_rank(x), rtol=1e-3, atol=0)
    assert rankme(torch.zeros(3, 2)) == 0
    assert float(rankme(torch.ones(1, 5))) == pytest.approx(1)


def naive_lidar(x: Tensor, ridge: float) -> float:
    n, q, d = x.shape
    means = [sum(views.unbind()) / q for views in x]
    mean = sum(means) / n
    between = sum(torch.outer(m - mean, m - mean) for m in means) / n
    within = ridge * torch.eye(d, dtype=x.dtype)
    for views, m in zip(x, means, strict=True):
        within = within + sum(torch.outer(v - m, v - m) for v in views) / (n * q)
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    return entropy_rank(torch.linalg.eigvalsh(root @ between @ root).clamp(min=0).tolist())


@given(n=st.integers(2, 6), q=st.integers(2, 5), d=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_lidar_equals_a_loop(n: int, q: int, d: int, seed: int) -> None:
    x = torch.randn(n, q, d, dtype=torch.float64, generator=seeded(seed)) + 2
    assert float(lidar(x, ridge=0.01)) == pytest.approx(naive_lidar(x, 0.01), rel=1e-6)


def test_lidar_looks_past_nuisances() -> None:
    """Loud directions in which only views differ count for the effective rank and not for LiDAR."""
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).repeat(50, 1)
    x = torch.cat([corners[:, None].expand(-1, 8, -1), torch.zeros(200, 8, 6)], dim=2)
    x = x + 0.01 * torch.randn(x.shape, generator=seeded())
    x[..., 2:] += 5 * torch.randn(200, 8, 6, generator=seeded(1))
    assert effective_rank(x) > 5.5
    assert float(lidar(x)) == pytest.approx(2, rel=0.01)
    assert lidar(torch.randn(1, 8, 6, generator=seeded()).expand(9, 8, 6) + 3) == 0
    assert lidar(x, ridge=1e6) != lidar(x)


def test_alignment_and_uniformity() -> None:
    x, y = (torch.randn(7, 3, dtype=torch.float64, generator=seeded(k)) for k in (0, 1))
    gaps = [float((p / p.norm() - q / q.norm()).norm()) for p, q in zip(x, y, strict=True)]
    for exponent in (1.0, 2.0):
        expected = sum(gap**exponent for gap in gaps) / 7
        assert float(alignment(x, y, exponent=exponent)) == pytest.approx(expected, rel=1e-9)
    constant = torch.ones(7, 3)
    assert alignment(constant, constant) == 0 and uniformity(constant) == 0
    assert float(uniformity(x, t=1.0)) > float(uniformity(x, t=4.0))


PAIRS = [alignment, teacher_student_cosine, explained_variance]


@pytest.mark.parametrize("function", PAIRS, ids=lambda function: function.__name__)
@given(rows=st.integers(2, 9), dim=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_padding_of_a_pair_does_not_count(function, rows: int, dim: int, seed: int) -> None:
    """Law 6, with NaN as padding, for fewer rows than columns and for more."""
    x, y = torch.randn(2, rows, dim, dtype=torch.float64, generator=seeded(seed))
    valid = torch.rand(3, rows, generator=seeded(seed)).argsort(dim=0) == 0  # one of three a row
    first, second = (torch.where(valid[..., None], each, torch.nan) for each in (x, y))
    expected = function(x[valid.nonzero()[:, 1]], y[valid.nonzero()[:, 1]])
    torch.testing.assert_close(function(first, second, valid), expected, equal_nan=True)


def test_uniformity_leaves_the_diagonal_out() -> None:
    """Trap: a sample's distance to itself, 0, which keeps the mean kernel above 1 / n."""
    ends = torch.tensor([[1.0, 0], [-1, 0]])
    assert float(uniformity(ends)) == pytest.approx(-8)


def test_uniformity_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(11, 3, generator=seeded())
    expected = uniformity(x)
    monkeypatch.setattr(similarity, "_CHUNK", 4)
    torch.testing.assert_close(uniformity(x), expected, rtol=1e-12, atol=0)


def test_cosine_of_teacher_and_student() -> None:
    x, y = (torch.randn(9, 4, dtype=torch.float64, generator=seeded(k)) for k in (0, 1))
    expected = sum(float(p @ q / p.norm() / q.norm()) for p, q in zip(x, y, strict=True)) / 9
    assert float(teacher_student_cosine(x, y)) == pytest.approx(expected, rel=1e-9)
    centred = teacher_student_cosine(x - x.mean(0), y - y.mean(0))
    torch.testing.assert_close(teacher_student_cosine(x + 7, y - 3, centred=True), centred)
    assert teacher_student_cosine(x + 100, y + 100) > 0.99
    valid = torch.arange(9) < 4
    torch.testing.assert_close(
        teacher_student_cosine(x, y, valid, centred=True),
        teacher_student_cosine(x[:4], y[:4], centred=True),
    )


def test_numpy_numbers_are_taken() -> None:
    x = torch.randn(6, 4, generator=seeded())
    assert uniformity(x, t=np.float32(2)) == uniformity(x, t=2) == uniformity(x)
    assert alignment(x, -x, exponent=np.int64(1)) == alignment(x, -x, exponent=1.0)
    assert alpha_req(x, first=np.int64(1), last=np.int64(3)) == alpha_req(x, first=1, last=3)
    views = x.view(3, 2, 4)
    assert lidar(views, ridge=np.float64(0.5)) == lidar(views, ridge=0.5)


@pytest.mark.no_hook
def test_a_flag_is_a_bool() -> None:
    x = torch.randn(6, 4)
    with pytest.raises(TypeError, match="centred=1: must be a bool, got int"):
        teacher_student_cosine(x, x, centred=1)
    with pytest.raises(TypeError, match="t=True: must be a number, got bool"):
        uniformity(x, t=True)


def test_norm_drift() -> None:
    x = torch.randn(9, 4, generator=seeded())
    assert float(norm_drift(x * 3, x.repeat(2, 1))) == pytest.approx(math.log(3), rel=1e-6)
    valid = torch.arange(9) < 5
    poisoned = x.masked_fill(~valid[:, None], torch.nan)
    assert float(norm_drift(poisoned, x[:5], valid)) == pytest.approx(0, abs=1e-7)
    assert float(norm_drift(x[:5], poisoned, None, valid)) == pytest.approx(0, abs=1e-7)
    assert norm_drift(0 * x, x) == -math.inf
    with pytest.raises(ValueError, match="reference: must not be all zeros"):
        norm_drift(x, 0 * x)


def test_mean_predictor() -> None:
    """The loss of the best constant; explained variance does not change when targets shrink."""
    target = torch.randn(2, 6, 4, dtype=torch.float64, generator=seeded()) + 3
    valid = torch.arange(6) < torch.tensor([[4], [6]])
    rows = target[valid]
    mean = rows.mean(dim=0).expand_as(target)
    poisoned = target.masked_fill(~valid[..., None], torch.nan)
    for loss in (masked_mse, masked_smooth_l1):
        expected = loss(mean, target, valid)
        torch.testing.assert_close(mean_predictor_loss(poisoned, valid, loss=loss), expected)
    torch.testing.assert_close(
        mean_predictor_loss(poisoned, valid), masked_mse(mean, target, valid)
    )
    torch.testing.assert_close(
        mean_predictor_loss(rows, loss=masked_mse), mean_predictor_loss(rows)
    )
    pred = target + torch.randn(target.shape, dtype=torch.float64, generator=seeded(1))
    share = 1 - masked_mse(pred, target, valid) / mean_predictor_loss(target, valid)
    torch.testing.assert_close(explained_variance(pred, poisoned, valid), share)
    torch.testing.assert_close(explained_variance(pred / 9, target / 9, valid), share)
    assert explained_variance(target, target) == 1
    assert abs(explained_variance(mean, target, valid)) < 1e-12
    assert explained_variance(pred, torch.ones_like(pred)).isnan()


@given(st.sampled_from([effective_rank, isotropy]), st.floats(-1e4, 1e4))
def test_constant_is_zero(function, value: float) -> None:
    """Law 11, with what rounding leaves in float32."""
    x = torch.full((20, 6), value) * (1 + 1e-7 * torch.randn(20, 6))
    assert function(x) == 0


@pytest.mark.no_hook
@pytest.mark.parametrize("function", SINGLE, ids=lambda function: function.__name__)
def test_bad_arguments(function) -> None:
    x = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match=r"valid \(3,\): must have the shape .* \(2, 3\)"):
        function(x, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"valid: must be True for at least \d rows? of features"):
        function(x, torch.zeros(2, 3, dtype=torch.bool))
    x[0, 1, 2] = torch.inf
    with pytest.raises(ValueError, match="must be finite, but 1 of 6 rows"):
        function(x)


@pytest.mark.no_hook
def test_bad_pairs() -> None:
    x = torch.randn(5, 4)
    with pytest.raises(ValueError, match=r"reference \(5, 3\): must have the width of features"):
        norm_drift(x, x[:, :3])
    for function in (alignment, teacher_student_cosine, explained_variance):
        with pytest.raises(ValueError, match=r"nothing is broadcast"):
            function(x, x[:1])
    with pytest.raises(ValueError, match=r"features \(1, 4, 2\): must have the shape \[n, q, d\]"):
        lidar(torch.randn(1, 4, 2))
    for call in (
        lambda: lidar(torch.randn(2, 4, 2), ridge=0.0),
        lambda: uniformity(x, t=0.0),
        lambda: alignment(x, x, exponent=-1.0),
    ):
        with pytest.raises(ValueError, match="must be above 0"):
            call()
