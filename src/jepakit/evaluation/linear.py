"""Linear probe: logistic regression on frozen features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jepakit._checks import as_int
from jepakit.evaluation._selection import as_candidates, held_out
from jepakit.evaluation.features import Features, check_same_width

__all__ = ["linear_probe"]

# With scikit-learn's 1e-4 the solver may stop before its first step, if only small directions
# separate the classes.
_TOLERANCE = 1e-7


def linear_probe(
    train: Features, test: Features, *, C: float | Sequence[float] = 1.0, max_iter: int = 1000
) -> float:
    r"""Accuracy of a logistic regression on frozen features, a fraction.

    $$\min_{W, b}\; \tfrac{1}{2} \|W\|^2 + C \sum_i -\log \mathrm{softmax}(W z_i + b)_{y_i}, \qquad
        z = (R + I)^{-1/2} \, \frac{x - \mu}{\sigma}$$

    Mean, std and correlations $R$ are those of the training rows. A direction along which many
    features vary together is shrunk to the scale of one feature, so that smaller directions are not
    lost beside it; a direction that varies less keeps about its scale. Constant features have no
    effect. Deterministic; fitted on one CPU core.

    Args:
        train: Rows to fit on.
        test: Rows to classify; nothing is selected by them.
        C: Inverse strength of the regularisation: smaller shrinks more. Its scale is not that of
            features that are only standardised: where none are correlated, this one is half of it.
            Of several, the one with the highest accuracy on a held-out, stratified fifth of `train`
            is taken (of equal ones the smallest) and fitted on all of `train`.
        max_iter: Maximum number of iterations of the solver (L-BFGS) for each `C`. Of several, the
            smallest is fitted first, and each next one starts from the last solution. Where the
            iterations are not enough, scikit-learn warns.

    Raises:
        ImportError: If scikit-learn is missing.
        ValueError: If `train` holds a single class, or no row to choose among several `C`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> rows = Features(x=x, y=torch.tensor([0, 0, 1, 1]))
        >>> linear_probe(rows, rows)
        1.0

    Source:
        Linear evaluation on frozen features with L-BFGS, as in CLIP (arXiv:2103.00020). Difference:
        CLIP takes features as they are; here they are standardised and multiplied by
        $(R + I)^{-1/2}$. With standardised features alone the solver stops long before it has
        fitted the small directions, of which briefly trained encoders have many.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        text = "linear_probe needs scikit-learn: pip install 'jepakit[evaluation]'"
        raise ImportError(text) from error
    check_same_width(train, test)
    max_iter = as_int("max_iter", max_iter, minimum=1)
    candidates = as_candidates("C", C)
    classes = torch.unique(train.y)
    if len(classes) < 2:
        raise ValueError(f"train: must hold at least 2 classes, got only {int(classes[0])}")
    if len(candidates) > 1:
        held = held_out(train.y, "C", candidates)
        fitted = Features(x=train.x[~held], y=train.y[~held])
        judged = Features(x=train.x[held], y=train.y[held])
        accuracies = _accuracies(fitted, judged, candidates, max_iter)
        # The final fit starts from the same path of smaller C. Of equals, `index` finds the first.
        candidates = candidates[: accuracies.index(max(accuracies)) + 1]
    return _accuracies(train, test, candidates, max_iter)[-1]


def _accuracies(
    train: Features, test: Features, candidates: list[float], max_iter: int
) -> list[float]:
    """Test accuracies of probes of increasing `C`, each fitted from the last solution."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # The products are small and many, so that threads cost more in waiting than they save (50
    # times, measured on 2 busy cores). With one, results do not depend on the number of cores.
    with threadpool_limits(limits=1, user_api="blas"):
        scaler = StandardScaler()
        train_rows = scaler.fit_transform(_to_numpy(train.x))
        whitening = _whitening(train_rows)
        train_rows = train_rows @ whitening
        test_rows = scaler.transform(_to_numpy(test.x)) @ whitening
        train_labels, test_labels = _to_numpy(train.y), _to_numpy(test.y)
        probe = LogisticRegression(max_iter=max_iter, tol=_TOLERANCE, warm_start=True)
        accuracies = []
        for candidate in candidates:
            probe.C = candidate
            probe.fit(train_rows, train_labels)
            accuracies.append(float(probe.score(test_rows, test_labels)))
    return accuracies


def _whitening(rows: Any) -> Any:
    """Return the map of standardised rows to `z`, up to a rotation, which does not change the fit.

    Computed from the smaller of covariance and Gram matrix. With fewer rows than features,
    directions without variance are left out; there the weights would stay zero.
    """
    import numpy as np

    count, width = rows.shape
    if width <= count:
        values, vectors = np.linalg.eigh(rows.T @ rows / count)
        return vectors / np.sqrt(values.clip(0) + 1)
    values, vectors = np.linalg.eigh(rows @ rows.T / count)
    vary = values > values[-1] * count * np.finfo(values.dtype).eps
    # An eigenvector u of the Gram matrix gives that of the covariance, X' u / sqrt(n lambda).
    factors = np.zeros(count)
    factors[vary] = 1 / np.sqrt(count * values[vary] * (values[vary] + 1))
    return rows.T @ (vectors * factors)


def _to_numpy(tensor: Tensor) -> Any:
    # In float64: small directions are differences of large numbers.
    tensor = tensor.detach().cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
