"""attentive_probe: an attention head on frozen patch features."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from jepakit.evaluation import attentive, attentive_probe, evaluate

QUICK = {"num_heads": 2, "epochs": 20, "lr": 3e-3}  # accuracy 0.4 to 0.9, depending on the seed
STEADY = QUICK | {"epochs": 60}  # 0.96 to 1 for seeds 0 to 5


def needles(count: int, seed: int, num_features: int = 9) -> TensorDataset:
    """Features of noise; the marked one holds the class, and its opposite cancels the mean."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.randn(count, num_features, 8, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    sign = torch.eye(8)[labels]
    places = torch.rand(count, num_features, generator=generator).argsort(dim=1)
    rows = torch.arange(count)
    x[rows, places[:, 0]] += sign + torch.eye(8)[7]
    x[rows, places[:, 1]] -= sign + torch.eye(8)[7]
    return TensorDataset(x, 10 * labels)


@pytest.fixture(scope="module")
def sets() -> tuple[TensorDataset, TensorDataset]:
    return needles(400, 0), needles(100, 1)


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_finds_what_a_mean_loses(sets, seed):
    """Traps: features judged by their mean alone, though a single one holds the class; a claim
    that holds for one seed by one image."""
    mean = evaluate(lambda x: x.mean(dim=1), *sets)
    assert mean.linear < 0.6
    assert attentive_probe(nn.Identity(), *sets, **STEADY, seed=seed) > 0.9


def test_a_default_device_changes_nothing_and_a_default_type_breaks_nothing(sets, monkeypatch):
    """As of a user who has made an accelerator the default; its loader is the caller's matter."""

    def whole(dataset: TensorDataset, *_: object) -> list[tuple[Tensor, ...]]:
        return [dataset.tensors]

    monkeypatch.setattr(attentive, "subset_loader", whole)
    options = QUICK | {"lr": (1e-6, 3e-3)}
    once = attentive_probe(nn.Identity(), *sets, **options)
    with torch.device("meta"):
        assert attentive_probe(nn.Identity(), *sets, **options) == once
    torch.set_default_dtype(torch.float64)
    try:
        assert attentive_probe(nn.Identity(), *sets, **options) > 0.45  # chance is 0.33
    finally:
        torch.set_default_dtype(torch.float32)


def test_does_not_see_the_test_labels(sets):
    """Permuted labels of the test set leave chance, and labels that are unknown are wrong."""
    train, test = sets
    x, y = test.tensors
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    assert attentive_probe(nn.Identity(), train, TensorDataset(x, shuffled), **QUICK) < 0.6
    half = torch.where(torch.arange(len(y)) % 2 == 0, y, 5)  # between two that are known
    known = attentive_probe(nn.Identity(), train, TensorDataset(x, half), **STEADY)
    assert 0.4 < known <= 0.5


def test_same_numbers_every_time_and_nothing_is_touched(sets, monkeypatch):
    """Law 15. Traps: a probe that draws from torch's own generator; one that trains the encoder, or
    leaves it in another mode."""
    encoder = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.9))
    before = [parameter.clone() for parameter in encoder.parameters()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)  # no one's generator is seeded anew
    once = attentive_probe(encoder, *sets, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    half = partial(torch.autocast, "cpu", torch.bfloat16)
    for mode in (torch.no_grad, torch.inference_mode, half):  # as around the rest of an evaluation
        with mode():
            assert attentive_probe(encoder, *sets, **QUICK, batch_size=7) == once
    assert encoder.training and encoder[1].training
    for parameter, was in zip(encoder.parameters(), before, strict=True):
        assert torch.equal(parameter, was) and parameter.grad is None


def test_the_rate_is_chosen_on_a_part_of_the_training_images(sets):
    train, test = sets
    single = {rate: attentive_probe(nn.Identity(), *sets, **QUICK | {"lr": rate})
              for rate in (1e-6, 3e-3)}  # fmt: skip
    assert single[1e-6] < 0.45 < single[3e-3]
    assert attentive_probe(nn.Identity(), *sets, **QUICK | {"lr": (1e-6, 3e-3)}) == single[3e-3]
    # Labels of the test set do not choose: they are all wrong here.
    x, y = test.tensors
    wrong = TensorDataset(x, (y + 10) % 30)
    chosen = attentive_probe(nn.Identity(), train, wrong, **QUICK | {"lr": (1e-6, 3e-3)})
    assert chosen == attentive_probe(nn.Identity(), train, wrong, **QUICK) < 0.3


def test_no_rate_is_judged_on_rows_that_it_was_fitted_on(sets, monkeypatch):
    """Trap: the rate that memorises best is chosen."""
    calls: list[tuple[str, float | None, Tensor, set[int]]] = []
    fit, accuracy = attentive._fit_head, attentive._accuracy

    def fit_noted(features, class_indices, rows, lr, **options):
        calls.append(("fit", lr, features, set(rows.tolist())))
        return fit(features, class_indices, rows, lr, **options)

    def accuracy_noted(head, features, class_indices, rows):
        calls.append(("judge", None, features, set(rows.tolist())))
        return accuracy(head, features, class_indices, rows)

    monkeypatch.setattr(attentive, "_fit_head", fit_noted)
    monkeypatch.setattr(attentive, "_accuracy", accuracy_noted)
    rates = [1e-4, 1e-3, 3e-3]
    attentive_probe(nn.Identity(), *sets, num_heads=2, epochs=1, lr=rates)
    assert [name for name, *_ in calls] == ["fit", "judge"] * 4
    everything = set(range(len(sets[0])))
    for rate, fitted, judged in zip(rates, calls[:6:2], calls[1:6:2], strict=True):
        assert fitted[1] == rate and torch.equal(fitted[2], judged[2])
        assert fitted[3] and judged[3]
        assert not fitted[3] & judged[3] and fitted[3] | judged[3] == everything
    (_, rate, _, fitted), (_, _, features, _) = calls[6:]
    assert rate in rates and fitted == everything
    assert len(features) == len(sets[1])


@pytest.mark.parametrize(
    "change",
    [
        {"num_heads": 4}, {"epochs": 3}, {"lr": 1e-3}, {"weight_decay": 50.0}, {"num_images": 60},
        {"seed": 1}, {"prepare": lambda x: -x + x.amax(dim=1, keepdim=True)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_argument_matters(sets, change):
    """Law 12."""
    train, test = needles(150, 2), needles(400, 3)
    options = QUICK | {"epochs": 10}
    base = attentive_probe(nn.Identity(), train, test, **options)
    assert attentive_probe(nn.Identity(), train, test, **options | change) != base


def test_prepare_and_modules_as_in_evaluate(sets):
    train, test = (
        TensorDataset((x * 50 + 128).to(torch.uint8), y) for x, y in (s.tensors for s in sets)
    )
    assert attentive_probe(
        nn.Identity(), train, test, prepare=lambda x: (x.float() - 128) / 50, **STEADY
    ) > 0.9  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "num_heads=3: must divide the width of the features, 8"),
        ({"epochs": 0}, "epochs=0"),
        ({"lr": 0.0}, "lr=0: must be above 0"),
        ({"lr": ()}, r"lr=\(\): must hold at least one number"),
        ({"weight_decay": -1.0}, "weight_decay=-1: must be at least 0"),
        ({"num_images": 0}, "num_images=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_numbers_raise(sets, change, message):
    with pytest.raises(ValueError, match=message):
        attentive_probe(nn.Identity(), *sets, **QUICK | change)


def test_rates_of_any_sequence(sets):
    train, test = needles(100, 2), needles(50, 3)
    options = {"num_heads": np.int64(2), "epochs": 2, "weight_decay": 0}
    scores = {
        attentive_probe(nn.Identity(), train, test, **options, lr=lr)
        for lr in ((1e-3, 3e-3), [1e-3, 3e-3], np.array([3e-3, 1e-3]))
    }
    assert len(scores) == 1


def test_bad_sets_raise(sets, monkeypatch):
    train, test = sets
    monkeypatch.setattr(attentive, "_fit_head", lambda *_, **__: pytest.fail("trained before"))

    def pooled(x: Tensor) -> Tensor:
        return x.mean(dim=1)

    with pytest.raises(
        ValueError, match=r"must return \[b, n, d\] with b = 256, got \(256, 8\) for batch 0"
    ):
        attentive_probe(pooled, train, test, **QUICK)
    single = TensorDataset(train.tensors[0], torch.zeros(400, dtype=torch.int64))
    with pytest.raises(ValueError, match="train: must hold at least 2 classes, got only 0"):
        attentive_probe(nn.Identity(), single, single, **QUICK)
    other = TensorDataset(test.tensors[0], test.tensors[1] + 1)
    several = QUICK | {"lr": (1e-3, 3e-3)}
    with pytest.raises(ValueError, match="test: must share classes with train"):
        attentive_probe(nn.Identity(), train, other, **several)
    with pytest.raises(
        ValueError, match=r"must return \[9, 8\] for every image, got \(16, 8, 8\) for batch 12"
    ):
        attentive_probe(lambda x: x[:, : 8 + (len(x) > 16)], train, test, batch_size=32, **QUICK)
    with pytest.raises(
        ValueError, match=r"encode: must return at least one feature per image, got \(400, 0, 8\)"
    ):
        attentive_probe(lambda x: x[:, :0], train, test, **QUICK)
    narrow = TensorDataset(test.tensors[0][..., :6], test.tensors[1])
    with pytest.raises(ValueError, match="features of one width, got 8 for train and 6 for test"):
        attentive_probe(nn.Identity(), train, narrow, **several)
    few = TensorDataset(train.tensors[0][:2], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"too few rows to choose among lr=\(0.1, 0.2\): got 2 of"):
        attentive_probe(nn.Identity(), few, few, **QUICK | {"lr": (0.1, 0.2)})


def test_a_head_that_diverges_is_no_score(sets):
    """Trap: NaN has an arg max, so a dead head is right as often as chance."""
    options = QUICK | {"epochs": 2}
    for count, epochs in ((400, 2), (60, 1)):  # in the last step, too
        huge = options | {"lr": 1e30, "num_images": count, "epochs": epochs}
        with pytest.raises(ValueError, match=r"lr=1e\+30: the head's outputs are not finite"):
            attentive_probe(nn.Identity(), *sets, **huge)
    once = attentive_probe(nn.Identity(), *sets, **options)
    assert attentive_probe(nn.Identity(), *sets, **options | {"lr": (3e-3, 1e30)}) == once
