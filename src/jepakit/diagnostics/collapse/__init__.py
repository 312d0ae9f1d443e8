"""Detection of collapse during training: measurement, rules, report and monitor."""

from jepakit.diagnostics.collapse.monitor import CollapseMonitor
from jepakit.diagnostics.collapse.observation import Observation, Reference
from jepakit.diagnostics.collapse.report import Collapse, CollapseError, CollapseWarning
from jepakit.diagnostics.collapse.signs import SIGNS, CollapseKind, Sign, SignName

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
