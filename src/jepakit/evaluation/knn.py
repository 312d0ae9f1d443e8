"""Nearest neighbours by cosine similarity, and their weighted vote."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from jepakit._checks import as_int, as_number
from jepakit._precision import full_precision
from jepakit.evaluation.features import Features, check_same_width

__all__ = ["knn_accuracy", "nearest_neighbours"]

_CHUNK_ELEMENTS = 2**24  # of the similarity matrix in memory at once: 64 MiB


def knn_accuracy(
    train: Features, test: Features, *, k: int = 20, temperature: float = 0.07
) -> float:
    r"""Accuracy of a similarity-weighted vote of the nearest training rows, a fraction.

    $$\hat y = \arg\max_c \sum_{i \in \mathrm{top}_k} [y_i = c]\; e^{s_i / T}, \qquad
        s_i = \frac{x \cdot x_i}{\|x\|\,\|x_i\|}$$

    Deterministic; among classes with equal votes the smallest label wins.

    Args:
        train: Rows that vote. Must not contain the test rows: each would be its own nearest row.
        test: Rows to classify.
        k: Number of nearest rows that vote, at most that of all rows.
        temperature: $T$; a small one gives the nearest rows most weight, a large one weights all
            $k$ alike.

    Raises:
        ValueError: If the widths differ.

    Example:
        >>> import torch
        >>> train = Features(x=torch.tensor([[1.0, 0.0], [0.0, 1.0]]), y=torch.tensor([3, 7]))
        >>> test = Features(x=torch.tensor([[5.0, 1.0], [1.0, 5.0]]), y=torch.tensor([3, 3]))
        >>> knn_accuracy(train, test, k=1)
        0.5

    Source:
        Wu et al. (arXiv:1805.01978), with `T=0.07` as there; `k=20` as in DINO (arXiv:2104.14294).
    """
    check_same_width(train, test)
    k = as_int("k", k, minimum=1, maximum=len(train))
    temperature = as_number("temperature", temperature, positive=True)
    classes, class_indices = torch.unique(train.y, return_inverse=True)
    num_correct, start = 0, 0
    for similarity, nearest in _most_similar(train, test, k):
        y = test.y[start : start + len(nearest)]
        # Relative to the largest, so that a small temperature does not overflow.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(y), len(classes))
        votes.scatter_add_(1, class_indices[nearest], weight)
        num_correct += int((classes[votes.argmax(dim=1)] == y).sum())
        start += len(y)
    return num_correct / len(test)


def nearest_neighbours(train: Features, test: Features, *, k: int = 20) -> Int[Tensor, "n k"]:
    """Indices of the training rows most similar to each test row by cosine, most similar first.

    Args:
        train: Rows to search.
        test: Rows whose neighbours are searched.
        k: Number of neighbours, at most that of the training rows.

    Raises:
        ValueError: If the widths differ.

    Example:
        >>> import torch
        >>> from jepakit.evaluation import Features, nearest_neighbours
        >>> train = Features(x=torch.tensor([[1.0, 0.0], [0.0, 1.0]]), y=torch.tensor([3, 7]))
        >>> test = Features(x=torch.tensor([[1.0, 5.0]]), y=torch.tensor([3]))
        >>> nearest_neighbours(train, test, k=2)
        tensor([[1, 0]])
    """
    check_same_width(train, test)
    k = as_int("k", k, minimum=1, maximum=len(train))
    return torch.cat([nearest for _, nearest in _most_similar(train, test, k)])


def _most_similar(train: Features, test: Features, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Similarities and indices of the `k` nearest training rows, for chunks of test rows."""
    train_units = F.normalize(train.x.float(), dim=1)
    for x in torch.split(test.x, max(1, _CHUNK_ELEMENTS // len(train))):
        with full_precision(train_units):  # in bfloat16 the nearest rows would be tied
            similarities = F.normalize(x.float(), dim=1) @ train_units.T
        similarity, nearest = similarities.topk(k, dim=1)
        yield similarity, nearest
