"""Diagnostics of a whole data set, batch by batch, in memory that does not grow with it."""

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_int, check_number, check_process_group
from jepakit.diagnostics._moments import Moments
from jepakit.diagnostics._rows import check_features, masked_rows
from jepakit.diagnostics._spectrum import entropy_rank, isotropy_of, power_law, scatter_spectrum
from jepakit.diagnostics.lidar import check_groups, discriminant_rank
from jepakit.diagnostics.report import FeatureReport
from jepakit.diagnostics.uniformity import kernel_mean

__all__ = ["FeatureStatistics", "LidarStatistics"]


class FeatureStatistics:
    """Rank, RankMe, alpha, isotropy, uniformity, std and norm of features seen in batches.

    Holds the count, the mean and the scatter around it (`dim` x `dim`) in float64, joined batch by
    batch so that a large mean does not cancel the covariance. What is computed equals the functions
    of the same names on all rows at once, up to rounding; only uniformity, which compares pairs, is
    the mean of the batches' own.

    `update` reads nothing back from the device. `compute` does, and with a process group it is
    collective: two sums of `dim` x `dim` numbers, at any number of ranks and batches.

    Args:
        dim: Width of the features.
        uniformity_t: As `t` of `uniformity`, which takes time that is quadratic in the rows of a
            batch; None leaves it out, and the report says NaN.
        process_group: Join the rows of all ranks of this group in `compute`. Ranks may have other
            numbers of rows and batches, or none.

    Raises:
        TypeError: If `dim` is not an int, or `process_group` not a process group.
        ValueError: If `dim` is below 1 or `uniformity_t` not above 0.

    Example:
        >>> import torch
        >>> from jepakit.diagnostics import FeatureStatistics, effective_rank
        >>> features = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) + 1000
        >>> statistics = FeatureStatistics(4)
        >>> for batch in features.split(64):
        ...     statistics.update(batch)
        >>> report = statistics.compute()
        >>> abs(report.effective_rank - float(effective_rank(features))) < 1e-6
        True

    Source:
        jepakit's own; sets are joined as in Chan, Golub and LeVeque (1979).
    """

    def __init__(
        self,
        dim: int,
        *,
        uniformity_t: float | None = 2.0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        check_int("dim", dim, minimum=1)
        if uniformity_t is not None:
            check_number("uniformity_t", uniformity_t, positive=True)
        check_process_group(process_group)
        self.dim, self.uniformity_t, self.process_group = dim, uniformity_t, process_group
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._moments = Moments.none(self.dim)
        # Lengths; uniformity times rows; and the rows of batches that have one.
        self._sums = torch.zeros(3, dtype=torch.float64)

    def update(
        self, features: Float[Tensor, "*batch d"], valid: Bool[Tensor, "*batch"] | None = None
    ) -> None:
        """Add a batch.

        Args:
            features: Feature vectors; all axes but the last are rows. Pool tokens, or be aware that
                uniformity compares all pairs of a batch.
            valid: True where a row counts. All rows if None.

        Raises:
            TypeError: If `features` is not floating point or `valid` not bool.
            ValueError: If it is not `[*batch, dim]`, or `valid` does not fit.
        """
        check_features("features", features, valid, minimum=0)
        check_width(features, self.dim)
        rows, present = masked_rows(features, valid)
        batch = Moments.of(rows, present)
        self._moments = self._moments.to(rows.device).merged(batch)
        lengths = torch.linalg.vector_norm(rows, dim=1).sum()
        weight = torch.where(batch.count > 1, batch.count, torch.zeros_like(batch.count))
        even = torch.full_like(lengths, torch.nan)
        if self.uniformity_t is not None:
            even = kernel_mean(rows, present, self.uniformity_t).log()
        self._sums = self._sums.to(rows.device) + torch.stack([lengths, weight * even, weight])

    def compute(self) -> FeatureReport:
        """The numbers of all rows so far; waits for the device, and for all ranks.

        Raises:
            ValueError: If there are fewer than 2 rows over all ranks, or non-finite values among
                them.
        """
        group = self.process_group
        device = where_sums_meet(self._sums.device, group)
        moments = self._moments.to(device).over_ranks(group)
        sums = self._sums.to(device)
        if group is not None:
            dist.all_reduce(sums, group=group)
        count = check_moments(moments)
        spectrum = scatter_spectrum(moments.scatter, moments.sum_of_squares)
        raw = torch.linalg.eigvalsh(moments.second_moment).clamp(min=0)
        shown = torch.stack(
            [
                entropy_rank(spectrum),
                entropy_rank(raw.sqrt()),
                power_law(spectrum, 1, None),
                isotropy_of(moments.covariance * (spectrum[-1] > 0)),
                sums[1] / sums[2],
                sums[0] / count,
            ]
        ).tolist()
        return FeatureReport(
            rows=count,
            effective_rank=shown[0],
            rankme=shown[1],
            alpha=shown[2],
            isotropy=shown[3],
            uniformity=shown[4],
            norm=shown[5],
            std=moments.covariance.diagonal().sqrt().cpu(),
            mean=moments.mean.cpu(),
        )

    def __repr__(self) -> str:
        group = "" if self.process_group is None else ", process_group=..."
        return f"FeatureStatistics({self.dim}, uniformity_t={self.uniformity_t}{group})"


class LidarStatistics:
    """`lidar` of objects seen in batches, in memory of `dim` x `dim`.

    Args:
        dim: Width of the features.
        ridge: As in `lidar`.
        process_group: Join the objects of all ranks of this group in `compute`.

    Raises:
        TypeError: If `dim` is not an int, or `process_group` not a process group.
        ValueError: If `dim` is below 1 or `ridge` not above 0.

    Example:
        >>> import torch
        >>> from jepakit.diagnostics import LidarStatistics, lidar
        >>> views = torch.randn(50, 6, 4, generator=torch.Generator().manual_seed(0))
        >>> statistics = LidarStatistics(4)
        >>> for batch in views.split(16):
        ...     statistics.update(batch)
        >>> abs(statistics.compute() - float(lidar(views))) < 1e-9
        True

    Source:
        As `lidar`.
    """

    def __init__(
        self, dim: int, *, ridge: float = 1e-4, process_group: ProcessGroup | None = None
    ) -> None:
        check_int("dim", dim, minimum=1)
        check_number("ridge", ridge, positive=True)
        check_process_group(process_group)
        self.dim, self.ridge, self.process_group = dim, ridge, process_group
        self.reset()

    def reset(self) -> None:
        """Forget all objects."""
        self._between = Moments.none(self.dim)
        # Of views around their object's mean, so the mean of these rows is 0.
        self._within = Moments.none(self.dim)

    def update(self, features: Float[Tensor, "n q d"]) -> None:
        """Add a batch of objects, each with all of its views; reads nothing back.

        Args:
            features: `[n q d]`; another `q` in another batch is fine, one object in two is not.

        Raises:
            TypeError: If `features` is not floating point.
            ValueError: If it is not `[n q dim]` with at least 2 views of each object.
        """
        check_groups(features, objects=0)
        check_width(features, self.dim)
        rows, present = masked_rows(features, None)
        means = rows.view(features.shape).mean(dim=1)
        within = rows - means.repeat_interleave(features.shape[1], dim=0)
        objects = torch.ones(len(means), 1, dtype=torch.bool, device=rows.device)
        self._between = self._between.to(rows.device).merged(Moments.of(means, objects))
        self._within = self._within.to(rows.device).merged(Moments.of(within, present))

    def compute(self) -> float:
        """LiDAR of all objects so far; waits for the device, and for all ranks.

        Raises:
            ValueError: If there are fewer than 2 objects over all ranks, or non-finite values.
        """
        group = self.process_group
        device = where_sums_meet(self._between.mean.device, group)
        between = self._between.to(device).over_ranks(group)
        within = self._within.to(device).over_ranks(group)
        count = check_moments(between)
        return float(
            discriminant_rank(
                between.scatter / count,
                within.scatter / within.count,
                self.ridge,
                between.sum_of_squares / count,
            )
        )

    def __repr__(self) -> str:
        group = "" if self.process_group is None else ", process_group=..."
        return f"LidarStatistics({self.dim}, ridge={self.ridge}{group})"


def check_width(features: Tensor, dim: int) -> None:
    """Raise unless features have this many dimensions."""
    if features.shape[-1] != dim:
        raise ValueError(
            f"features {tuple(features.shape)}: must have the width of these statistics, {dim}"
        )


def check_moments(moments: Moments) -> int:
    """The number of rows; raise unless there are two, and all are finite."""
    count = int(moments.count)
    if count < 2:
        raise ValueError(f"compute: needs at least 2 rows over all ranks, got {count}")
    if not (moments.scatter.isfinite().all() and moments.mean.isfinite().all()):
        raise ValueError("compute: a batch that was added held NaN or infinity")
    return count


def where_sums_meet(device: torch.device, process_group: ProcessGroup | None) -> torch.device:
    """The device of the sums; for NCCL the current GPU, also on a rank that has seen nothing."""
    if process_group is None or device.type != "cpu":
        return device
    cpu_will_do = "gloo" in dist.get_backend(process_group)
    return device if cpu_will_do else torch.device("cuda", torch.cuda.current_device())
