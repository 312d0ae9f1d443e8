"""How far student and teacher, or prediction and target, agree."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import check_bool, check_same_shape
from jepakit.diagnostics._rows import check_features, float64, valid_rows

__all__ = ["explained_variance", "mean_predictor_loss", "teacher_student_cosine"]


def teacher_student_cosine(
    student: Float[Tensor, "*batch d"],
    teacher: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    centred: bool = False,
) -> Float[Tensor, ""]:
    r"""Mean cosine between the student's and the teacher's features of the same samples.

    $$\frac{1}{n} \sum_i \frac{s_i \cdot t_i}{\|s_i\| \|t_i\|}$$

    Near 1 from one step to the next, since the teacher follows; a fall says that the student runs
    away. A large common mean makes any two features agree: with `centred=True` each side's mean is
    taken off first. Rows of length 0 have cosine 0: a full collapse gives 0 if centred, else 1.

    Args:
        student: The student's features; all axes but the last are rows.
        teacher: The teacher's, row by row.
        valid: True where a row counts. All rows if None.
        centred: Take off each side's mean over the valid rows.

    Returns:
        A float64 scalar in [-1, 1].

    Raises:
        TypeError: If features are not floating point, `valid` not bool, or `centred` not a bool.
        ValueError: If shapes do not fit, there is no valid row, no column, or a non-finite value.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> round(float(teacher_student_cosine(x, -x)), 4)
        -1.0
        >>> round(float(teacher_student_cosine(x + 100, -x + 100)), 4)  # the offset, and only it
        0.9999
        >>> round(float(teacher_student_cosine(x + 100, -x + 100, centred=True)), 4)
        -1.0

    Source:
        jepakit's own.
    """
    check_same_shape("teacher", teacher, "student", student)
    check_bool("centred", centred)
    x = valid_rows("student", student, valid, minimum=1)
    y = valid_rows("teacher", teacher, valid, minimum=1)
    if centred:
        x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    return (F.normalize(x, dim=1) * F.normalize(y, dim=1)).sum(dim=1).mean()


def mean_predictor_loss(
    target: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Float[Tensor, ""]:
    r"""The loss of a predictor that has seen nothing and always says the targets' mean.

    $$\frac{1}{n d} \sum_{ij} (t_{ij} - \bar t_j)^2$$

    Put it beside the training loss: a loss that falls together with it falls because the targets
    shrink, and one that is no lower has learned nothing.

    Args:
        target: What is predicted, as the loss gets it (after `normalize_targets`).
        valid: True where a row counts. All rows if None.
        loss: The training loss, called as `loss(pred, target, valid)`, such as `masked_smooth_l1`.
            The mean square if None.

    Returns:
        A scalar, in float64 where `loss` keeps that.

    Raises:
        TypeError: If `target` is not floating point or `valid` not bool.
        ValueError: If there is no valid row, no column, or a non-finite value.

    Example:
        >>> import torch
        >>> from jepakit import masked_l1
        >>> target = torch.tensor([[0.0, 1.0], [4.0, 1.0]])
        >>> mean_predictor_loss(target)
        tensor(2., dtype=torch.float64)
        >>> mean_predictor_loss(target, loss=masked_l1)
        tensor(1., dtype=torch.float64)

    Source:
        jepakit's own.
    """
    rows = valid_rows("target", target, valid, minimum=1)
    mean = rows.mean(dim=0)
    if loss is None:
        return (rows - mean).square().mean()
    if valid is None:
        valid = torch.ones(target.shape[:-1], dtype=torch.bool, device=target.device)
    everything = float64(target)
    valid = valid.to(everything.device)
    with torch.no_grad():
        value: Tensor = loss(mean.expand_as(everything).contiguous(), everything, valid)
    return value


def explained_variance(
    pred: Float[Tensor, "*batch d"],
    target: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Share of the targets' variance that a prediction explains.

    $$1 - \frac{\sum_{ij} (p_{ij} - t_{ij})^2}{\sum_{ij} (t_{ij} - \bar t_j)^2}$$

    1 is a perfect prediction, 0 is no better than the targets' mean, below 0 is worse. It does not
    change when targets shrink, so that a collapse cannot pass for learning.

    Args:
        pred: Predictions; all axes but the last are rows.
        target: What they should be, row by row.
        valid: True where a row counts. All rows if None.

    Returns:
        A float64 scalar, at most 1; NaN where the targets have no variance at all.

    Raises:
        TypeError: If features are not floating point or `valid` not bool.
        ValueError: If shapes do not fit, there are fewer than 2 valid rows, no columns, or
            non-finite values.

    Example:
        >>> import torch
        >>> target = torch.tensor([[0.0], [2.0], [4.0]])
        >>> round(float(explained_variance(target + 1, target)), 3)  # 1 - 3 / 8
        0.625

    Source:
        The coefficient of determination, with one variance for all dimensions together.
    """
    check_same_shape("pred", pred, "target", target)
    check_features("pred", pred, valid, minimum=2)
    x = valid_rows("pred", pred, valid, minimum=2)
    y = valid_rows("target", target, valid, minimum=2)
    variance = (y - y.mean(dim=0)).square().sum()
    share = 1 - (x - y).square().sum() / variance
    return torch.where(variance > 0, share, torch.full_like(share, torch.nan))
