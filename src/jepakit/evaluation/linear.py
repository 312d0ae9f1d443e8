"""Linear probe: logistic regression on frozen features."""

from typing import Any

import torch
from torch import Tensor

from jepakit._checks import check_int
from jepakit.evaluation._sets import choices, held_out
from jepakit.evaluation.features import Features, check_same_width

__all__ = ["linear_probe"]

_TOLERANCE = 1e-7  # scikit-learn's 1e-4 is met by small directions before the first step, silently


def linear_probe(
    train: Features,
    test: Features,
    *,
    C: float | tuple[float, ...] = 1.0,
    max_iter: int = 1000,
) -> float:
    r"""Accuracy of a logistic regression that is trained on frozen features.

    $$\min_{W, b}\; \tfrac{1}{2} \|W\|^2 + C \sum_i -\log \mathrm{softmax}(W z_i + b)_{y_i}, \qquad
        z = (R + I)^{-1/2} \, \frac{x - \mu}{\sigma}$$

    Mean, deviation and correlations $R$ of the features are those of the training rows. A direction
    that many features share is shrunk to the size of one feature, so that small ones are not lost
    beside it; one that varies less about keeps its size. A constant feature has no say. The model
    behind the features is never touched. Deterministic; fitted on one CPU core.

    Args:
        train: Rows to fit on.
        test: Rows to classify; nothing is chosen by them.
        C: Inverse strength of the regularisation: smaller shrinks more. It is not that of features
            which are standardised alone: where none are correlated, this one is half of it.
            Of several, the one with the highest accuracy on a held-out, stratified fifth of `train`
            is taken (of equal ones the smallest) and fitted on all of `train`.
        max_iter: Most iterations of the solver (L-BFGS) for each `C`. Of several, the smallest is
            fitted first and each next one begins at the last solution. Where that many are not
            enough, scikit-learn warns.

    Returns:
        The fraction of test rows that got their own label.

    Raises:
        ImportError: If scikit-learn is missing.
        TypeError: If `C` is not a number or a tuple of them, or `max_iter` not an int.
        ValueError: If a value is not above 0, the widths differ, `train` holds a single class, or a
            choice among several finds no row to hold out.

    Example:
        >>> import torch
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> rows = Features(x=x, y=torch.tensor([0, 0, 1, 1]))
        >>> linear_probe(rows, rows)
        1.0

    Source:
        The protocol of linear evaluation on frozen features, with L-BFGS as in CLIP
        (arXiv:2103.00020), which takes features as they are; $R + I$ is jepakit's own. With
        standardised features alone the solver is stopped long before it has found what the small
        directions hold, of which encoders that are trained briefly have many. I-JEPA
        (arXiv:2301.08243) trains its probe by SGD on augmented images.
    """
    _need_sklearn()
    check_same_width(train, test)
    check_int("max_iter", max_iter, minimum=1)
    strengths = choices("C", C)
    classes = torch.unique(train.y)
    if len(classes) < 2:
        raise ValueError(f"train: must hold at least 2 classes, got only {int(classes[0])}")
    if len(strengths) > 1:
        held = held_out(train.y, "C", C)
        fitted = Features(x=train.x[~held], y=train.y[~held])
        judged = Features(x=train.x[held], y=train.y[held])
        accuracies = _accuracies(fitted, judged, strengths, max_iter)
        # `index` finds the first of equals, so the smallest C.
        strengths = strengths[: accuracies.index(max(accuracies)) + 1]
    return _accuracies(train, test, strengths, max_iter)[-1]


def _need_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "linear_probe needs scikit-learn: pip install 'jepakit[evaluation]'"
        ) from error


def _accuracies(
    train: Features, test: Features, strengths: list[float], max_iter: int
) -> list[float]:
    """Of probes of increasing `C`, each fitted from where the last one stopped."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # Products are small and many: waiting for each other's threads costs far more than they save
    # (50 times, measured on 2 busy cores). The result does not depend on the cores either.
    with threadpool_limits(limits=1, user_api="blas"):
        scaler = StandardScaler()
        rows = scaler.fit_transform(_numpy(train.x))
        shrink = _shrinkage(rows)
        seen, unseen = rows @ shrink, scaler.transform(_numpy(test.x)) @ shrink
        probe = LogisticRegression(max_iter=max_iter, tol=_TOLERANCE, warm_start=True)
        found = []
        for strength in strengths:
            probe.C = strength
            probe.fit(seen, _numpy(train.y))
            found.append(float(probe.score(unseen, _numpy(test.y))))
    return found


def _shrinkage(rows: Any) -> Any:
    """The map of standardised rows to `z`, but for a rotation, which the penalty does not see.

    By the smaller of the two Gram matrices. Directions in which the rows do not vary are left out:
    there the weights stay zero.
    """
    import numpy as np

    count, width = rows.shape
    if width <= count:
        values, vectors = np.linalg.eigh(rows.T @ rows / count)
        return vectors / np.sqrt(values.clip(0) + 1)
    values, vectors = np.linalg.eigh(rows @ rows.T / count)
    vary = values > values[-1] * count * np.finfo(values.dtype).eps
    factors = np.zeros(count)
    factors[vary] = 1 / np.sqrt(count * values[vary] * (values[vary] + 1))
    return rows.T @ (vectors * factors)


def _numpy(tensor: Tensor) -> Any:
    # In double precision: small directions are differences of large numbers.
    tensor = tensor.detach().cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
