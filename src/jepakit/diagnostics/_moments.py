"""Count, mean and scatter of rows, merged over batches and ranks without losing digits."""

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Moments"]


class Moments:
    r"""Number of rows, their mean and their scatter around it, in float64.

    Two sets are joined around their common mean (Chan et al. 1979), so a large mean never cancels:

    $$S = S_a + S_b + \frac{n_a n_b}{n_a + n_b} (\mu_a - \mu_b)(\mu_a - \mu_b)^\top$$
    """

    def __init__(self, count: Tensor, mean: Tensor, scatter: Tensor) -> None:
        self.count, self.mean, self.scatter = count, mean, scatter

    @classmethod
    def none(cls, dim: int) -> "Moments":
        """Of no rows."""
        zeros = torch.zeros(1 + dim, dim, dtype=torch.float64)
        return cls(zeros.new_zeros(()), zeros[0], zeros[1:])

    @classmethod
    def of(cls, rows: Tensor, present: Tensor) -> "Moments":
        """Of rows that are 0 where not present."""
        count = present.sum().to(rows.dtype)
        mean = rows.sum(dim=0) / count.clamp(min=1)
        centred = (rows - mean).masked_fill(~present, 0)
        return cls(count, mean, centred.T @ centred)

    def merged(self, other: "Moments") -> "Moments":
        """Of the rows of both."""
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + self.count * share * torch.outer(gap, gap)
        return Moments(count, self.mean + share * gap, scatter)

    def over_ranks(self, process_group: dist.ProcessGroup | None) -> "Moments":
        """Of the rows of all ranks; two sums, of D^2 numbers at any number of ranks."""
        if process_group is None:
            return self
        sums = torch.cat([self.count * self.mean, self.count.unsqueeze(0)])
        dist.all_reduce(sums, group=process_group)
        count = sums[-1]
        mean = sums[:-1] / count.clamp(min=1)
        gap = self.mean - mean
        scatter = self.scatter + self.count * torch.outer(gap, gap)
        dist.all_reduce(scatter, group=process_group)
        return Moments(count, mean, scatter)

    def to(self, device: torch.device) -> "Moments":
        """On a device."""
        return Moments(self.count.to(device), self.mean.to(device), self.scatter.to(device))

    @property
    def covariance(self) -> Tensor:
        """Unbiased."""
        return self.scatter / (self.count - 1).clamp(min=1)

    @property
    def sum_of_squares(self) -> Tensor:
        """Around 0."""
        squares: Tensor = self.scatter.diagonal().sum() + self.count * self.mean.square().sum()
        return squares

    @property
    def second_moment(self) -> Tensor:
        """Sum of outer products around 0."""
        return self.scatter + self.count * torch.outer(self.mean, self.mean)
