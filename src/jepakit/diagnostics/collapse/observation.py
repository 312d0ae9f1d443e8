"""Measurement of one batch: `Observation`, and the state kept for each dimension."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit.diagnostics._moments import Moments
from jepakit.diagnostics._valid_rows import masked_rows
from jepakit.diagnostics.spectrum import entropy_rank, scatter_spectrum

__all__ = ["BatchStatistics", "DeadDimensions", "Observation", "Reference", "measure"]

# A dimension is dead if its std is at most this fraction of the upper quartile over dimensions, ...
_DEAD_RATIO = 1e-3
# ... or if std / reference std is below this fraction of the upper quartile of these ratios.
_DIED_RATIO = 0.05


class Observation(NamedTuple):
    """Statistics of one batch, as `CollapseMonitor.history` holds them.

    `step` is the training step and `num_rows` the number of feature vectors. `std` is the root of
    the total variance, `relative_std` the same over the root mean square length, in [0, 1], and
    `rank` the effective rank. `off_axis_ratio` is the fraction of the variance that is not along
    the first principal axis, `dead_ratio` that of dimensions dead for `patience` observations.
    """

    step: int
    num_rows: int
    std: float
    relative_std: float
    rank: float
    off_axis_ratio: float
    dead_ratio: float


class Reference(NamedTuple):
    """Levels that a run is compared with: medians of the fields of `Observation`.

    Set by the first 10 observations, and raised to any median over 100 that is higher.
    """

    num_rows: float
    std: float
    relative_std: float
    rank: float


class BatchStatistics(NamedTuple):
    """Statistics of a batch on its device: scalars in float64, but for `variance`."""

    num_rows: Tensor
    std: Tensor
    relative_std: Tensor
    rank: Tensor
    off_axis_ratio: Tensor
    finite: Tensor  # 1 if all valid rows of all ranks are finite, else 0
    variance: Tensor  # [d], of each dimension


def measure(
    features: Tensor, valid: Tensor | None, process_group: ProcessGroup | None
) -> BatchStatistics:
    """Compute statistics of the valid rows of all ranks, without a host synchronisation."""
    rows, present = masked_rows(features, valid)
    # The eigenvalue solver raises on NaN: compute with zeros instead, and return the flag.
    finite_entries = rows.isfinite()
    rows, finite = rows.where(finite_entries, 0), finite_entries.all().to(rows.dtype)
    moments = Moments.of(rows, present)
    if process_group is not None:
        finite = finite.unsqueeze(0)
        dist.all_reduce(finite, op=dist.ReduceOp.MIN, group=process_group)
        finite = finite.squeeze(0)
        moments = moments.all_reduce(process_group)
    matrix = moments.scatter
    if process_group is None and len(rows) < rows.shape[1]:
        # The Gram matrix is smaller and has the same nonzero eigenvalues.
        centred = (rows - moments.mean).masked_fill(~present, 0)
        matrix = centred @ centred.T
    spectrum = scatter_spectrum(matrix, moments.sum_of_squares)
    count = moments.count.clamp(min=1)
    mean_square = moments.sum_of_squares / count
    relative_variance = moments.scatter.diagonal().sum() / count / mean_square
    variance = moments.covariance.diagonal()
    return BatchStatistics(
        num_rows=moments.count,
        std=variance.sum().sqrt(),
        relative_std=relative_variance.sqrt().nan_to_num(),
        rank=entropy_rank(spectrum),
        off_axis_ratio=(spectrum[:-1].sum() / spectrum.sum()).nan_to_num(),
        finite=finite,
        variance=variance,
    )


class DeadDimensions:
    """Count for each dimension how many observations in a row it has been dead."""

    def __init__(self) -> None:
        self.streaks: Tensor | None = None  # [d], observations in a row
        self.reference_variance: Tensor | None = None  # [d], largest while the reference was set

    @property
    def dim(self) -> int | None:
        """Width of the features; None before the first observation."""
        return None if self.streaks is None else len(self.streaks)

    def update(
        self,
        variance: Tensor,
        *,
        usable: Tensor,
        judged: Tensor,
        set_reference: bool,
        patience: int,
    ) -> Tensor:
        """Take the variances of a batch; return the fraction dead for `patience` observations.

        A batch that is not `usable` does not change the reference, and one that is not `judged`
        (usable, with enough rows) does not change the counts. Both are tensors, so that no host
        synchronisation is needed.
        """
        if self.streaks is None or self.reference_variance is None:
            self.streaks = torch.zeros_like(variance)
            self.reference_variance = torch.zeros_like(variance)
        streaks = self.streaks.to(variance.device)
        reference = self.reference_variance.to(variance.device)
        std = variance.sqrt()
        dead = std <= _DEAD_RATIO * _upper_quartile(std)
        if set_reference:
            largest = torch.maximum(reference, variance)
            self.reference_variance = torch.where(usable, largest, reference)
        else:
            # Relative to the other dimensions, so that a fall of all features together counts as
            # full or slow collapse instead. The clamp: where others have grown, a dimension that
            # kept its std is not dead.
            known = reference > 0
            kept = torch.where(known, std / reference.sqrt(), 0)
            dead = dead | (known & (kept < _DIED_RATIO * _upper_quartile(kept).clamp(max=1)))
        self.streaks = torch.where(judged, (streaks + 1) * dead, streaks)
        return (self.streaks >= patience).double().mean()

    def state_dict(self) -> dict[str, Any]:
        """Both tensors; None before the first observation."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in vars(self):
            setattr(self, name, None if state[name] is None else state[name].clone())


def _upper_quartile(values: Tensor) -> Tensor:
    quartile: Tensor = values.sort().values[(3 * len(values)) // 4]
    return quartile
