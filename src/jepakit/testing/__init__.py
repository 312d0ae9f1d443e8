"""Tests of the laws for a user's own components; hypothesis strategies are in `strategies`."""

from jepakit.testing.encoder import assert_encoder_contract
from jepakit.testing.loss import assert_loss_contract
from jepakit.testing.predictor import assert_predictor_contract
from jepakit.testing.sampler import assert_sampler_contract
from jepakit.testing.teacher import assert_teacher_contract

__all__ = [
    "assert_encoder_contract",
    "assert_loss_contract",
    "assert_predictor_contract",
    "assert_sampler_contract",
    "assert_teacher_contract",
]
