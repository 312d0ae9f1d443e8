"""Audit of a sampler: statistics of the masks that it returns."""

from jepakit.masking.audit.report import MaskAudit, Spread
from jepakit.masking.audit.sampler_audit import audit_masks

__all__ = ["MaskAudit", "Spread", "audit_masks"]
