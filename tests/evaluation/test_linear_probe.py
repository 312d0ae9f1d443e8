"""The linear probe: what it can and cannot see, and that the test set chooses nothing."""

import builtins
import subprocess
import sys
from typing import Any

import pytest
import torch

import jepakit.evaluation.linear as linear
from jepakit.evaluation import Features, linear_probe


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


def test_collapsed_features_score_like_chance() -> None:
    train, test = (Features(x=torch.ones(30, 4), y=torch.arange(30) % 3) for _ in range(2))
    assert linear_probe(train, test) == pytest.approx(1 / 3)


def test_the_same_twice_and_no_trace_in_the_global_generators() -> None:
    train, test = blobs(150, 0, noise=3.0), blobs(90, 1, noise=3.0)
    state = torch.get_rng_state()
    scores = {linear_probe(train, test, C=(0.01, 1.0)) for _ in range(3)}
    assert len(scores) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_c_and_max_iter_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 12: both reach the solver."""
    fits = []

    def record(x: Any, y: Any, strength: float, max_iter: int) -> Any:
        fits.append((len(x), strength, max_iter))
        return fit(x, y, strength, max_iter)

    fit = linear._fit
    monkeypatch.setattr(linear, "_fit", record)
    linear_probe(blobs(30, 0), blobs(9, 1), C=0.5, max_iter=77)
    assert fits == [(30, 0.5, 77)]
    weights = [abs(fit(*_arrays(blobs(60, 0)), c, 500)[-1].coef_).sum() for c in (0.01, 1.0)]
    assert weights[0] < 0.5 * weights[1]


def test_a_choice_is_made_on_a_held_out_fifth_of_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test rows choose nothing; the best of several is refitted on all training rows."""
    fits, scored = [], []
    fit, score = linear._fit, linear._score

    def record_fit(x: Any, y: Any, strength: float, max_iter: int) -> Any:
        fits.append((len(x), strength))
        return fit(x, y, strength, max_iter)

    def record_score(probe: Any, x: Any, y: Any) -> float:
        scored.append((len(x), sorted(y.tolist())))
        return score(probe, x, y)

    monkeypatch.setattr(linear, "_fit", record_fit)
    monkeypatch.setattr(linear, "_score", record_score)
    train, test = blobs(150, 0, noise=0.1), blobs(12, 1)
    linear_probe(train, test, C=(1.0, 0.1))
    # Both are right everywhere: of equals the smallest, that is the most regularised.
    assert fits == [(120, 0.1), (120, 1.0), (150, 0.1)]
    assert scored[:2] == [(30, [0] * 10 + [1] * 10 + [2] * 10)] * 2
    assert scored[2][0] == len(test)


def test_the_best_of_several_is_taken() -> None:
    """With 1e-6 every row gets about the same vote; the choice must see that."""
    train, test = blobs(150, 0), blobs(90, 1)
    skewed = Features(x=torch.cat([train.x, train.x[::3]]), y=torch.cat([train.y, train.y[::3]]))
    alone = linear_probe(skewed, test, C=1.0)
    assert linear_probe(skewed, test, C=(1e-6, 1.0)) == alone
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
            "C=0.0: must be above 0",
        ),
        (
            {"C": (1.0, -1.0)},
            ValueError,
            "C=-1.0: must be above 0",
        ),
        (
            {"C": ()},
            ValueError,
            "C=(): must hold at least one number",
        ),
        (
            {"C": "1"},
            TypeError,
            "C='1': must be a number, got str",
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
            {"train": blobs(13, 0), "C": (0.1, 1.0)},
            ValueError,
            "train: must hold at least 5 rows of every class to choose among "
            "C=(0.1, 1.0), got 4 of class 1",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    good: dict[str, Any] = {"train": blobs(30, 0), "test": blobs(9, 1)}
    with pytest.raises(error) as caught:
        linear_probe(**(good | arguments))
    assert text in str(caught.value)


def _arrays(features: Features) -> tuple[Any, Any]:
    return features.x.numpy(), features.y.numpy()
