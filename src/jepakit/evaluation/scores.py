"""`evaluate`: nearest neighbours, linear probe, rank and spread of a frozen encoder."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from jepakit.diagnostics import effective_rank
from jepakit.evaluation.features import check_shared_classes, extract_features, subset_loader
from jepakit.evaluation.knn import knn_accuracy
from jepakit.evaluation.linear import linear_probe

__all__ = ["Scores", "evaluate"]

# Pixels need a small C, the few directions of an untrained encoder a large one.
_PROBE_STRENGTHS = tuple(10.0**power for power in range(-5, 6))
_PROBE_ITERATIONS = 200


class Scores(NamedTuple):
    """Two accuracies, the effective rank and the spread of frozen features.

    Args:
        knn: Accuracy of the nearest neighbours, a fraction.
        linear: Accuracy of the linear probe, a fraction.
        rank: Effective rank of the training features, from 1 to their width.
        std: Standard deviation of each training feature, averaged over the features. A rank says
            nothing without it: it does not change with scale.
    """

    knn: float
    linear: float
    rank: float
    std: float


def evaluate(
    encode: Callable[..., Tensor],
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    k: int = 20,
    num_images: int = 5000,
    batch_size: int = 256,
    num_workers: int = 0,
    device: torch.device | str | int | None = None,
    grid_size: Sequence[int] | None = None,
) -> Scores:
    """Accuracy of nearest neighbours and of a linear probe; rank and spread of the features.

    Run it on raw pixels, on the untrained encoder and on the trained teacher: a score means little
    without these to compare with, and a rank or a std that falls is a sign of collapse.

    The probe chooses its `C` among the powers of ten from 1e-5 to 1e5, on a fifth of the training
    rows: any fixed value would favour some rows of a table. It takes at most 200 iterations for
    each, which features of few directions may exhaust at the largest values.

    Args:
        encode, prepare, device: As in `extract_features`.
        grid_size: As in `extract_features`; the sets then hold `(image, label, valid)`.
        train: `(image, label)` pairs on which neighbours are searched and the probe is fitted.
        test: Pairs to classify.
        k: Number of nearest images that vote.
        num_images: Number of images of each set to use at most, drawn at random from all over the
            set, the same in every call. The first ones of a folder would be of few classes.
        batch_size: Images encoded at once; results do not depend on it.
        num_workers: Processes that load images.

    Raises:
        ValueError: If no test image has a class of the training images.

    Example:
        >>> from jepakit.data import textured_shapes
        >>> train, test = textured_shapes(num_train=200, num_test=50)
        >>> scores = evaluate(lambda images: images.flatten(1).float(), train, test)
        >>> scores.std > 0.1
        True
    """
    loaders = [subset_loader(each, num_images, batch_size, num_workers) for each in (train, test)]
    train_features, test_features = (
        extract_features(encode, loader, prepare=prepare, device=device, grid_size=grid_size)
        for loader in loaders
    )
    check_shared_classes(train_features.y, test_features.y)
    with warnings.catch_warnings():
        # Expected at a large C; candidates are compared by accuracy, not by their minimum.
        warnings.filterwarnings("ignore", message="lbfgs failed to converge")
        linear = linear_probe(
            train_features, test_features, C=_PROBE_STRENGTHS, max_iter=_PROBE_ITERATIONS
        )
    knn = knn_accuracy(train_features, test_features, k=k)
    rank, std = effective_rank(train_features.x), train_features.x.std(dim=0, correction=0).mean()
    return Scores(knn, linear, rank.item(), std.item())
