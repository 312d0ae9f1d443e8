"""Arguments from configuration files and NumPy, and submodules that no function hides."""

import importlib
import pkgutil
from types import ModuleType

import numpy as np
import pytest
import torch

from jepakit import losses
from jepakit.losses import (
    FeatureQueue,
    LearnableTemperature,
    SoftOptimalWeights,
    UncertaintyWeights,
    barlow,
    decay_weights,
    info_nce,
    invariance_loss,
    koleo,
    lejepa_loss,
    masked_huber,
    masked_smooth_l1,
    sigreg,
    variance_loss,
    vicreg,
)

ONE, TWO = np.float32(1), np.int64(2)
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
VALID = torch.ones(8, dtype=torch.bool)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("call", "configured", "plain"),
    [
        (lambda **k: masked_smooth_l1(X, 0 * X, VALID, **k), {"beta": TWO}, {"beta": 2.0}),
        (lambda **k: masked_huber(X, 0 * X, VALID, **k), {"delta": ONE}, {"delta": 1.0}),
        (lambda **k: variance_loss(X, **k), {"target_std": TWO}, {"target_std": 2.0}),
        (lambda **k: vicreg(X, X.flip(0), **k), {"variance_weight": TWO}, {"variance_weight": 2.0}),
        (
            lambda **k: barlow(X, X.flip(0), **k),
            {"off_diagonal_weight": ONE},
            {"off_diagonal_weight": 1.0},
        ),
        (lambda **k: koleo(X, **k), {"eps": ONE}, {"eps": 1.0}),
        (lambda **k: info_nce(X, X, **k), {"temperature": ONE}, {"temperature": 1.0}),
        (
            lambda **k: invariance_loss(X.view(4, 2, 4), **k),
            {"num_global_views": TWO},
            {"num_global_views": 2},
        ),
        (
            lambda **k: sigreg(X, generator=seeded(), **k),
            {"num_slices": TWO, "num_points": np.int32(9), "t_max": TWO},
            {"num_slices": 2, "num_points": 9, "t_max": 2.0},
        ),
        (
            lambda **k: lejepa_loss(X.view(2, 4, 4), generator=seeded(), **k),
            {"weight": np.float64(0.5), "num_slices": TWO},
            {"weight": 0.5, "num_slices": 2},
        ),
    ],
)
def test_losses_take_numpy_numbers(call, configured, plain) -> None:
    assert torch.equal(call(**configured), call(**plain))


def test_modules_store_plain_numbers() -> None:
    assert decay_weights(TWO, np.float64(0.5)) == decay_weights(2, 0.5)
    assert repr(SoftOptimalWeights(ONE)) == "SoftOptimalWeights(temperature=1.0)"
    assert repr(UncertaintyWeights(TWO, max_weight=TWO)) == "UncertaintyWeights(2, max_weight=2.0)"
    assert repr(FeatureQueue(TWO, np.int32(3))) == "FeatureQueue(2, 3)"
    temperature = LearnableTemperature(np.float64(0.5), TWO, initial=ONE)
    assert repr(temperature) == "LearnableTemperature(low=0.5, high=2.0)"


def test_every_submodule_is_a_module() -> None:
    """Trap: `jepakit.losses.vicreg` is a function that hides the module of its name."""
    for info in pkgutil.iter_modules(losses.__path__, "jepakit.losses."):
        importlib.import_module(info.name)
        assert isinstance(getattr(losses, info.name.rpartition(".")[2]), ModuleType), info.name
