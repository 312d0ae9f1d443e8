"""`evaluate`: the three numbers that stand in one row of every table."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from jepakit._checks import check_int
from jepakit.diagnostics import effective_rank
from jepakit.evaluation._sets import check_shared_classes, some_images
from jepakit.evaluation.features import extract_features
from jepakit.evaluation.knn import knn_accuracy
from jepakit.evaluation.linear import linear_probe

__all__ = ["Scores", "evaluate"]

# Pixels want a small one, the few directions of an untrained encoder a large one.
_PROBE_STRENGTHS = tuple(10.0**power for power in range(-5, 6))
_PROBE_ITERATIONS = 200


class Scores(NamedTuple):
    """How good features are: two accuracies, and how many directions they use.

    Args:
        knn: Accuracy of the nearest neighbours' vote, a fraction.
        linear: Accuracy of the linear probe, a fraction.
        rank: Effective rank of the training features, from 1 to their width.

    Example:
        >>> Scores(knn=0.5, linear=0.25, rank=1.5).linear
        0.25

    Source:
        jepakit's own.
    """

    knn: float
    linear: float
    rank: float


def evaluate(
    encode: Callable[[Tensor], Tensor],
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    k: int = 20,
    num_images: int = 5000,
    batch_size: int = 256,
    num_workers: int = 0,
    device: torch.device | str | None = None,
) -> Scores:
    """Accuracy of nearest neighbours and of a linear probe, and the effective rank of the features.

    Call it on raw pixels, on the untrained encoder and on the trained teacher, each on the same
    images: one score alone says little, and a good one with a falling rank is about to end.

    Args:
        encode: Maps a batch of images to one vector each, as for `extract_features`.
        train: `(image, label)` pairs that vote and that the probe is fitted on.
        test: Pairs to classify.
        prepare: What happens to images before they are encoded, as for `extract_features`.
        k: How many nearest images vote.
        num_images: How many of each set to use at most: drawn at random from all over it, the same
            in every call. The first ones of a folder of images would be of few classes.
        batch_size: Images encoded at once; no result depends on it.
        num_workers: Processes that load images.
        device: Where images go before they are encoded.

    Raises:
        ImportError: If scikit-learn is missing.
        ValueError: If a number is out of its range, no test image has a class of the training
            images, or what the three parts raise.

    Returns:
        `(knn, linear, rank)`: fractions of test images, and the rank of the training features.

    Example:
        >>> from jepakit.data import digit_canvases
        >>> train, test = digit_canvases(num_train=200, num_test=50)
        >>> scores = evaluate(lambda images: images.flatten(1).float(), train, test)
        >>> scores.knn > 0.1
        True

    Source:
        jepakit's own. The probe chooses its `C` among the powers of ten from 1e-5 to 1e5, on a
        fifth of the training rows: pixels want a small one, the few directions of an untrained
        encoder a large one, and any fixed one favours some rows of a table. It takes at most 200
        iterations for each, which features of few directions may exhaust at the largest ones.
    """
    check_int("num_images", num_images, minimum=1)
    check_int("batch_size", batch_size, minimum=1)
    rows = [
        extract_features(
            encode,
            some_images(dataset, num_images, batch_size, num_workers),
            prepare=prepare,
            device=device,
        )
        for dataset in (train, test)
    ]
    check_shared_classes(rows[0].y, rows[1].y)
    with warnings.catch_warnings():
        # At a large C few directions take more; what is chosen among is scores, not minima.
        warnings.filterwarnings("ignore", message="lbfgs failed to converge")
        linear = linear_probe(*rows, C=_PROBE_STRENGTHS, max_iter=_PROBE_ITERATIONS)
    return Scores(knn_accuracy(*rows, k=k), linear, effective_rank(rows[0].x).item())
