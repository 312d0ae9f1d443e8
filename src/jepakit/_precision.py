"""Full precision: float32 for exact steps, inside half precision and autocast too."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def float32_or_wider(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor in float32, any other as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast, which computes float32 products in half precision."""
    if tensor.device.type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
