"""Full precision: what has to be exact is not computed in a half type, whatever autocast says."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["float32_or_wider", "full_precision"]


def float32_or_wider(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is of a half type, else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast off: it would compute matrix products of float32 numbers in a half type."""
    if tensor.device.type == "meta":  # knows no autocast
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
