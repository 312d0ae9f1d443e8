"""Statistics over batches and ranks equal the functions on all rows at once."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ranks import run_ranks

from jepakit.diagnostics import (
    FeatureStatistics,
    LidarStatistics,
    alpha_req,
    effective_rank,
    feature_std,
    isotropy,
    lidar,
    rankme,
    uniformity,
)

WHOLE = {
    "effective_rank": effective_rank,
    "rankme": rankme,
    "alpha": alpha_req,
    "isotropy": isotropy,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda s: sum(s) > 6),
    dim=st.integers(2, 6),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_functions_on_all_rows(
    sizes: list[int], dim: int, offset: float, seed: int
) -> None:
    """Batches of any size, with NaN as padding. Trap: sums of squares that a mean cancels."""
    x = torch.randn(sum(sizes), dim, dtype=torch.float64, generator=seeded(seed)) + offset
    statistics, even = FeatureStatistics(dim), 0.0
    for batch in x.split(sizes):
        padded = torch.cat([batch, torch.full((2, dim), torch.nan, dtype=torch.float64)])
        statistics.update(padded, torch.arange(len(padded)) < len(batch))
        even += len(batch) * float(uniformity(batch)) if len(batch) > 1 else 0.0
    report = statistics.compute()
    assert report.num_rows == len(x)
    for name, function in WHOLE.items():
        assert getattr(report, name) == pytest.approx(float(function(x)), rel=1e-5), name
    torch.testing.assert_close(report.std, feature_std(x), rtol=1e-7, atol=0)
    torch.testing.assert_close(report.mean, x.mean(dim=0))
    assert report.norm == pytest.approx(float(x.norm(dim=1).mean()), rel=1e-9)
    compared = sum(size for size in sizes if size > 1)
    if compared:
        assert report.uniformity == pytest.approx(even / compared, rel=1e-6, abs=1e-9)


def test_a_large_mean_in_float32() -> None:
    """Trap: E[x^2] - E[x]^2 in float32 at a mean of 1e4 is noise, negative variances included."""
    x = torch.randn(5000, 8, generator=seeded()) + 1e4
    statistics = FeatureStatistics(8)
    for batch in x.split(100):
        statistics.update(batch)
    report = statistics.compute()
    torch.testing.assert_close(report.std, x.double().std(dim=0), rtol=1e-9, atol=0)
    assert report.effective_rank > 7.9
    assert report.rankme < 1.1


def test_constant_features() -> None:
    """Law 11: what rounding leaves is no rank."""
    statistics = FeatureStatistics(6)
    for _ in range(9):
        statistics.update(0.1 * torch.ones(7, 6))
    report = statistics.compute()
    assert report.effective_rank == 0 and report.isotropy == 0
    assert abs(report.uniformity) < 1e-9


@given(
    sizes=st.lists(st.tuples(st.integers(0, 4), st.just(3)), min_size=1, max_size=5).filter(
        lambda s: sum(n for n, _ in s) > 1
    ),
    seed=st.integers(0, 2**31),
)
def test_lidar_in_batches(sizes: list[tuple[int, int]], seed: int) -> None:
    x = torch.randn(sum(n for n, _ in sizes), 3, 4, dtype=torch.float64, generator=seeded(seed))
    statistics = LidarStatistics(4, ridge=0.01)
    for batch in (x + 50).split([n for n, _ in sizes]):
        statistics.update(batch)
    assert statistics.compute() == pytest.approx(float(lidar(x + 50, ridge=0.01)), rel=1e-6)


def test_memory_does_not_grow() -> None:
    statistics, objects = FeatureStatistics(3), LidarStatistics(3)

    def held(thing: object) -> int:
        tensors, parts = 0, [*vars(thing).values()]
        for part in parts:
            if isinstance(part, torch.Tensor):
                tensors += part.numel()
            elif hasattr(part, "__dict__"):
                tensors += held(part)
            else:
                assert not isinstance(part, list | dict)
        return tensors

    before = held(statistics), held(objects)
    for _ in range(20):
        statistics.update(torch.randn(9, 3))
        objects.update(torch.randn(9, 2, 3))
    assert (held(statistics), held(objects)) == before
    statistics.reset()
    objects.reset()
    for empty in (statistics, objects):
        with pytest.raises(ValueError, match="needs at least 2 rows over all ranks, got 0"):
            empty.compute()


def test_update_does_not_synchronise() -> None:
    """On the meta device a host synchronisation raises."""
    statistics = FeatureStatistics(3)
    valid = torch.ones(4, dtype=torch.bool, device="meta")
    statistics.update(torch.randn(4, 3, device="meta"), valid)
    LidarStatistics(3).update(torch.randn(4, 2, 3, device="meta"))


def test_report_and_repr() -> None:
    statistics = FeatureStatistics(3, uniformity_t=1.0)
    assert repr(statistics) == "FeatureStatistics(3, uniformity_t=1.0)"
    assert repr(LidarStatistics(3)) == "LidarStatistics(3, ridge=0.0001)"
    numpy_numbers = FeatureStatistics(np.int64(3), uniformity_t=np.float32(2))
    assert repr(numpy_numbers) == "FeatureStatistics(3, uniformity_t=2.0)"
    assert repr(LidarStatistics(np.int64(3), ridge=1)) == "LidarStatistics(3, ridge=1.0)"
    statistics.update(torch.randn(50, 3, generator=seeded()))
    report = statistics.compute()
    assert str(report).startswith("50 rows of 3 dimensions\neffective rank")
    x = torch.randn(50, 3, generator=seeded())
    assert report.uniformity == pytest.approx(float(uniformity(x, t=1.0)))


def test_errors() -> None:
    statistics = FeatureStatistics(3)
    with pytest.raises(ValueError, match=r"must have the width of these statistics, 3"):
        statistics.update(torch.randn(4, 5))
    statistics.update(torch.full((4, 3), torch.nan))
    with pytest.raises(ValueError, match="a batch passed to update held NaN or infinity"):
        statistics.compute()
    with pytest.raises(ValueError, match="dim=0: must be at least 1"):
        FeatureStatistics(0)
    with pytest.raises(ValueError, match="ridge=0: must be above 0"):
        LidarStatistics(3, ridge=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_equal_one_process(ranks: int, tmp_path: Path) -> None:
    """Uneven batches, an empty one, and a rank without any. Trap: means of ranks' means.

    The monitor observes the joined batch too.
    """
    run_ranks(Path(__file__).with_name("statistics_worker.py"), ranks, tmp_path)


def test_uniformity_can_be_left_out() -> None:
    """It is quadratic in the rows of a batch; everything else stays as it is."""
    features = torch.randn(50, 4)
    reports = []
    for t in (2.0, None):
        statistics = FeatureStatistics(4, uniformity_t=t)
        statistics.update(features)
        reports.append(statistics.compute())
    assert math.isnan(reports[1].uniformity) and not math.isnan(reports[0].uniformity)
    assert reports[0].effective_rank == reports[1].effective_rank
