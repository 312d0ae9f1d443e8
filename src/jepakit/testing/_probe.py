"""Inputs of the contracts for modules: a perturbed copy of the module, and ragged token sets."""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit.tokens import TokenSet

T = TypeVar("T")


def perturbed_copy(part: T, generator: torch.Generator, scale: float = 0.02) -> T:
    """Copy `part` in eval mode and add noise to its parameters.

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


def trainable_parameters(part: object) -> dict[str, Tensor]:
    """Parameters with `requires_grad`, by name; none if `part` is not a module."""
    if not isinstance(part, nn.Module):
        return {}
    return {name: tensor for name, tensor in part.named_parameters() if tensor.requires_grad}


def ragged_token_sets(
    grid_size: tuple[int, ...],
    batch_shape: tuple[int, ...],
    generator: torch.Generator,
    device: torch.device,
    *,
    extra_padding: int = 0,
) -> TokenSet:
    """Sets of random sizes from 1 up; the first has one member, the second is the whole grid."""
    size = math.prod(grid_size)
    counts = torch.randint(1, size + 1, batch_shape, generator=generator)
    counts.view(-1)[0] = 1
    counts.view(-1)[1:2] = size
    order = torch.rand(*batch_shape, size, generator=generator).argsort(dim=-1)
    # The only member of the first set is the last patch: padding has index 0, so with patch 0 an
    # encoder that treats padding as patch 0 would go unnoticed.
    order.view(-1, size)[0] = size - 1 - torch.arange(size)
    tokens = TokenSet.from_mask(order < counts.unsqueeze(-1), grid_size).to(device)
    return padded_further(tokens, extra_padding)


def padded_further(tokens: TokenSet, extra_padding: int) -> TokenSet:
    """The same sets with more padding, marked as padded."""
    idx, valid = F.pad(tokens.idx, (0, extra_padding)), F.pad(tokens.valid, (0, extra_padding))
    return TokenSet(idx, valid, tokens.grid_size, padded=True)


def single_sample(tokens: TokenSet, sample: int) -> TokenSet:
    """The sets of one sample, as a batch of 1 without needless padding."""
    return TokenSet.from_mask(tokens.to_mask()[sample : sample + 1], tokens.grid_size)


def emptied(tokens: TokenSet, samples: slice) -> TokenSet:
    """The same sets, those of `samples` without any member; one entry of padding is added."""
    mask = tokens.to_mask()
    mask[samples] = False
    return padded_further(TokenSet.from_mask(mask, tokens.grid_size), 1)
