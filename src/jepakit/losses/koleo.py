"""KoLeo: every sample keeps away from its nearest neighbour."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_number
from jepakit._distributed import gather_rows, row_counts, sum_over_ranks
from jepakit._precision import full_precision
from jepakit._rows import check_rows, to_rows

__all__ = ["koleo"]

# Rows whose neighbours are searched at once.
_CHUNK = 1024


def koleo(
    features: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    eps: float = 1e-8,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Minus the mean logarithm of the distance to the nearest neighbour on the unit sphere.

    $$L = -\frac{1}{n} \sum_{i=1}^{n} \log \sqrt{\rho_i^2 + \epsilon^2}, \qquad
        \rho_i = \min_{j \ne i} \Big\| \frac{x_i}{\|x_i\|} - \frac{x_j}{\|x_j\|} \Big\|$$

    Not bounded from below by 0. The gradient grows as samples come closer, as one over their
    distance. Samples of exactly one direction, all of a rank-one set on one side of 0 among them,
    have a distance of 0 and no gradient, by symmetry. Computed in float32; 0 where only one row is
    valid in the end.

    Args:
        features: Feature vectors: pooled `[b d]`, or tokens `[b n d]`, of which every valid one is
            a sample among all others of the batch.
        valid: True where a row counts. All rows if None.
        eps: Least distance, a fraction of the sphere's radius; above 0.
        process_group: Search among the rows of all ranks of this group: each rank returns the
            global value, with a gradient scaled so that DDP's averaging gives the gradient of one
            big batch. Ranks may have batches of other sizes, for which the sizes are read back from
            the device once. Every rank must call and go backward.

    Raises:
        TypeError: As in `variance_loss`.
        ValueError: As in `variance_loss`, or if `eps` is not above 0.

    Example:
        >>> import torch
        >>> koleo(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -4.0]]))  # -log sqrt(2)
        tensor(-0.3466)

    Source:
        Sablayrolles et al. (arXiv:1806.03198), with the unit length that DINOv2 (arXiv:2304.07193)
        gives the features. DINOv2 searches within one rank; here it is the joined batch. `eps`
        stands in the root, so that equal rows have a gradient of 0.
    """
    check_rows("features", features, valid, process_group, minimum=2)
    check_number("eps", eps, positive=True)
    with full_precision(features):
        rows, present = to_rows(features, valid)
        units = F.normalize(rows, dim=-1, eps=1e-6)
        start, everyone, all_present = 0, units, present
        if process_group is not None:
            counts = row_counts(units, process_group)
            start = sum(counts[: process_group.rank()])
            everyone = gather_rows(units, counts, process_group)
            all_present = gather_rows(present.to(torch.uint8), counts, process_group).bool()
        neighbours = _nearest(units.detach(), everyone.detach(), all_present.squeeze(1), start)
        gaps = units - everyone[neighbours]
        terms = -(gaps.square().sum(dim=1) + eps**2).log() / 2
        terms = terms.masked_fill(~present.squeeze(1), 0)
        count = all_present.sum()
        loss = sum_over_ranks(terms.sum(), process_group) / count.clamp(min=1)
        return torch.where(count > 1, loss, torch.zeros_like(loss))


def _nearest(rows: Tensor, everyone: Tensor, present: Tensor, start: int) -> Tensor:
    """Index of each row's nearest other row; in chunks, so that memory is linear."""
    if not len(everyone):
        return torch.zeros(0, dtype=torch.long, device=rows.device)
    # Around their mean, so that samples which nearly agree are told apart.
    count = present.sum().clamp(min=1)
    mean = everyone.masked_fill(~present.unsqueeze(1), 0).sum(dim=0) / count
    rows, everyone = rows - mean, everyone - mean
    squares = everyone.square().sum(dim=1).masked_fill(~present, float("inf"))
    columns = torch.arange(len(everyone), device=rows.device)
    found = []
    for first in range(0, max(1, len(rows)), _CHUNK):
        some = rows[first : first + _CHUNK]
        # The own square is the same for every candidate.
        distances = squares - 2 * some @ everyone.T
        own = columns[start + first : start + first + len(some)].unsqueeze(1)
        found.append(distances.masked_fill(columns == own, float("inf")).argmin(dim=1))
    return torch.cat(found)
