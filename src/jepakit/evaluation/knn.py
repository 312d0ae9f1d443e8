"""Weighted nearest neighbours by cosine similarity."""

import torch
import torch.nn.functional as F

from jepakit._checks import check_int, check_number
from jepakit._precision import full_precision
from jepakit.evaluation.features import Features, check_same_width

__all__ = ["knn_accuracy"]

_CHUNK_ELEMENTS = 2**24  # of the similarity matrix at once: 64 MiB


def knn_accuracy(
    train: Features, test: Features, *, k: int = 20, temperature: float = 0.07
) -> float:
    r"""Accuracy of a vote among the nearest training rows, weighted by similarity.

    $$\hat y = \arg\max_c \sum_{i \in \mathrm{top}_k} [y_i = c]\; e^{s_i / T}, \qquad
        s_i = \frac{x \cdot x_i}{\|x\|\,\|x_i\|}$$

    Deterministic; of equally voted classes the smallest label wins.

    Args:
        train: Rows that vote. Must not hold the test rows: each would find itself.
        test: Rows to classify.
        k: How many nearest rows vote.
        temperature: $T$; smaller lets the nearest decide, larger counts heads.

    Returns:
        The fraction of test rows that got their own label.

    Raises:
        TypeError: If `k` is not an int or `temperature` not a number.
        ValueError: If `k` is below 1 or above the number of training rows, `temperature` is not
            above 0, or the widths differ.

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
    check_int("k", k, minimum=1)
    if k > len(train):
        raise ValueError(f"k={k}: must be at most the number of training rows, {len(train)}")
    check_number("temperature", temperature, positive=True)
    classes, votes_for = torch.unique(train.y, return_inverse=True)
    bank = F.normalize(train.x.float(), dim=1)
    correct = 0
    rows = max(1, _CHUNK_ELEMENTS // len(train))
    for x, y in zip(torch.split(test.x, rows), torch.split(test.y, rows), strict=True):
        with full_precision(bank):  # else nearest ones look the same
            similarity, nearest = (F.normalize(x.float(), dim=1) @ bank.T).topk(k, dim=1)
        # Less the largest, so that no temperature overflows; the winner stays the same.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(x), len(classes))
        votes.scatter_add_(1, votes_for[nearest], weight)
        correct += int((classes[votes.argmax(dim=1)] == y).sum())
    return correct / len(test)
