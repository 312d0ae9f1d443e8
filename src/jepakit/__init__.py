"""Building blocks for joint-embedding predictive architectures."""

from jepakit._checks import TYPECHECK as _TYPECHECK

__version__ = "0.1.0"

if _TYPECHECK:
    # Installed before anything else is imported, so that every annotation below is checked.
    from jaxtyping import install_import_hook as _install_import_hook

    import jepakit._typecheck  # noqa: F401  (the hook looks it up by name)

    _install_import_hook("jepakit", "jepakit._typecheck.check")

import importlib as _importlib
from types import ModuleType as _ModuleType

from jepakit.diagnostics import CollapseMonitor, effective_rank
from jepakit.losses import (
    hierarchical_loss,
    masked_cosine,
    masked_huber,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
    normalize_targets,
)
from jepakit.masking import (
    IndexedDataset,
    InfeasibleMaskError,
    MaskCollator,
    MultiBlockMask,
    RandomMask,
)
from jepakit.nn import (
    HierarchicalPyramid,
    MaskedPredictor,
    MaskedViT,
    UnsupportedBackboneError,
)
from jepakit.schedules import constant, cosine, linear, warmup_cosine
from jepakit.teacher import EMATeacher
from jepakit.tokens import Masks, TokenSet, mean_tokens, put_tokens, take_tokens

__all__ = [
    "CollapseMonitor",
    "EMATeacher",
    "HierarchicalPyramid",
    "IndexedDataset",
    "InfeasibleMaskError",
    "MaskCollator",
    "MaskedPredictor",
    "MaskedViT",
    "Masks",
    "MultiBlockMask",
    "RandomMask",
    "TokenSet",
    "UnsupportedBackboneError",
    "constant",
    "cosine",
    "effective_rank",
    "hierarchical_loss",
    "linear",
    "masked_cosine",
    "masked_huber",
    "masked_l1",
    "masked_mse",
    "masked_smooth_l1",
    "mean_tokens",
    "normalize_targets",
    "put_tokens",
    "take_tokens",
    "warmup_cosine",
]

# Reachable as `jepakit.plots` and so on, and imported only then: some of them cost time to import.
_LAZY = frozenset({"checkpoints", "data", "evaluation", "interop", "optim", "plots", "testing"})


def __getattr__(name: str) -> _ModuleType:
    if name in _LAZY:
        return _importlib.import_module(f"jepakit.{name}")
    raise AttributeError(f"module 'jepakit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
