"""Losses over ragged sets of tokens, and what their targets are normalised with."""

from jepakit.losses.hierarchical import hierarchical_loss
from jepakit.losses.level_weights import SoftOptimalWeights, decay_weights
from jepakit.losses.masked import (
    masked_cosine,
    masked_huber,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
)
from jepakit.losses.targets import normalize_targets
from jepakit.losses.uncertainty import UncertaintyWeights

__all__ = [
    "SoftOptimalWeights",
    "UncertaintyWeights",
    "decay_weights",
    "hierarchical_loss",
    "masked_cosine",
    "masked_huber",
    "masked_l1",
    "masked_mse",
    "masked_smooth_l1",
    "normalize_targets",
]
