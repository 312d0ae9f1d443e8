"""The losses over whole batches, called alike, beside loops that are written from the papers.

`call(x, y, valid, process_group)` on `[b n d]` or `[b d]`; `naive(x, y)` on the valid rows `[n d]`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jepakit.losses import (
    barlow,
    covariance_loss,
    info_nce,
    invariance_loss,
    koleo,
    lejepa_loss,
    relational_loss,
    sigreg,
    variance_loss,
    vicreg,
)

SLICES = 5
# Negatives of a queue, by width; made here, since a compiled function makes no generator.
FURTHER = {
    d: torch.randn(5, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    for d in range(1, 9)
}


class BatchLoss(NamedTuple):
    call: Callable[..., Tensor]
    naive: Callable[[Tensor, Tensor], Tensor]
    minimum: int = 2  # rows
    stops: bool = False  # no gradient in y, on purpose


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


def naive_sigreg(x: Tensor, y: Tensor) -> Tensor:
    """Complex exponentials and a trapezoid rule over [-3, 3], slice by slice."""
    directions = torch.randn(x.shape[1], SLICES, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(-3, 3, 33, dtype=x.dtype)
    normal = torch.exp(-(t**2) / 2)
    total = 0 * x.sum()
    for a in directions.to(x.dtype).T:
        p = x @ (a / a.norm())
        ecf = torch.stack([torch.exp(1j * t * q) for q in p.unbind()]).mean(dim=0)
        total = total + len(x) * torch.trapezoid((ecf - normal).abs() ** 2 * normal, t)
    return total / SLICES


def naive_invariance(x: Tensor, y: Tensor) -> Tensor:
    centre = (x + y) / 2
    return mean([((x - centre) ** 2).mean(), ((y - centre) ** 2).mean()])


def naive_lejepa(x: Tensor, y: Tensor) -> Tensor:
    statistic = (naive_sigreg(x, y) + naive_sigreg(y, x)) / 2
    return 0.95 * naive_invariance(x, y) + 0.05 * statistic


def naive_info_nce(x: Tensor, y: Tensor, negatives: Tensor | None = None) -> Tensor:
    terms = []
    for i, q in enumerate(x.unbind()):
        others = [*y.unbind(), *([] if negatives is None else negatives.unbind())]
        scores = [(q @ k) / (q.norm() * k.norm()) / 0.1 for k in others]
        largest = max(s.item() for s in scores)
        total = sum(torch.exp(s - largest) for s in scores)
        terms.append(torch.log(total) + largest - scores[i])
    return mean(terms)


def naive_symmetric(x: Tensor, y: Tensor) -> Tensor:
    return (naive_info_nce(x, y) + naive_info_nce(y, x)) / 2


def naive_queued(x: Tensor, y: Tensor) -> Tensor:
    return naive_info_nce(x, y, FURTHER[x.shape[-1]])


def naive_barlow(x: Tensor, y: Tensor) -> Tensor:
    a, b = columns(x), columns(y)
    n, d, total = len(x), len(a), 0
    for j in range(d):
        for k in range(d):
            root = ((n - 1) / n * covariance(a[j], a[j]) + 1e-5).sqrt()
            root = root * ((n - 1) / n * covariance(b[k], b[k]) + 1e-5).sqrt()
            c = (n - 1) / n * covariance(a[j], b[k]) / root
            total = total + ((1 - c) ** 2 if j == k else 0.0051 * c**2)
    return total


def naive_koleo(x: Tensor, y: Tensor) -> Tensor:
    units = [row / row.norm() for row in x.unbind()]
    terms = []
    for i, u in enumerate(units):
        gaps = [(u - v).norm() for j, v in enumerate(units) if j != i]
        terms.append(-torch.log(min(gaps, key=lambda gap: gap.item())))
    return mean(terms)


def naive_relational(x: Tensor, y: Tensor) -> Tensor:
    """One set of all rows, with a teacher of another width."""
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    ours = [(x[i] - x[j]).norm() for i, j in pairs]
    theirs = [(y[i, :2] - y[j, :2]).norm().detach() for i, j in pairs]
    gaps = [abs(s / mean(ours) - t / mean(theirs)) for s, t in zip(ours, theirs, strict=True)]
    return mean([g**2 / 2 if g < 1 else g - 0.5 for g in gaps])


def _barlow(x, y, valid=None, process_group=None):
    return barlow(x, y, valid, process_group=process_group)


def _koleo(x, y, valid=None, process_group=None):
    return koleo(x, valid, process_group=process_group)


def _relational(x, y, valid=None, process_group=None):
    x, y = x.flatten(0, -2), y.flatten(0, -2)
    valid = None if valid is None else valid.flatten()
    return relational_loss(x, y[..., :2], valid, process_group=process_group)


def _info_nce(x, y, valid=None, process_group=None):
    return info_nce(x, y, valid, process_group=process_group)


def _symmetric(x, y, valid=None, process_group=None):
    return info_nce(x, y, valid, symmetric=True, process_group=process_group)


def _queued(x, y, valid=None, process_group=None):
    further = FURTHER[x.shape[-1]].to(x.device, torch.promote_types(x.dtype, torch.float32))
    return info_nce(x, y, valid, negatives=further, process_group=process_group)


def _sigreg(x, y, valid=None, process_group=None):
    return sigreg(
        x, valid, num_slices=SLICES, generator=_seeded(process_group), process_group=process_group
    )


def _invariance(x, y, valid=None, process_group=None):
    both = None if valid is None else torch.stack([valid, valid])
    return invariance_loss(torch.stack([x, y]), both, process_group=process_group)


def _lejepa(x, y, valid=None, process_group=None):
    return lejepa_loss(
        torch.stack([x, y]),
        None if valid is None else torch.stack([valid, valid]),
        num_slices=SLICES,
        generator=_seeded(process_group),
        process_group=process_group,
    )


def _seeded(process_group) -> torch.Generator:
    """Of another seed on every rank but the first: the slices must be alike all the same."""
    rank = 0 if process_group is None else torch.distributed.get_rank(process_group)
    return torch.Generator().manual_seed(rank)


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
    "sigreg": BatchLoss(_sigreg, naive_sigreg, minimum=1),
    "info_nce": BatchLoss(_info_nce, naive_info_nce),
    "info_nce, symmetric": BatchLoss(_symmetric, naive_symmetric),
    "info_nce, queue": BatchLoss(_queued, naive_queued, minimum=1),
    "barlow": BatchLoss(_barlow, naive_barlow),
    "koleo": BatchLoss(_koleo, naive_koleo),
    "relational": BatchLoss(_relational, naive_relational, stops=True),
    "invariance": BatchLoss(_invariance, naive_invariance, minimum=1),
    "lejepa": BatchLoss(_lejepa, naive_lejepa, minimum=1),
}
