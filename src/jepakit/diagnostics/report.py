"""`FeatureReport`: the numbers of `FeatureStatistics`, and how they are told."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

__all__ = ["FeatureReport"]


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureReport:
    """What `FeatureStatistics.compute` found; `print` it for a table, or read the fields.

    Args:
        rows: Feature vectors that were seen, over all ranks.
        effective_rank: As `jepakit.diagnostics.effective_rank` of all rows, in dimensions.
        rankme: As `rankme`, in dimensions.
        alpha: As `alpha_req`.
        isotropy: As `isotropy`, in [0, 1].
        uniformity: Mean of `uniformity` over batches, each weighted by its rows; NaN if no batch
            had two rows.
        norm: Mean length of a feature vector.
        std: As `feature_std`, float64, on the CPU.
        mean: Mean feature vector, float64, on the CPU.

    Example:
        >>> import torch
        >>> from jepakit.diagnostics import FeatureStatistics
        >>> statistics = FeatureStatistics(8)
        >>> statistics.update(torch.randn(500, 8, generator=torch.Generator().manual_seed(0)))
        >>> print(statistics.compute())
        500 rows of 8 dimensions
        effective rank           7.9
        RankMe                   8.0
        alpha                   0.21
        isotropy                0.98
        uniformity             -3.07
        norm                    2.72
        std, least              0.95
        std, median             0.99
        std, largest               1

    Source:
        jepakit's own.
    """

    rows: int
    effective_rank: float
    rankme: float
    alpha: float
    isotropy: float
    uniformity: float
    norm: float
    std: Float[Tensor, " d"] = field(repr=False)
    mean: Float[Tensor, " d"] = field(repr=False)

    def __str__(self) -> str:
        figures = [
            ("effective rank", f"{self.effective_rank:.1f}"),
            ("RankMe", f"{self.rankme:.1f}"),
            ("alpha", f"{self.alpha:.2f}"),
            ("isotropy", f"{self.isotropy:.2f}"),
            ("uniformity", f"{self.uniformity:.2f}"),
            ("norm", f"{self.norm:.3g}"),
            ("std, least", f"{float(self.std.min()):.2g}"),
            ("std, median", f"{float(self.std.median()):.2g}"),
            ("std, largest", f"{float(self.std.max()):.2g}"),
        ]
        lines = [f"{label:<20} {value:>7}" for label, value in figures]
        return "\n".join([f"{self.rows} rows of {len(self.std)} dimensions", *lines])
