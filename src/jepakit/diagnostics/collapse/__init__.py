"""Detection of collapse during training: measurement, rules, report and monitor."""

from jepakit.diagnostics.collapse.criteria import SIGNS, CollapseKind, Sign, SignName
from jepakit.diagnostics.collapse.monitor import CollapseMonitor
from jepakit.diagnostics.collapse.observation import Observation, Reference
from jepakit.diagnostics.collapse.report import Collapse, CollapseError, CollapseWarning

__all__ = [
    "SIGNS",
    "Collapse",
    "CollapseError",
    "CollapseKind",
    "CollapseMonitor",
    "CollapseWarning",
    "Observation",
    "Reference",
    "Sign",
    "SignName",
]
