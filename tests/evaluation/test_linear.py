"""The linear probe: what it finds, and that the test set selects nothing."""

import builtins
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.linear_model import LogisticRegression

import jepakit.evaluation.linear as linear
from jepakit.evaluation import Features, linear_probe
from jepakit.evaluation._selection import held_out


def blobs(rows: int, seed: int, *, noise: float = 1.0, dim: int = 6) -> Features:
    """Three classes around three fixed centres."""
    random = torch.Generator().manual_seed(seed)
    centres = 2 * torch.eye(3, dim)
    y = torch.arange(rows) % 3
    return Features(x=centres[y] + noise * torch.randn(rows, dim, generator=random), y=y)


def test_separable_classes_are_separated() -> None:
    assert linear_probe(blobs(150, 0, noise=0.1), blobs(60, 1, noise=0.1)) == 1.0


def test_no_signal_is_chance() -> None:
    random = torch.Generator().manual_seed(0)
    train, test = blobs(300, 0), blobs(300, 1)
    shuffled = Features(x=train.x, y=train.y[torch.randperm(300, generator=random)])
    assert linear_probe(shuffled, test) < 0.5
    assert linear_probe(train, test) > 0.7


def test_standardised_on_the_training_rows() -> None:
    """Scale and shift of a feature change nothing."""
    train, test = blobs(150, 0), blobs(90, 1)
    scale, shift = torch.tensor([1e-3, 1.0, 1e3, 5.0, 1.0, 0.1]), torch.arange(6.0)
    moved = [Features(x=f.x * scale + shift, y=f.y) for f in (train, test)]
    assert linear_probe(*moved) == pytest.approx(linear_probe(train, test), abs=0.02)


def test_small_directions_are_found_beside_large_ones() -> None:
    """Trap: encoders that are trained briefly share few directions, and a solver that is stopped
    ranks them by their conditioning, not by what they hold. Warnings are errors here."""
    train, test = blobs(600, 0, dim=32), blobs(600, 1, dim=32)
    random = torch.Generator().manual_seed(0)
    turns = [torch.linalg.qr(torch.randn(32, 32, generator=random)).Q for _ in range(2)]
    mixed = turns[0] * torch.logspace(0, -3, 32) @ turns[1]
    moved = [Features(x=f.x @ mixed, y=f.y) for f in (train, test)]
    there, alone = (linear_probe(*sets, C=10.0, max_iter=250) for sets in (moved, (train, test)))
    assert there == pytest.approx(alone, abs=0.06)


@pytest.mark.parametrize(("rows", "width"), [(1000, 64), (200, 400)])
def test_the_least_direction_counts(rows: int, width: int) -> None:
    """Trap: the solver's usual tolerance, which such a direction meets before the first step."""
    random = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % 2
    small = torch.randn(width, generator=random)
    noise = torch.randn(rows, 1, generator=random)
    x = noise.double() + 1e-5 * (2.0 * y[:, None] - 1) * small
    train, test = (Features(x=a, y=b) for a, b in zip(x.chunk(2), y.chunk(2), strict=True))
    # The path, too, goes on from where a small `C` has found nothing.
    assert linear_probe(train, test, C=(1e-5, 1.0, 1e7)) == 1.0


def test_nothing_of_the_test_rows_moves_the_map() -> None:
    """All of them far away on one side: they are not centred by their own mean."""
    train, test = blobs(150, 0), blobs(90, 1)
    away = Features(x=test.x + torch.tensor([100.0, 0, 0, 0, 0, 0]), y=test.y)
    assert linear_probe(train, away) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("count", "width", "rank"), [(9, 4, 4), (9, 4, 2), (4, 9, 4), (4, 9, 2)])
def test_products_are_those_of_the_formula(count: int, width: int, rank: int) -> None:
    """By either Gram matrix, and where rows have no variance in some directions."""
    random = torch.Generator().manual_seed(0)
    factors = torch.randn(count, rank, generator=random), torch.randn(rank, width, generator=random)
    rows = (factors[0] @ factors[1]).double().numpy()
    z = rows @ linear._whitening(rows)
    expected = rows @ np.linalg.inv(rows.T @ rows / count + np.eye(width)) @ rows.T
    np.testing.assert_allclose(z @ z.T, expected, atol=1e-9)


@pytest.mark.parametrize("width", [4, 40])
def test_collapsed_features_score_like_chance(width: int) -> None:
    """With more features than rows, too: then no direction is left."""
    train, test = (Features(x=torch.ones(30, width), y=torch.arange(30) % 3) for _ in range(2))
    assert linear_probe(train, test) == pytest.approx(1 / 3)


def test_the_same_twice_and_no_trace_in_the_global_generators() -> None:
    """Law 15."""
    train, test = blobs(150, 0, noise=3.0), blobs(90, 1, noise=3.0)
    state = torch.get_rng_state()
    scores = {linear_probe(train, test, C=(0.01, 1.0)) for _ in range(3)}
    assert len(scores) == 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Rows, `C`, `max_iter` and the labels' counts of every fit, and whether it began at zero."""
    found: list[tuple[Any, ...]] = []
    fit = LogisticRegression.fit

    def record(self: Any, x: Any, y: Any) -> Any:
        fresh = not (self.warm_start and hasattr(self, "coef_"))
        found.append((len(x), self.C, self.max_iter, np.bincount(y).tolist(), fresh))
        return fit(self, x, y)

    monkeypatch.setattr(LogisticRegression, "fit", record)
    return found


def test_c_and_max_iter_reach_the_solver(fits: list[tuple[Any, ...]]) -> None:
    """Law 12: no option is ignored."""
    linear_probe(blobs(30, 0), blobs(9, 1), C=0.5, max_iter=77)
    assert fits == [(30, 0.5, 77, [10, 10, 10], True)]


def test_a_choice_is_made_on_a_held_out_fifth_of_train(
    fits: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test rows choose nothing; the best of several is fitted on all training rows."""
    scored = []
    score = LogisticRegression.score

    def record(self: Any, x: Any, y: Any) -> float:
        scored.append((len(x), np.bincount(y).tolist()))
        return score(self, x, y)

    monkeypatch.setattr(LogisticRegression, "score", record)
    train, test = blobs(150, 0, noise=0.1), blobs(12, 1)
    linear_probe(train, test, C=(1.0, 0.1), max_iter=77)
    # Both are right everywhere: of equals the smallest, that is the most regularised.
    assert fits == [
        (120, 0.1, 77, [40, 40, 40], True),
        (120, 1.0, 77, [40, 40, 40], False),
        (150, 0.1, 77, [50, 50, 50], True),
    ]
    assert scored == [(30, [10, 10, 10])] * 2 + [(12, [4, 4, 4])]


def test_rows_that_choose_are_drawn_from_all_of_a_class() -> None:
    """The last fifth of a sorted file would be another kind of image (TRAPS: raster order)."""
    chosen = held_out(torch.arange(300) // 150, "C", [1.0, 2.0]).nonzero().flatten()
    for first, last in ((0, 150), (150, 300)):
        mine = chosen[(chosen >= first) & (chosen < last)]
        assert len(mine) == 30 and mine.diff().max() < 50
        assert mine[0] < first + 50 and mine[-1] > last - 50


@pytest.mark.parametrize("rows", [20, 41, 300])
def test_a_fifth_chooses_however_few_rows_a_class_has(
    rows: int, fits: list[tuple[Any, ...]]
) -> None:
    """Quick looks at 40 images of 10 classes are common."""
    train = Features(x=torch.randn(rows, 4), y=torch.arange(rows) % 10)
    linear_probe(train, train, C=(0.1, 1.0))
    assert abs(rows / 5 - (rows - fits[0][0])) < 1
    lost = np.array(fits[-1][3]) - np.pad(fits[0][3], (0, len(fits[-1][3]) - len(fits[0][3])))
    assert np.all(abs(lost - np.array(fits[-1][3]) / 5) < 1)


@pytest.mark.parametrize("common", range(100, 106))
def test_the_only_row_of_a_class_is_fitted(common: int, fits: list[tuple[Any, ...]]) -> None:
    """By its place among the others it would be held out in one case of five."""
    labels = torch.cat([torch.zeros(common, dtype=torch.long), torch.tensor([1])])
    train = Features(x=torch.randn(common + 1, 4), y=labels)
    linear_probe(train, train, C=(0.1, 1.0))
    assert fits[0][3][1] == 1


@pytest.mark.parametrize(
    "C", [[0.1, 1.0], np.array([0.1, 1.0]), OmegaConf.create([1.0, 0.1])], ids=["list", "np", "cfg"]
)
def test_candidates_of_any_sequence(C: Any, fits: list[tuple[Any, ...]]) -> None:
    train, test = blobs(60, 0), blobs(30, 1)
    linear_probe(train, test, C=C, max_iter=np.int64(300))
    assert [fit[1:3] for fit in fits[:2]] == [(0.1, 300), (1.0, 300)]
    linear_probe(train, test, C=np.float32(0.5))
    linear_probe(train, test, C=2)
    assert [fit[1] for fit in fits[-2:]] == [0.5, 2.0]


def test_a_choice_takes_any_features(fits: list[tuple[Any, ...]]) -> None:
    """bfloat16, another default device, a value that stands twice."""
    rows, test = blobs(60, 0), blobs(30, 1)
    train = Features(x=rows.x.bfloat16().requires_grad_(), y=rows.y)
    chosen = linear_probe(train, test, C=(1.0, 0.1, 1.0))
    assert [fit[:2] for fit in fits[:2]] == [(48, 0.1), (48, 1.0)] and fits[2][0] == 60
    with torch.device("meta"):
        assert linear_probe(train, test, C=(1.0, 0.1)) == chosen


def test_the_best_of_several_is_taken(fits: list[tuple[Any, ...]]) -> None:
    """With 1e-6 every row gets about the same vote; the choice must see that."""
    train, test = blobs(150, 0), blobs(90, 1)
    skewed = Features(x=torch.cat([train.x, train.x[::3]]), y=torch.cat([train.y, train.y[::3]]))
    alone = linear_probe(skewed, test, C=1.0)
    del fits[:]
    assert linear_probe(skewed, test, C=(1e-6, 1.0)) == alone
    # The final fit, too, begins where the stronger regularisation ends.
    assert [(count, strength) for count, strength, *_ in fits[2:]] == [(200, 1e-6), (200, 1.0)]
    assert linear_probe(skewed, test, C=1e-6) < alone


def test_importing_does_not_import_scikit_learn() -> None:
    code = "import sys, jepakit.evaluation; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_sklearn(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    for C in (1.0, (0.1, 1.0)):
        with pytest.raises(ImportError, match=r"pip install 'jepakit\[evaluation\]'"):
            linear_probe(blobs(30, 0), blobs(9, 1), C=C)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"C": 0.0},
            ValueError,
            "C=0: must be above 0",
        ),
        (
            {"C": (1.0, -1.0)},
            ValueError,
            "C[1]=-1: must be above 0",
        ),
        (
            {"C": ()},
            ValueError,
            "C=(): must hold at least one number",
        ),
        (
            {"C": "1"},
            TypeError,
            "C='1': must be a sequence of numbers, got str",
        ),
        ({"max_iter": 0}, ValueError, "max_iter=0: must be at least 1"),
        (
            {"test": blobs(9, 1, dim=5)},
            ValueError,
            "train.x (30, 6) and test.x (9, 5): must be equally wide",
        ),
        (
            {"train": Features(x=torch.randn(5, 6), y=torch.full((5,), 4))},
            ValueError,
            "train: must hold at least 2 classes, got only 4",
        ),
        (
            {"train": blobs(2, 0), "C": (0.1, 1.0)},
            ValueError,
            "train: too few rows to choose among C=(0.1, 1.0): got 2 of 2 classes",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    good: dict[str, Any] = {"train": blobs(30, 0), "test": blobs(9, 1)}
    with pytest.raises(error) as caught:
        linear_probe(**(good | arguments))
    assert text in str(caught.value)


@pytest.mark.no_hook
@pytest.mark.parametrize("name", ["train", "test"])
def test_sets_of_another_type_raise(name: str) -> None:
    rows_of_both = Features(x=torch.randn(4, 2), y=torch.arange(4))
    arguments: dict[str, Any] = {
        "train": rows_of_both,
        "test": rows_of_both,
        name: torch.ones(4, 2),
    }
    with pytest.raises(TypeError) as raised:
        linear_probe(**arguments)
    assert str(raised.value) == f"{name}: must be Features(x, y), got torch.Tensor"
