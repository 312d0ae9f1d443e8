"""Tests of the laws for a user's own components; hypothesis strategies are in `strategies`."""

import importlib as _importlib
from types import ModuleType as _ModuleType

from jepakit.testing.causal import assert_causal_contract
from jepakit.testing.encoder import assert_encoder_contract
from jepakit.testing.loss import assert_loss_contract
from jepakit.testing.order import assert_order_contract
from jepakit.testing.predictor import assert_predictor_contract
from jepakit.testing.sampler import assert_sampler_contract
from jepakit.testing.sets import assert_set_contract
from jepakit.testing.teacher import assert_teacher_contract

__all__ = [
    "assert_causal_contract",
    "assert_encoder_contract",
    "assert_loss_contract",
    "assert_order_contract",
    "assert_predictor_contract",
    "assert_sampler_contract",
    "assert_set_contract",
    "assert_teacher_contract",
]

# Imported on first use: it needs hypothesis.
_LAZY = frozenset({"strategies"})


def __getattr__(name: str) -> _ModuleType:
    if name in _LAZY:
        return _importlib.import_module(f"jepakit.testing.{name}")
    raise AttributeError(f"module 'jepakit.testing' has no attribute {name!r}")
