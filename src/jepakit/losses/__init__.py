"""Losses: masked regression over ragged sets, regularisers, contrastive and relational losses."""

from jepakit.losses.contrastive import FeatureQueue, LearnableTemperature, info_nce
from jepakit.losses.hierarchical import (
    SoftOptimalWeights,
    UncertaintyWeights,
    decay_weights,
    hierarchical_loss,
)
from jepakit.losses.lejepa import lejepa_loss, sigreg
from jepakit.losses.loss_sum import LossSum
from jepakit.losses.masked import (
    masked_cosine,
    masked_huber,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
)
from jepakit.losses.next_step import next_step_loss
from jepakit.losses.regularizers import (
    barlow,
    covariance_loss,
    invariance_loss,
    koleo,
    variance_loss,
    vicreg,
)
from jepakit.losses.relational import relational_loss
from jepakit.losses.targets import TargetCentering, normalize_targets

__all__ = [
    "FeatureQueue",
    "LearnableTemperature",
    "LossSum",
    "SoftOptimalWeights",
    "TargetCentering",
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
    "next_step_loss",
    "normalize_targets",
    "relational_loss",
    "sigreg",
    "variance_loss",
    "vicreg",
]
