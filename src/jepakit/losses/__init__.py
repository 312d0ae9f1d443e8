"""Losses over ragged sets of tokens, and what their targets are normalised with."""

from jepakit.losses.masked import (
    masked_cosine,
    masked_huber,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
)
from jepakit.losses.targets import normalize_targets

__all__ = [
    "masked_cosine",
    "masked_huber",
    "masked_l1",
    "masked_mse",
    "masked_smooth_l1",
    "normalize_targets",
]
