"""Count, mean and scatter of rows, merged over batches and ranks without cancellation."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Number of rows, their mean and their scatter around it, in float64.

    Two sets are merged around their common mean (Chan, Golub and LeVeque, 1979), so a large mean
    does not cancel the scatter as it would in $\sum x x^\top - n \mu \mu^\top$:

    $$S = S_a + S_b + \frac{n_a n_b}{n_a + n_b} (\mu_a - \mu_b)(\mu_a - \mu_b)^\top$$
    """

    count: Tensor  # scalar
    mean: Tensor  # [d]
    scatter: Tensor  # [d d]

    @classmethod
    def empty(cls, dim: int) -> "Moments":
        zeros = torch.zeros(1 + dim, dim, dtype=torch.float64)
        return cls(zeros.new_zeros(()), zeros[0], zeros[1:])

    @classmethod
    def of(cls, rows: Tensor, present: Tensor) -> "Moments":
        """Moments of the present rows; the others must be zeros."""
        count = present.sum().to(rows.dtype)
        mean = rows.sum(dim=0) / count.clamp(min=1)
        centred = (rows - mean).masked_fill(~present, 0)
        return cls(count, mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        weight = other.count / count.clamp(min=1)
        shift = other.mean - self.mean
        between = self.count * weight * torch.outer(shift, shift)
        return Moments(count, self.mean + weight * shift, self.scatter + other.scatter + between)

    def all_reduce(self, process_group: dist.ProcessGroup | None) -> "Moments":
        """Moments of the rows of all ranks; two sums, of `d * d` numbers at most."""
        if process_group is None:
            return self
        sums = torch.cat([self.count * self.mean, self.count.unsqueeze(0)])
        dist.all_reduce(sums, group=process_group)
        count = sums[-1]
        mean = sums[:-1] / count.clamp(min=1)
        # Each rank's scatter around the common mean; these add up.
        shift = self.mean - mean
        scatter = self.scatter + self.count * torch.outer(shift, shift)
        dist.all_reduce(scatter, group=process_group)
        return Moments(count, mean, scatter)

    def to(self, device: torch.device) -> "Moments":
        return Moments(self.count.to(device), self.mean.to(device), self.scatter.to(device))

    @property
    def covariance(self) -> Tensor:
        return self.scatter / (self.count - 1).clamp(min=1)

    @property
    def second_moment(self) -> Tensor:
        """Sum of the outer products of the rows, not centred."""
        return self.scatter + self.count * torch.outer(self.mean, self.mean)

    @property
    def sum_of_squares(self) -> Tensor:
        """Sum of all squared entries, the trace of `second_moment`."""
        squares: Tensor = self.scatter.diagonal().sum() + self.count * self.mean.square().sum()
        return squares
