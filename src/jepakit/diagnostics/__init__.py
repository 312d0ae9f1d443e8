"""Numbers that tell whether features have collapsed, and a monitor that speaks up when they do."""

from jepakit.diagnostics.agreement import (
    explained_variance,
    mean_predictor_loss,
    teacher_student_cosine,
)
from jepakit.diagnostics.alpha import alpha_req
from jepakit.diagnostics.collapse import (
    Collapse,
    CollapseError,
    CollapseKind,
    CollapseWarning,
    Observation,
    Reference,
)
from jepakit.diagnostics.isotropy import isotropy
from jepakit.diagnostics.lidar import lidar
from jepakit.diagnostics.monitor import CollapseMonitor
from jepakit.diagnostics.rank import effective_rank, rankme
from jepakit.diagnostics.report import FeatureReport
from jepakit.diagnostics.spread import feature_std, norm_drift
from jepakit.diagnostics.streaming import FeatureStatistics, LidarStatistics
from jepakit.diagnostics.uniformity import alignment, uniformity

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
    "alignment",
    "alpha_req",
    "effective_rank",
    "explained_variance",
    "feature_std",
    "isotropy",
    "lidar",
    "mean_predictor_loss",
    "norm_drift",
    "rankme",
    "teacher_student_cosine",
    "uniformity",
]
