"""Violations of a contract: an `AssertionError` that names the law, what was found, and where."""

from enum import StrEnum
from typing import NoReturn

import torch
from torch import Tensor


class Law(StrEnum):
    """Names of the laws that the contracts test."""

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


def fail(law: Law, found: str, *, where: str = "", hint: str = "") -> NoReturn:
    """Raise `AssertionError("law: found, at where; hint")`."""
    place = f", at {where}" if where else ""
    advice = f"; {hint}" if hint else ""
    raise AssertionError(f"{law}: {found}{place}{advice}")


def first_index(flags: Tensor) -> tuple[int, ...]:
    """Index of the first True."""
    return tuple(flags.nonzero()[0].tolist())


def require_finite(law: Law, what: str, values: Tensor) -> None:
    """Fail if `values` holds NaN or infinity."""
    bad = ~torch.isfinite(values)
    if bad.any():
        index = first_index(bad)
        fail(law, f"{what} is {values[index].item()}", where=f"index {index}")


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
        fail(law, f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    if actual.numel() == 0:
        return
    for tensor in (actual, expected):
        require_finite(law, f"{what}: a value", tensor)
    largest = float(expected.abs().max()) if scale is None else scale
    gaps = (actual - expected).abs()
    gap = float(gaps.max())
    if gap > tolerance * largest:
        index = first_index(gaps == gap)
        fail(
            law,
            f"{what}: {float(actual[index]):.6g} instead of {float(expected[index]):.6g}",
            where=f"index {index}",
            hint=f"the difference {gap:.3g} exceeds {tolerance:g} of the largest value "
            f"{largest:.3g}",
        )
