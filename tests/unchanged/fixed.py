"""Inputs and parameters that no generator draws, and short records of large tensors."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from jepakit import TokenSet

M = TypeVar("M", bound=nn.Module)

_LOW = 0xFFFFFFFF
_ENTRIES, _PROJECTIONS = 24, 12


def noise(*shape: int, key: int = 0) -> Tensor:
    """Numbers of mean 0 and variance 1, uniform, from integer arithmetic alone; float64."""
    x = torch.arange(math.prod(shape)) + 7919 * key + 1
    for factor in (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35):
        x = (x * factor) & _LOW
        x = x ^ (x >> 15)
    return ((x.double() / 2**31 - 1) * math.sqrt(3)).reshape(shape)


def filled(module: M) -> M:
    """The module in float64 and eval mode, its parameters far from where training starts.

    Values follow from a parameter's shape and from how many of that shape came before, so they
    survive new names and most changes of order. What starts at 1 stays near it.
    """
    module = module.double().eval()
    seen: dict[tuple[int, ...], int] = {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            shape = tuple(parameter.shape)
            if name.endswith("mask_token") and shape[:-1] == (1,):
                shape = shape[1:]  # a vector where the results were stored
            seen[shape] = seen.get(shape, 0) + 1
            values = noise(*shape, key=100 * len(shape) + seen[shape])
            if len(shape) <= 1:
                near_one = bool((parameter == 1).all())
                parameter.copy_(0.2 * values + near_one)
            else:
                fan_in = parameter[0].numel() if len(shape) in (4, 5) else shape[-1]
                parameter.copy_(values / math.sqrt(fan_in))
    return module


def ragged(grid_size: tuple[int, ...], *batch: int, key: int = 0, share: float = 0.5) -> TokenSet:
    """Padded sets of about this share of the grid; of several, one is empty, one a single cell."""
    mask = noise(*batch, math.prod(grid_size), key=key) < math.sqrt(3) * (2 * share - 1)
    if len(batch) > 1:
        mask[-1, -1] = mask[0, -1] = False
        mask[0, -1, 1] = True
    tokens = TokenSet.from_mask(mask, grid_size)
    return TokenSet(tokens.idx, tokens.valid, grid_size, padded=True)


def even(grid_size: tuple[int, ...], *batch: int, length: int, key: int = 0) -> TokenSet:
    """Sets of one length, without padding."""
    order = noise(*batch, math.prod(grid_size), key=key).argsort(dim=-1)
    idx = order[..., :length].sort(dim=-1).values
    return TokenSet(idx, torch.ones_like(idx, dtype=torch.bool), grid_size, padded=False)


def valid_rows(*shape: int, key: int = 0) -> Tensor:
    """True for about three of four."""
    return noise(*shape, key=key) < 0.8


def short(tensor: Tensor) -> Tensor:
    """Some entries of a tensor and its projections on fixed unit vectors, in float64.

    A tensor of a few entries is kept as it is. Projections are as large as entries are, and see
    every entry at its place.
    """
    flat = tensor.detach().double().flatten()
    if len(flat) <= _ENTRIES + _PROJECTIONS:
        return flat
    step = len(flat) // _ENTRIES
    axes = noise(_PROJECTIONS, len(flat), key=17)
    return torch.cat([flat[::step][:_ENTRIES], axes @ flat / math.sqrt(len(flat))])
