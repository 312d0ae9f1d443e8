"""Diagnostics of cosines and distances: between views, between student and teacher, over a batch.

All compute in float64 and without a gradient. Too few valid rows, or one that is not finite, raise
a `ValueError`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import as_bool, as_number, check_same_shape
from jepakit.diagnostics._valid_rows import valid_rows

__all__ = ["alignment", "teacher_student_cosine", "uniformity"]

# Rows whose distances to all others are in memory at once.
_CHUNK = 1024


def alignment(
    first: Float[Tensor, "*batch d"],
    second: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    exponent: float = 2.0,
) -> Float[Tensor, ""]:
    r"""Mean distance on the unit sphere between two views of the same samples.

    $$A = \frac{1}{n} \sum_i \|u_i - v_i\|^{\gamma}, \qquad u_i = \frac{x_i}{\|x_i\|}, \quad
        v_i = \frac{y_i}{\|y_i\|}$$

    0 means that the views agree. Good features have a low alignment and a low `uniformity`
    together; a collapse has a perfect alignment of 0 and the worst uniformity, also 0.

    Args:
        first: Features of one view; all axes but the last are rows.
        second: Features of the other view, row by row.
        valid: True where a row counts. All rows if None.
        exponent: $\gamma$, above 0.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> float(alignment(x, 5 * x)), float(alignment(x, -x))
        (0.0, 4.0)

    Source:
        Wang and Isola (arXiv:2005.10242), no difference.
    """
    check_same_shape("second", second, "first", first)
    exponent = as_number("exponent", exponent, positive=True)
    x = F.normalize(valid_rows("first", first, valid, minimum=1), dim=1)
    y = F.normalize(valid_rows("second", second, valid, minimum=1), dim=1)
    distances: Tensor = torch.linalg.vector_norm(x - y, dim=1)
    return distances.pow(exponent).mean()


def uniformity(
    features: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    t: float = 2.0,
) -> Float[Tensor, ""]:
    r"""Log of the mean Gaussian kernel between pairs of features on the unit sphere.

    $$U = \log \frac{1}{n (n - 1)} \sum_{i \ne j} e^{-t \|u_i - u_j\|^2}, \qquad
        u_i = \frac{x_i}{\|x_i\|}$$

    Lower is more evenly spread; 0 means a single direction, as a large common mean makes it. In
    many dimensions, evenly spread features come near $-2t$, where all pairs are at right angles. It
    compares all pairs: pass a batch, not a data set.

    Args:
        features: Feature vectors; all axes but the last are rows.
        valid: True where a row counts. All rows if None.
        t: Sharpness of the kernel, above 0.

    Example:
        >>> import torch
        >>> ends = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])  # unit vectors 2 apart: log exp(-2 * 4)
        >>> uniformity(ends)
        tensor(-8., dtype=torch.float64)

    Source:
        Wang and Isola (arXiv:2005.10242). As in its code, no sample is paired with itself, which
        would keep the value above $-\log n$.
    """
    t = as_number("t", t, positive=True)
    rows = valid_rows("features", features, valid, minimum=2)
    present = torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)
    return mean_kernel(rows, present, t).log()


def mean_kernel(rows: Tensor, present: Tensor, t: float) -> Tensor:
    """Mean Gaussian kernel over pairs of different present rows; 1 where there is no pair."""
    units = F.normalize(rows, dim=1)
    weights = present.squeeze(1).to(units.dtype)
    count = weights.sum()
    total = torch.zeros_like(count)
    for start in range(0, len(units), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        kernel = torch.exp(-t * torch.cdist(units[chunk], units).square())
        kernel[:, chunk].diagonal().zero_()  # pairs of a row with itself
        total = total + weights[chunk] @ kernel @ weights
    pairs = count * (count - 1)
    return torch.where(pairs > 0, total / pairs.clamp(min=1), torch.ones_like(total))


def teacher_student_cosine(
    student: Float[Tensor, "*batch d"],
    teacher: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    centred: bool = False,
) -> Float[Tensor, ""]:
    r"""Mean cosine between the student's and the teacher's features of the same samples.

    $$\frac{1}{n} \sum_i \frac{s_i \cdot t_i}{\|s_i\| \|t_i\|}$$

    In a stable run it stays near 1, since the teacher follows the student; a falling value means
    that the student changes faster than the teacher follows. A large common mean brings every
    cosine near 1: `centred=True` subtracts each side's mean first. Rows of zeros have cosine 0, so
    a full collapse gives 0 if centred, else 1.

    Args:
        student: The student's features; all axes but the last are rows.
        teacher: The teacher's features, row by row.
        valid: True where a row counts. All rows if None.
        centred: Subtract each side's mean over the valid rows.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> round(float(teacher_student_cosine(x, -x)), 4)
        -1.0
        >>> round(float(teacher_student_cosine(x + 100, -x + 100)), 4)  # the common mean only
        0.9999
        >>> round(float(teacher_student_cosine(x + 100, -x + 100, centred=True)), 4)
        -1.0
    """
    check_same_shape("teacher", teacher, "student", student)
    centred = as_bool("centred", centred)
    x = valid_rows("student", student, valid, minimum=1)
    y = valid_rows("teacher", teacher, valid, minimum=1)
    if centred:
        x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    return (F.normalize(x, dim=1) * F.normalize(y, dim=1)).sum(dim=1).mean()
