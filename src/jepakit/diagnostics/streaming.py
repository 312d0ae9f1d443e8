"""Diagnostics of a whole data set, accumulated over batches and ranks in constant memory."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import as_int, as_number, check_process_group, check_rows
from jepakit.diagnostics._moments import Moments
from jepakit.diagnostics._valid_rows import masked_rows
from jepakit.diagnostics.similarity import mean_kernel
from jepakit.diagnostics.spectrum import (
    check_views,
    discriminant_rank,
    entropy_rank,
    iso_score,
    power_law_exponent,
    scatter_spectrum,
)

__all__ = ["FeatureReport", "FeatureStatistics", "LidarStatistics"]


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureReport:
    """Result of `FeatureStatistics.compute`; `print` it for a table.

    Args:
        num_rows: Number of feature vectors, over all ranks.
        effective_rank: `jepakit.diagnostics.effective_rank` of all rows, in dimensions.
        rankme: `rankme` of all rows, in dimensions.
        alpha: `alpha_req` of all rows.
        isotropy: `isotropy` of all rows, in [0, 1].
        uniformity: Mean of that of the batches by their rows; NaN if no batch had two rows.
        norm: Mean length of a feature vector.
        std: `feature_std` of all rows, float64, on the CPU.
        mean: Mean feature vector, float64, on the CPU.

    Example:
        >>> import torch
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
    """

    num_rows: int
    effective_rank: float
    rankme: float
    alpha: float
    isotropy: float
    uniformity: float
    norm: float
    std: Float[Tensor, " d"] = field(repr=False)
    mean: Float[Tensor, " d"] = field(repr=False)

    def __str__(self) -> str:
        values = {
            "effective rank": f"{self.effective_rank:.1f}",
            "RankMe": f"{self.rankme:.1f}",
            "alpha": f"{self.alpha:.2f}",
            "isotropy": f"{self.isotropy:.2f}",
            "uniformity": f"{self.uniformity:.2f}",
            "norm": f"{self.norm:.3g}",
            "std, least": f"{float(self.std.min()):.2g}",
            "std, median": f"{float(self.std.median()):.2g}",
            "std, largest": f"{float(self.std.max()):.2g}",
        }
        lines = [f"{label:<20} {value:>7}" for label, value in values.items()]
        return "\n".join([f"{self.num_rows} rows of {len(self.std)} dimensions", *lines])


class FeatureStatistics:
    """Rank, RankMe, alpha, isotropy, uniformity, std and norm of features given in batches.

    Holds the count, the mean and the scatter around it (`dim` x `dim`) in float64. The results
    equal the functions of the same names on all rows at once, up to rounding; only uniformity,
    which compares pairs, is the mean over batches.

    `update` needs no host synchronisation. `compute` does, and with a process group it is
    collective: sums of at most `dim` x `dim` numbers, for any number of ranks and batches.

    Args:
        dim: Width of the features.
        uniformity_t: `t` of `uniformity`, whose time is quadratic in the rows of a batch; None
            skips it, and the report has NaN.
        process_group: Join the rows of all ranks of this group in `compute`. Ranks may have
            different numbers of rows and batches, or none.

    Raises:
        ValueError: By `update`, if the width is not `dim`; by `compute`, if there are fewer than 2
            rows over all ranks, or one of them was not finite.

    Example:
        >>> import torch
        >>> from jepakit.diagnostics import effective_rank
        >>> features = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) + 1000
        >>> statistics = FeatureStatistics(4)
        >>> for batch in features.split(64):
        ...     statistics.update(batch)
        >>> report = statistics.compute()
        >>> abs(report.effective_rank - float(effective_rank(features))) < 1e-6
        True

    Source:
        Moments are merged as in Chan, Golub and LeVeque (1979).
    """

    def __init__(
        self,
        dim: int,
        *,
        uniformity_t: float | None = 2.0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        check_process_group(process_group)
        self.dim = as_int("dim", dim, minimum=1)
        if uniformity_t is not None:
            uniformity_t = as_number("uniformity_t", uniformity_t, positive=True)
        self.uniformity_t = uniformity_t
        self.process_group = process_group
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._moments = Moments.empty(self.dim)
        # Sum of lengths; sum of the batches' uniformity times their rows; sum of these rows.
        self._sums = torch.zeros(3, dtype=torch.float64)

    def update(
        self, features: Float[Tensor, "*batch d"], valid: Bool[Tensor, "*batch"] | None = None
    ) -> None:
        """Add a batch.

        Args:
            features: Feature vectors; all axes but the last are rows. Uniformity compares all pairs
                of a batch: for patch features, pool them first or set `uniformity_t=None`.
            valid: True where a row counts. All rows if None.
        """
        check_rows("features", features, valid, minimum=0)
        _check_width(features, self.dim)
        rows, present = masked_rows(features, valid)
        batch = Moments.of(rows, present)
        self._moments = self._moments.to(rows.device).merge(batch)
        norms = torch.linalg.vector_norm(rows, dim=1).sum()
        weight = batch.count * (batch.count > 1)
        uniformity = torch.full_like(norms, torch.nan)
        if self.uniformity_t is not None:
            uniformity = mean_kernel(rows, present, self.uniformity_t).log()
        sums = torch.stack([norms, weight * uniformity, weight])
        self._sums = self._sums.to(rows.device) + sums

    def compute(self) -> FeatureReport:
        """Return the statistics of all rows so far, over all ranks."""
        device = _reduction_device(self._sums.device, self.process_group)
        moments = self._moments.to(device).all_reduce(self.process_group)
        sums = self._sums.to(device)
        if self.process_group is not None:
            dist.all_reduce(sums, group=self.process_group)
        num_rows = _checked_count(moments)
        spectrum = scatter_spectrum(moments.scatter, moments.sum_of_squares)
        # Eigenvalues of X'X are the squared singular values of X.
        singular_values = torch.linalg.eigvalsh(moments.second_moment).clamp(min=0).sqrt()
        scalars = {
            "effective_rank": entropy_rank(spectrum),
            "rankme": entropy_rank(singular_values),
            "alpha": power_law_exponent(spectrum, 1, None),
            "isotropy": iso_score(moments.covariance * (spectrum[-1] > 0)),
            "uniformity": sums[1] / sums[2],
            "norm": sums[0] / num_rows,
        }
        values = torch.stack(list(scalars.values())).tolist()
        return FeatureReport(
            num_rows=num_rows,
            **dict(zip(scalars, values, strict=True)),
            std=moments.covariance.diagonal().sqrt().cpu(),
            mean=moments.mean.cpu(),
        )

    def __repr__(self) -> str:
        group = "" if self.process_group is None else ", process_group=..."
        return f"FeatureStatistics({self.dim}, uniformity_t={self.uniformity_t}{group})"


class LidarStatistics:
    """`lidar` of objects given in batches, in memory of `dim` x `dim`.

    Args:
        dim: Width of the features.
        ridge: As in `lidar`.
        process_group: Join the objects of all ranks of this group in `compute`.

    Raises:
        ValueError: As `FeatureStatistics`, or if there are fewer than 2 views of each object.

    Example:
        >>> import torch
        >>> from jepakit.diagnostics import lidar
        >>> views = torch.randn(50, 6, 4, generator=torch.Generator().manual_seed(0))
        >>> statistics = LidarStatistics(4)
        >>> for batch in views.split(16):
        ...     statistics.update(batch)
        >>> abs(statistics.compute() - float(lidar(views))) < 1e-9
        True
    """

    def __init__(
        self, dim: int, *, ridge: float = 1e-4, process_group: ProcessGroup | None = None
    ) -> None:
        check_process_group(process_group)
        self.dim = as_int("dim", dim, minimum=1)
        self.ridge = as_number("ridge", ridge, positive=True)
        self.process_group = process_group
        self.reset()

    def reset(self) -> None:
        """Forget all objects."""
        self._between = Moments.empty(self.dim)  # of the objects' means
        self._within = Moments.empty(self.dim)  # of views minus their object's mean

    def update(self, features: Float[Tensor, "n q d"]) -> None:
        """Add a batch of objects, each with all of its views; no host synchronisation.

        Args:
            features: `q` views of each of `n` objects. Batches may have different `q`; one object
                must not be split over two batches.
        """
        check_views(features, min_objects=0)
        _check_width(features, self.dim)
        rows, present = masked_rows(features, None)
        views = rearrange(rows, "(n q) d -> n q d", q=features.shape[1])
        means = reduce(views, "n q d -> n d", "mean")
        within = rearrange(views - means[:, None], "n q d -> (n q) d")
        objects = torch.ones(len(means), 1, dtype=torch.bool, device=rows.device)
        self._between = self._between.to(rows.device).merge(Moments.of(means, objects))
        self._within = self._within.to(rows.device).merge(Moments.of(within, present))

    def compute(self) -> float:
        """Return LiDAR of all objects so far, over all ranks."""
        device = _reduction_device(self._between.mean.device, self.process_group)
        between = self._between.to(device).all_reduce(self.process_group)
        within = self._within.to(device).all_reduce(self.process_group)
        num_objects = _checked_count(between)
        rank = discriminant_rank(
            between.scatter / num_objects,
            within.scatter / within.count,
            self.ridge,
            between.sum_of_squares / num_objects,
        )
        return float(rank)

    def __repr__(self) -> str:
        group = "" if self.process_group is None else ", process_group=..."
        return f"LidarStatistics({self.dim}, ridge={self.ridge}{group})"


def _check_width(features: Tensor, dim: int) -> None:
    if features.shape[-1] != dim:
        shape = tuple(features.shape)
        raise ValueError(f"features {shape}: must have the width of these statistics, {dim}")


def _checked_count(moments: Moments) -> int:
    """Return the number of rows; raise unless there are two, and all are finite."""
    count = int(moments.count)
    if count < 2:
        raise ValueError(f"compute: needs at least 2 rows over all ranks, got {count}")
    if not (moments.scatter.isfinite().all() and moments.mean.isfinite().all()):
        raise ValueError("compute: a batch passed to update held NaN or infinity")
    return count


def _reduction_device(device: torch.device, process_group: ProcessGroup | None) -> torch.device:
    """Device on which the group can reduce: for NCCL a GPU, also on a rank without any batch."""
    if process_group is None or device.type != "cpu" or "gloo" in dist.get_backend(process_group):
        return device
    return torch.device("cuda", torch.cuda.current_device())
