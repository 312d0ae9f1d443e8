"""The losses over whole batches, called alike, beside loops that are written from the papers.

`call(x, y, valid, process_group)` on `[b n d]` or `[b d]`; `naive(x, y)` on the valid rows `[n d]`.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from jepakit.losses import covariance_loss, variance_loss, vicreg


class BatchLoss(NamedTuple):
    call: Callable[..., Tensor]
    naive: Callable[[Tensor, Tensor], Tensor]
    minimum: int = 2  # rows
    tokens: bool = True  # takes [b n d] with valid


def mean(values: list[Tensor]) -> Tensor:
    return sum(values) / len(values)


def columns(x: Tensor) -> list[list[Tensor]]:
    return [list(x[:, j].unbind()) for j in range(x.shape[1])]


def covariance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    n, ma, mb = len(a), mean(a), mean(b)
    return sum((p - ma) * (q - mb) for p, q in zip(a, b, strict=True)) / (n - 1)


def naive_variance(x: Tensor, y: Tensor) -> Tensor:
    hinges = [1 - (covariance(c, c) + 1e-4).sqrt() for c in columns(x)]
    return mean([h if h > 0 else 0 * h for h in hinges])


def naive_covariance(x: Tensor, y: Tensor) -> Tensor:
    c = columns(x)
    d = len(c)
    pairs = [covariance(c[j], c[k]) ** 2 for j in range(d) for k in range(d) if j != k]
    return sum(pairs, start=0 * x.sum()) / d


def naive_vicreg(x: Tensor, y: Tensor) -> Tensor:
    invariance = mean([(p - q) ** 2 for p, q in zip(x.flatten(), y.flatten(), strict=True)])
    variance = (naive_variance(x, y) + naive_variance(y, x)) / 2
    return 25 * invariance + 25 * variance + naive_covariance(x, y) + naive_covariance(y, x)


def _vicreg(x, y, valid=None, process_group=None):
    return vicreg(x, y, valid, process_group=process_group)


def _variance(x, y, valid=None, process_group=None):
    return variance_loss(x, valid, process_group=process_group)


def _covariance(x, y, valid=None, process_group=None):
    return covariance_loss(x, valid, process_group=process_group)


BATCH_LOSSES = {
    "vicreg": BatchLoss(_vicreg, naive_vicreg),
    "variance": BatchLoss(_variance, naive_variance),
    "covariance": BatchLoss(_covariance, naive_covariance),
}
TOKEN_LOSSES = [name for name, loss in BATCH_LOSSES.items() if loss.tokens]
