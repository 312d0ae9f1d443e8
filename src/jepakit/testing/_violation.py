"""Violations of a contract: an `AssertionError` that names the law, what was found, and where."""

from collections.abc import Callable, Sequence
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
    ORDER = "law 16, order"
    SET = "a set has no order"
    ROLLOUT = "rollout equals forward"
    POSITIONS = "positions matter"
    COMPARES = "pred is compared with target"
    LEARNS = "every parameter learns"


def fail(law: Law, found: str, *, where: str = "", hint: str = "") -> NoReturn:
    """Raise `AssertionError("law: found, at where; hint")`."""
    place = f", at {where}" if where else ""
    advice = f"; {hint}" if hint else ""
    raise AssertionError(f"{law}: {found}{place}{advice}")


def require(law: Law, holds: object, found: str, *, where: str = "", hint: str = "") -> None:
    """Fail unless `holds`."""
    if not holds:
        fail(law, found, where=where, hint=hint)


def require_nowhere(
    law: Law,
    flags: Tensor,
    found: str | Callable[..., str],
    *,
    axes: str = "",
    hint: str = "",
) -> None:
    """Fail at the first True of `flags`; `found` may be a function of its index.

    With the axes "sample entry" of `flags`, the error names "sample 2, entry 0".
    """
    if flags.any():
        index = first_index(flags)
        named = ", ".join(map("{} {}".format, axes.split(), index))
        text = found if isinstance(found, str) else found(*index)
        fail(law, text, where=named or f"index {index}", hint=hint)


def first_index(flags: Tensor) -> tuple[int, ...]:
    """Index of the first True."""
    return tuple(flags.nonzero()[0].tolist())


def require_attributes(role: str, part: object, names: Sequence[str]) -> None:
    """Fail unless `part` has all attributes; `role` is what it is, such as "a teacher"."""
    for name in names:
        found = f"{role} must have {name}; {type(part).__name__} has none"
        require(Law.INTERFACE, hasattr(part, name), found)


def require_shape(what: str, value: object, shape: Sequence[int]) -> None:
    """Fail unless `value` is a tensor of this shape."""
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    require(Law.INTERFACE, found == tuple(shape), f"{what} {tuple(shape)}, got {found}")


def require_finite(law: Law, what: str, values: Tensor) -> None:
    """Fail if `values` holds NaN or infinity."""
    require_nowhere(law, ~torch.isfinite(values), lambda *at: f"{what} is {values[at].item()}")


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
        at = first_index(gaps == gap)
        fail(
            law,
            f"{what}: {float(actual[at]):.6g} instead of {float(expected[at]):.6g}",
            where=f"index {at}",
            hint=f"the difference {gap:.3g} exceeds {tolerance:g} of the largest value "
            f"{largest:.3g}",
        )
