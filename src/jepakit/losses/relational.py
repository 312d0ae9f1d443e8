"""Relational loss: pairwise distances between features match those of the teacher's features."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_rows
from jepakit._distributed import gather_rows, row_counts
from jepakit._precision import float32_or_wider, full_precision
from jepakit._rows import everything_valid, zero_invalid
from jepakit.losses.masked import reduce_masked

__all__ = ["relational_loss"]


def relational_loss(
    student: Float[Tensor, "*batch n d"],
    teacher: Float[Tensor, "*batch n e"],
    valid: Bool[Tensor, "*batch n"] | None = None,
    *,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Huber loss between pairwise distances, each divided by the mean distance of its set.

    $$L = \frac{1}{P} \sum_{\mathrm{sets}} \sum_{i < j} h\Big(\frac{\|s_i - s_j\|}{\mu_s} -
        \frac{\|t_i - t_j\|}{\mu_t}\Big), \qquad
        h(r) = \begin{cases} r^2 / 2 & |r| < 1 \\ |r| - 1/2 & \text{else} \end{cases}$$

    where both features of a pair are valid, $P$ is the number of these pairs in the batch, and
    $\mu$ the mean distance within the set. The teacher gets no gradient. Scale, shift and rotation
    of either do not matter, so shrinking gains nothing; a constant student costs at least 1/2 for
    every set whose teacher is not constant. Widths may differ. Pairs of equal features get no
    gradient.

    Args:
        student: Features that learn: sets of feature vectors `[b n d]`, or one set, such as the
            pooled features of a batch, `[b d]`.
        teacher: Features whose distances are the target.
        valid: True where a token counts. All if None.
        process_group: Take the mean over all ranks of this group, as in `masked_mse`. Features
            without a batch axis, `[b d]`, become one set of all ranks' rows; batch sizes may then
            differ, which costs a host synchronisation. Every rank must call and go backward.

    Raises:
        ValueError: If shapes do not fit, or a set has fewer than 2 rows.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[0.0], [1.0], [3.0]])
        >>> relational_loss(5 - 2 * teacher, teacher)  # the same relations
        tensor(0.)
        >>> relational_loss(torch.zeros(3, 1), teacher)  # collapsed; ratios 0.5, 1 and 1.5
        tensor(0.5417)

    Source:
        The distance-wise loss of Relational Knowledge Distillation (arXiv:1904.05068). Differences:
        valid pairs only; a set of tokens is normalised by its own mean, not by the batch's, so that
        a sample does not depend on its batch-mates.
    """
    check_rows("student", student, valid, process_group)
    check_rows("teacher", teacher, None, process_group)
    shape = tuple(student.shape)
    if teacher.shape[:-1] != student.shape[:-1]:
        other = tuple(teacher.shape)
        raise ValueError(
            f"teacher {other}: must have the shape of student {shape} but for the width"
        )
    one_set_of_all_ranks = process_group is not None and student.dim() == 2
    if not one_set_of_all_ranks and shape[-2] < 2:
        raise ValueError(f"student {shape}: must have at least 2 rows, got {shape[-2]} in a set")
    with full_precision(student):
        if valid is None:
            valid = everything_valid(student)
        ours = zero_invalid(float32_or_wider(student), valid)
        theirs = zero_invalid(float32_or_wider(teacher.detach()), valid)
        if one_set_of_all_ranks:
            counts = row_counts(ours, process_group)
            ours, theirs, valid = (
                gather_rows(rows, counts, process_group) for rows in (ours, theirs, valid)
            )
            # Every rank has the whole set now, and the gathering sums their gradients.
            process_group = None
        pairs = (valid.unsqueeze(-1) & valid.unsqueeze(-2)).triu(diagonal=1)
        gaps = _relative_distances(ours, pairs) - _relative_distances(theirs, pairs)
        huber = torch.where(gaps.abs() < 1, gaps.square() / 2, gaps.abs() - 0.5)
        return reduce_masked(huber.masked_fill(~pairs, 0), pairs, "mean", process_group)


def _relative_distances(x: Tensor, pairs: Tensor) -> Tensor:
    """Distances over the mean of those of `pairs`, set by set; 0 where all of them are 0."""
    # Not through matrix products, which round relative to the squared norms. Gradient 0 at 0.
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.masked_fill(~pairs, 0)
    count = pairs.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    mean = distances.sum(dim=(-2, -1), keepdim=True) / count
    return distances / mean.clamp(min=torch.finfo(mean.dtype).tiny)
