"""A small subset that represents a whole dataset."""

import torch


def stratified_indices(size: int, count: int) -> list[int]:
    """Return at most `count` indices below `size`, one at random from each of as many equal parts.

    They are the same in every call. Simpler choices can miss the proportions of the classes: the
    first samples of a set that is sorted by class are of few classes; evenly spaced samples are,
    too, if the classes alternate; and independent draws vary.
    """
    count = min(count, size)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(count, generator=generator, device="cpu", dtype=torch.float64)
    edges = torch.arange(count + 1, device="cpu") * size // max(count, 1)
    chosen: list[int] = (edges[:-1] + (draws * edges.diff()).long()).tolist()
    return chosen
