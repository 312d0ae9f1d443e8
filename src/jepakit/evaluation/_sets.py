"""Two labelled sets: which images are used, that both share classes, and how one chooses."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from jepakit._checks import check_number
from jepakit.data._subset import stratified_indices

__all__: list[str] = []

_FOLDS = 5  # one fifth of the training rows chooses


def some_images(
    dataset: Dataset[Any], num_images: int, batch_size: int, num_workers: int
) -> DataLoader[Any]:
    """Batches of at most `num_images` images from all over a set, the same in every call."""
    size = len(dataset)  # type: ignore[arg-type]  # a map-style dataset has a length
    chosen = Subset(dataset, stratified_indices(size, num_images))
    # Without a generator a loader draws a seed for its workers from torch's own, so that a look at
    # the scores would change the training that goes on after it.
    # It draws it on the default device, and wants the generator there.
    own = torch.Generator(torch.get_default_device()).manual_seed(0)
    return DataLoader(chosen, batch_size, num_workers=num_workers, generator=own)


def check_shared_classes(train: Tensor, test: Tensor) -> None:
    """Raise where no test image has a class of the training images."""
    if not torch.isin(test, train).any():
        few = [sorted(set(labels.tolist()))[:5] for labels in (train, test)]
        raise ValueError(
            f"test: must share classes with train, got labels like {few[1]}, and {few[0]} there"
        )


def choices(name: str, value: float | tuple[float, ...]) -> list[float]:
    """What an argument offers that takes a number above 0 or several: each once, smallest first."""
    values = value if isinstance(value, tuple) else (value,)
    if not values:
        raise ValueError(f"{name}=(): must hold at least one number")
    for each in values:
        check_number(name, each, positive=True)
    return sorted(set(values))


def held_out(labels: Tensor, name: str, candidates: object) -> Tensor:
    """Which training rows choose among the candidates of an argument.

    Every fifth of the shuffled rows, in the order of their classes.
    """
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(len(labels), generator=generator, device="cpu")
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    held = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    held[by_class[_FOLDS // 2 :: _FOLDS]] = True
    held[~torch.isin(labels, labels[~held])] = False  # the only row of a class is fitted
    if not held.any():
        raise ValueError(
            f"train: holds too few rows to choose among {name}={candidates}: got {len(labels)} of "
            f"{len(torch.unique(labels))} classes, and none can be held out"
        )
    return held
