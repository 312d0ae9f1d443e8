"""Some samples that stand for a whole set."""

import torch


def drawn_indices(size: int, count: int) -> list[int]:
    """Indices of at most `count` samples: of as many equal stretches one each, at random, the same
    in every call.

    The first samples of a folder of images are of few classes; evenly spread ones are, too, where a
    set goes round its classes; and plain draws of a sorted set miss the shares of its classes.
    """
    count = min(count, size)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(count, generator=generator, device="cpu", dtype=torch.float64)
    edges = torch.arange(count + 1, device="cpu") * size // max(count, 1)
    chosen: list[int] = (edges[:-1] + (draws * edges.diff()).long()).tolist()
    return chosen
