"""Intervals and spreads of the tables, by their formulas."""

import numpy as np
import pytest
from scipy import stats


def test_an_interval_is_that_of_a_paired_t_test(script) -> None:
    """Trap: a normal quantile, which is 2.2 times too narrow for three seeds."""
    gains = np.array([0.02, 0.05, 0.11])
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    text = script("runs").interval(list(gains))
    mean, error = (float(part) for part in text.replace("\N{NO-BREAK SPACE}", " ").split("±"))
    assert mean == pytest.approx(100 * gains.mean(), abs=0.051)
    assert 2 * error == pytest.approx(100 * (expected.high - expected.low), abs=0.11)


def test_an_interval_of_one_seed_is_no_interval(script) -> None:
    assert script("runs").interval([0.034]) == "+3.4"


def test_a_spread_is_mean_and_range(script) -> None:
    runs = script("runs")
    plain = runs.spread([1.0, 2.0, 6.0], " %").replace("\N{NO-BREAK SPACE}", " ")
    assert plain.replace("\N{WORD JOINER}", "") == "3.0 % (1.0–6.0)"
    assert runs.spread([2.0]) == "2.0"
