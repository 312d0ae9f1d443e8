"""How a contract fails: an `AssertionError` that names the law, what was seen, and where."""

from enum import StrEnum
from typing import NoReturn

import torch
from torch import Tensor

__all__ = ["Law", "fail", "first_of", "require_close"]


class Law(StrEnum):
    """The laws that the contracts look at, as their texts name them."""

    INTERFACE = "interface"
    GUARANTEE = "law 1, guarantee"
    PURE = "law 2, pure function of the generator"
    FULL = "law 3, full context"
    LEAK = "law 4, no leak"
    BATCH = "law 5, batch invariance"
    PADDING = "law 6, padding is absent"
    MEAN = "law 7, one mean over valid tokens"
    TEACHER = "law 9, teacher"
    COPIES = "law 13, repr and copies"
    POSITIONS = "positions matter"
    COMPARES = "pred is compared with target"
    LEARNS = "every parameter learns"


def fail(law: Law, seen: str) -> NoReturn:
    """Raise the `AssertionError` of a broken law."""
    raise AssertionError(f"{law}: {seen}")


def first_of(flags: Tensor) -> tuple[int, ...]:
    """Index of the first True."""
    return tuple(flags.nonzero()[0].tolist())


def require_close(
    law: Law,
    what: str,
    actual: Tensor,
    expected: Tensor,
    tolerance: float,
    *,
    scale: float | None = None,
) -> None:
    """Fail unless two tensors agree to `tolerance` times `scale`, the largest expected value."""
    actual, expected = actual.detach(), expected.detach()
    if actual.shape != expected.shape:
        fail(law, f"{what}: shape {tuple(actual.shape)} against {tuple(expected.shape)}")
    if actual.numel() == 0:
        return
    for tensor in (actual, expected):
        if not torch.isfinite(tensor).all():
            where = first_of(~torch.isfinite(tensor))
            fail(law, f"{what}: {float(tensor[where])} at {where}")
    largest = float(expected.abs().max()) if scale is None else scale
    gaps = (actual - expected).abs()
    gap = float(gaps.max())
    if gap > tolerance * largest:
        where = first_of(gaps == gap)
        fail(
            law,
            f"{what}: {float(actual[where]):.6g} against {float(expected[where]):.6g} at {where}, "
            f"a difference of {gap:.3g} where {tolerance:g} of the largest value {largest:.3g} is "
            "allowed",
        )
