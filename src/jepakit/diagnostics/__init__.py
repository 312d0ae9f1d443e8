"""Diagnostics of features, and a monitor that reports when they collapse during training."""

from jepakit.diagnostics.collapse import (
    Collapse,
    CollapseError,
    CollapseKind,
    CollapseMonitor,
    CollapseWarning,
    Observation,
    Reference,
)
from jepakit.diagnostics.retrieval import TargetRetrieval, target_retrieval
from jepakit.diagnostics.similarity import alignment, teacher_student_cosine, uniformity
from jepakit.diagnostics.spectrum import alpha_req, effective_rank, isotropy, lidar, rankme
from jepakit.diagnostics.streaming import FeatureReport, FeatureStatistics, LidarStatistics
from jepakit.diagnostics.temporal import inverse_dynamics_r2, straightness
from jepakit.diagnostics.variance import (
    explained_variance,
    feature_std,
    mean_predictor_loss,
    norm_drift,
)

__all__ = [
    "Collapse",
    "CollapseError",
    "CollapseKind",
    "CollapseMonitor",
    "CollapseWarning",
    "FeatureReport",
    "FeatureStatistics",
    "LidarStatistics",
    "Observation",
    "Reference",
    "TargetRetrieval",
    "alignment",
    "alpha_req",
    "effective_rank",
    "explained_variance",
    "feature_std",
    "inverse_dynamics_r2",
    "isotropy",
    "lidar",
    "mean_predictor_loss",
    "norm_drift",
    "rankme",
    "straightness",
    "target_retrieval",
    "teacher_student_cosine",
    "uniformity",
]
