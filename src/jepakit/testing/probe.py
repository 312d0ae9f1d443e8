"""What modules are probed with: a copy with moved parameters, and ragged sets of every kind."""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit.tokens import TokenSet

__all__: list[str] = []

T = TypeVar("T")


def moved_copy(part: T, generator: torch.Generator, scale: float = 0.02) -> T:
    """A copy in eval mode whose parameters are moved a little.

    Biases of 0, a zero-initialised last layer or a layer scale of 1e-5 would hide what a part does.
    """
    part = copy.deepcopy(part)
    if isinstance(part, nn.Module):
        part.eval()
        with torch.no_grad():
            for parameter in part.parameters():
                if parameter.is_floating_point():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise.to(parameter), alpha=scale)
    return part


def trainable(part: object) -> dict[str, Tensor]:
    """Parameters that ask for a gradient, by name; none if `part` is no module."""
    if not isinstance(part, nn.Module):
        return {}
    return {name: tensor for name, tensor in part.named_parameters() if tensor.requires_grad}


def ragged_sets(
    grid_size: tuple[int, ...],
    batch_shape: tuple[int, ...],
    generator: torch.Generator,
    device: torch.device,
    *,
    extra: int = 0,
) -> TokenSet:
    """Sets of random sizes from 1 up; the first has one member, the second is the whole grid."""
    size = math.prod(grid_size)
    counts = torch.randint(1, size + 1, batch_shape, generator=generator)
    counts.view(-1)[0] = 1
    counts.view(-1)[1:2] = size
    order = torch.rand(*batch_shape, size, generator=generator).argsort(dim=-1)
    # The set with one member is not patch 0, which is where padding points.
    order.view(-1, size)[0] = size - 1 - torch.arange(size)
    tokens = TokenSet.from_mask(order < counts.unsqueeze(-1), grid_size).to(device)
    return wider(tokens, extra)


def wider(tokens: TokenSet, extra: int) -> TokenSet:
    """The same sets with more padding, marked as padded."""
    idx, valid = F.pad(tokens.idx, (0, extra)), F.pad(tokens.valid, (0, extra))
    return TokenSet(idx, valid, tokens.grid_size, padded=True)


def alone(tokens: TokenSet, sample: int) -> TokenSet:
    """One sample's sets with no more padding than they need."""
    return TokenSet.from_mask(tokens.to_mask()[sample : sample + 1], tokens.grid_size)


def without(tokens: TokenSet, samples: slice) -> TokenSet:
    """The same sets, those of some samples emptied."""
    mask = tokens.to_mask()
    mask[samples] = False
    return wider(TokenSet.from_mask(mask, tokens.grid_size), 1)
