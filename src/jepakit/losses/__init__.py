"""Losses over ragged sets of tokens, and what their targets are normalised with."""

from jepakit.losses.masked import (
    masked_cosine,
    masked_huber,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
)
from jepakit.losses.targets import normalize_targets
from jepakit.losses.vicreg import covariance_loss, variance_loss, vicreg

__all__ = [
    "covariance_loss",
    "masked_cosine",
    "masked_huber",
    "masked_l1",
    "masked_mse",
    "masked_smooth_l1",
    "normalize_targets",
    "variance_loss",
    "vicreg",
]
