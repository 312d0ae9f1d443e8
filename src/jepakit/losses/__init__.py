"""Losses: masked regression over ragged sets, regularisers, contrastive and relational ones."""

from jepakit.losses.barlow import barlow
from jepakit.losses.hierarchical import hierarchical_loss
from jepakit.losses.info_nce import info_nce
from jepakit.losses.invariance import invariance_loss
from jepakit.losses.koleo import koleo
from jepakit.losses.lejepa import lejepa_loss
from jepakit.losses.level_weights import SoftOptimalWeights, decay_weights
from jepakit.losses.loss_sum import LossSum
from jepakit.losses.masked import (
    masked_cosine,
    masked_huber,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
)
from jepakit.losses.queue import FeatureQueue
from jepakit.losses.relational import relational_loss
from jepakit.losses.sigreg import sigreg
from jepakit.losses.targets import normalize_targets
from jepakit.losses.temperature import LearnableTemperature
from jepakit.losses.uncertainty import UncertaintyWeights
from jepakit.losses.vicreg import covariance_loss, variance_loss, vicreg

__all__ = [
    "FeatureQueue",
    "LearnableTemperature",
    "LossSum",
    "SoftOptimalWeights",
    "UncertaintyWeights",
    "barlow",
    "covariance_loss",
    "decay_weights",
    "hierarchical_loss",
    "info_nce",
    "invariance_loss",
    "koleo",
    "lejepa_loss",
    "masked_cosine",
    "masked_huber",
    "masked_l1",
    "masked_mse",
    "masked_smooth_l1",
    "normalize_targets",
    "relational_loss",
    "sigreg",
    "variance_loss",
    "vicreg",
]
