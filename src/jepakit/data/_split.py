"""`Split`: what every source of data is read to."""

from typing import Any, NamedTuple

from torch.utils.data import Dataset


class Split(NamedTuple):
    """A training and a test set."""

    train: Dataset[Any]
    test: Dataset[Any]
