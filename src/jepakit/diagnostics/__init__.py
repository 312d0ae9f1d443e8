"""Numbers that tell whether features have collapsed."""

from jepakit.diagnostics.rank import effective_rank

__all__ = ["effective_rank"]
