"""Selection of a hyperparameter on held-out training rows."""

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from jepakit._checks import as_number, as_numbers

_FOLDS = 5  # one fifth of the training rows is held out


def as_candidates(name: str, value: float | Sequence[float]) -> list[float]:
    """Return the positive numbers that an argument holds, one or several: unique, ascending."""
    if isinstance(value, Real):
        return [as_number(name, value, positive=True)]
    numbers = as_numbers(name, value, positive=True)
    if not numbers:
        raise ValueError(f"{name}={value}: must hold at least one number")
    return sorted(set(numbers))


def held_out(labels: Tensor, name: str, candidates: list[float]) -> Tensor:
    """Return True for the training rows on which to choose among the candidates of an argument.

    Rows are shuffled and sorted by class, and every fifth is held out. So every class is
    represented in proportion, and no class by its last rows alone, as in a sorted file.
    """
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(len(labels), generator=generator, device="cpu")
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    held = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    held[by_class[_FOLDS // 2 :: _FOLDS]] = True
    held[~torch.isin(labels, labels[~held])] = False  # the only row of a class is needed to fit
    if not held.any():
        got = f"got {len(labels)} of {len(torch.unique(labels))} classes"
        raise ValueError(f"train: too few rows to choose among {name}={tuple(candidates)}: {got}")
    return held
