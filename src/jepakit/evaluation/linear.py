"""Linear probe: logistic regression on frozen features."""

from typing import Any

import torch
from torch import Tensor

from jepakit._checks import check_int, check_number
from jepakit.evaluation.features import Features, check_same_width

__all__ = ["linear_probe"]

_FOLDS = 5  # one fifth of the training rows chooses among several regularisations


def linear_probe(
    train: Features,
    test: Features,
    *,
    C: float | tuple[float, ...] = 1.0,
    max_iter: int = 1000,
) -> float:
    r"""Accuracy of a logistic regression that is trained on frozen features.

    $$\min_{W, b}\; \tfrac{1}{2} \|W\|^2 + C \sum_i -\log \mathrm{softmax}(W z_i + b)_{y_i}, \qquad
        z = (x - \mu) / \sigma$$

    Mean and deviation of every feature are those of the training rows. The model behind the
    features is never touched. Deterministic; fitted on one CPU core.

    Args:
        train: Rows to fit on.
        test: Rows to classify; nothing is chosen by them.
        C: Inverse strength of the regularisation, as in scikit-learn: smaller shrinks more.
            Of several, the one with the highest accuracy on a held-out, stratified fifth of `train`
            is taken (of equal ones the smallest) and refitted on all of `train`.
        max_iter: Most iterations of the solver (L-BFGS); where it stops there, scikit-learn warns.

    Returns:
        The fraction of test rows that got their own label.

    Raises:
        ImportError: If scikit-learn is missing.
        TypeError: If `C` is not a number or a tuple of them, or `max_iter` not an int.
        ValueError: If a value is not above 0, the widths differ, `train` holds a single class, or a
            choice among several has fewer than 5 training rows of some class.

    Example:
        >>> import torch
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> rows = Features(x=x, y=torch.tensor([0, 0, 1, 1]))
        >>> linear_probe(rows, rows)
        1.0

    Source:
        The protocol of linear evaluation on frozen features, with L-BFGS as in CLIP
        (arXiv:2103.00020). I-JEPA (arXiv:2301.08243) trains its probe by SGD on augmented images.
    """
    _need_sklearn()
    check_same_width(train, test)
    check_int("max_iter", max_iter, minimum=1)
    candidates = C if isinstance(C, tuple) else (C,)
    if not candidates:
        raise ValueError("C=(): must hold at least one number")
    for candidate in candidates:
        check_number("C", candidate, positive=True)
    classes, counts = torch.unique(train.y, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"train: must hold at least 2 classes, got only {int(classes[0])}")
    x, y = _numpy(train.x.float()), _numpy(train.y)
    strength = candidates[0]
    if len(candidates) > 1:
        if int(counts.min()) < _FOLDS:
            raise ValueError(
                f"train: must hold at least {_FOLDS} rows of every class to choose among "
                f"C={C}, got {int(counts.min())} of class "
                f"{int(classes[counts.argmin()])}"
            )
        strength = _choose(x, y, candidates, max_iter)
    return _score(_fit(x, y, strength, max_iter), _numpy(test.x.float()), _numpy(test.y))


def _need_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "linear_probe needs scikit-learn: pip install 'jepakit[evaluation]'"
        ) from error


def _choose(x: Any, y: Any, candidates: tuple[float, ...], max_iter: int) -> float:
    from sklearn.model_selection import train_test_split

    x_fit, x_held, y_fit, y_held = train_test_split(
        x, y, test_size=1 / _FOLDS, stratify=y, random_state=0
    )
    # `max` keeps the first of equals, so the smallest C.
    return max(
        sorted(candidates),
        key=lambda strength: _score(_fit(x_fit, y_fit, strength, max_iter), x_held, y_held),
    )


def _fit(x: Any, y: Any, strength: float, max_iter: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    probe = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=strength, max_iter=max_iter),
    )
    # The products are small and many: waiting for each other's threads costs far more than they
    # save (50 times, measured on 2 busy cores). The result does not depend on the cores either.
    with threadpool_limits(limits=1, user_api="blas"):
        return probe.fit(x, y)


def _score(probe: Any, x: Any, y: Any) -> float:
    return float((probe.predict(x) == y).mean())


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()
