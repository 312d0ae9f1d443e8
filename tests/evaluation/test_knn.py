"""Weighted nearest neighbours against a Python loop."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jepakit.evaluation.knn as knn
from jepakit.evaluation import Features, knn_accuracy


def rows(n: int, dim: int, classes: int, seed: int) -> Features:
    random = torch.Generator().manual_seed(seed)
    return Features(
        x=torch.randn(n, dim, generator=random),
        y=torch.randint(-1, classes - 1, (n,), generator=random),
    )


def naive(train: Features, test: Features, k: int, temperature: float) -> float:
    hits = 0
    for x, y in zip(test.x.double(), test.y.tolist(), strict=True):
        neighbours = []
        for bank_x, bank_y in zip(train.x.double(), train.y.tolist(), strict=True):
            neighbours.append((float(x @ bank_x / (x.norm() * bank_x.norm())), bank_y))
        votes: dict[int, float] = {}
        for similarity, label in sorted(neighbours, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(similarity / temperature)
        hits += max(votes, key=lambda label: votes[label]) == y
    return hits / len(test)


@given(
    n=st.integers(1, 30),
    dim=st.integers(2, 5),
    classes=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    temperature=st.floats(0.02, 2),
    data=st.data(),
)
def test_equals_a_loop(
    n: int, dim: int, classes: int, seed: int, temperature: float, data: Any
) -> None:
    """Trap: "similarity" = 1 - Euclidean distance. Labels need not start at 0 nor all be known."""
    k = data.draw(st.integers(1, n))
    train, test = rows(n, dim, classes, seed), rows(8, dim, classes + 1, seed + 1)
    assert knn_accuracy(train, test, k=k, temperature=temperature) == naive(
        train, test, k, temperature
    )


def test_autocast_around_it_changes_nothing() -> None:
    """Trap: products in half precision. Features mostly share a large mean, so that all
    similarities are near 1, where the resolution of bfloat16 is 1/256."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(20)
    x = 5 + 0.3 * torch.eye(10)[labels] + 0.05 * torch.randn(200, 10, generator=generator)
    train, test = Features(x=x[:100], y=labels[:100]), Features(x=x[100:], y=labels[100:])
    assert knn_accuracy(train, test, k=5) == 1.0
    with torch.autocast("cpu", torch.bfloat16):
        assert knn_accuracy(train, test, k=5) == 1.0


def test_length_does_not_matter() -> None:
    """Trap: Euclidean distance. The near row in angle is far away in space."""
    train = Features(x=torch.tensor([[100.0, 1.0], [0.0, 1.0]]), y=torch.tensor([0, 1]))
    test = Features(x=torch.tensor([[1.0, 0.1]]), y=torch.tensor([0]))
    assert knn_accuracy(train, test, k=1) == 1.0


def test_k_and_temperature_matter() -> None:
    """Law 12: one close row against two farther ones."""
    angles = torch.tensor([0.0, 0.3, 0.3])
    train = Features(x=torch.stack([angles.cos(), angles.sin()], 1), y=torch.tensor([5, 9, 9]))
    test = Features(x=torch.tensor([[1.0, 0.0]]), y=torch.tensor([5]))
    assert knn_accuracy(train, test, k=1) == 1.0
    assert knn_accuracy(train, test, k=3, temperature=0.01) == 1.0
    assert knn_accuracy(train, test, k=3, temperature=1.0) == 0.0


def test_numpy_numbers_are_taken() -> None:
    train, test = rows(30, 4, 3, 0), rows(50, 4, 3, 1)
    options = {"k": np.int64(5), "temperature": np.float32(0.5)}
    assert knn_accuracy(train, test, **options) == knn_accuracy(train, test, k=5, temperature=0.5)
    assert knn_accuracy(train, test, temperature=1) == knn_accuracy(train, test, temperature=1.0)


def test_tiny_temperatures_do_not_overflow() -> None:
    train, test = rows(30, 4, 3, 0), rows(50, 4, 3, 1)
    assert knn_accuracy(train, test, temperature=1e-5) == knn_accuracy(train, test, k=1)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = rows(40, 4, 3, 0), rows(25, 4, 3, 1)
    whole = knn_accuracy(train, test, k=5)
    for elements in (1, 40 * 7):
        monkeypatch.setattr(knn, "_CHUNK_ELEMENTS", elements)
        assert knn_accuracy(train, test, k=5) == whole


def test_collapsed_features_score_like_chance() -> None:
    """Trap: rows of zeros must not make every prediction right, or NaN."""
    train = Features(x=torch.zeros(40, 4), y=torch.arange(40) % 4)
    assert knn_accuracy(train, train) <= 0.25


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"k": 31}, ValueError, "k=31: must be at most 30"),
        ({"k": 0}, ValueError, "k=0: must be at least 1"),
        ({"k": 2.0}, TypeError, "k=2.0: must be an int, got float"),
        ({"temperature": 0.0}, ValueError, "temperature=0: must be above 0"),
        (
            {"test": rows(3, 5, 3, 0)},
            ValueError,
            "train.x (30, 4) and test.x (3, 5): must be equally wide",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    good: dict[str, Any] = {"train": rows(30, 4, 3, 0), "test": rows(5, 4, 3, 1)}
    with pytest.raises(error) as caught:
        knn_accuracy(**(good | arguments))
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
        knn_accuracy(**arguments)
    assert str(raised.value) == f"{name}: must be Features(x, y), got torch.Tensor"
