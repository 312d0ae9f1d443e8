"""Which code a vector gets: the nearest, or one drawn by its distance."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__: list[str] = []

# Below it a vector has no direction.
_MIN_NORM = 1e-6
# Well above it: what the sum of a direction is not allowed to fall below.
_FADED = 1e-3
# Entries of the table of distances that stand in memory at once.
_TABLE = 2**26


def unit(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Vectors scaled to length 1."""
    return F.normalize(vectors, dim=-1, eps=_MIN_NORM)


def not_faded(sums: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """Sums of directions, lengthened where nothing has voted for long: they are codes still."""
    length = torch.linalg.vector_norm(sums, dim=-1, keepdim=True)
    grown: Tensor = sums * (_FADED / length.clamp(min=1e-30)).clamp(min=1)
    return grown


def scores(vectors: Float[Tensor, "n d"], codes: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    """Minus the squared distances, up to a number for each vector."""
    # Around the codes' mean: far from the origin, differences of products would cancel.
    centre = codes.mean(dim=0)
    codes = codes - centre
    return 2 * (vectors - centre) @ codes.T - codes.square().sum(dim=1)


def nearest(vectors: Float[Tensor, "n d"], codes: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """The number of the nearest code of each vector, the first of equals."""
    rows = max(1, _TABLE // len(codes))
    parts = torch.split(vectors, rows)
    return torch.cat([scores(part, codes).argmax(dim=1) for part in parts])


def drawn(
    vectors: Float[Tensor, "n d"],
    codes: Float[Tensor, "k d"],
    temperature: float,
    generator: torch.Generator | None,
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n d"]]:
    """The number of a sampled code, and the mean of all codes under the relaxed sample."""
    logits = scores(vectors, codes) / temperature
    logits = logits + gumbel_like(logits, generator)
    return logits.argmax(dim=1), logits.softmax(dim=1) @ codes


def gumbel_like(
    logits: Float[Tensor, "n k"], generator: torch.Generator | None
) -> Float[Tensor, "n k"]:
    """Gumbel noise, drawn on the generator's device."""
    device = logits.device if generator is None else generator.device
    noise = torch.empty(logits.shape, dtype=torch.float32, device=device)
    noise.exponential_(generator=generator)
    return -noise.clamp(min=torch.finfo(noise.dtype).tiny).log().to(logits)
