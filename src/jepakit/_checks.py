"""Argument checks with one wording: the argument, the value, the rule.

The checks here are cheap and stay on always. Checks of tensor values read data back from the
device, so callers guard them with `values_readable` or, inside a forward, `value_checks_on`.
"""

import math
import os
from collections.abc import Collection

import torch
from torch import Tensor

__all__ = [
    "TYPECHECK",
    "check_choice",
    "check_fraction",
    "check_grid_size",
    "check_images_finite",
    "check_int",
    "check_number",
    "check_range",
    "value_checks_on",
    "values_readable",
]

TYPECHECK = os.environ.get("JEPAKIT_TYPECHECK", "0") == "1"


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        options = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}={value!r}: must be one of {options}")


def check_int(name: str, value: object, *, minimum: int) -> None:
    """Raise unless `value` is an int (no bool) of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: must be an int, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name}={value}: must be at least {minimum}")


def check_number(name: str, value: object, *, positive: bool = False) -> None:
    """Raise unless `value` is a finite number, and above 0 with `positive`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r}: must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value}: must be finite")
    if positive and value <= 0:
        raise ValueError(f"{name}={value}: must be above 0")


def check_fraction(
    name: str, value: object, *, low: float = 0.0, high: float = 1.0, open_low: bool = False
) -> None:
    """Raise unless `value` is a number in `[low, high]`, or `(low, high]` with `open_low`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r}: must be a number, got {type(value).__name__}")
    inside = (low < value if open_low else low <= value) and value <= high
    if not inside:  # NaN lands here too
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}={value}: must lie in {bracket}{low:g}, {high:g}]")


def check_range(name: str, value: object, *, high: float = math.inf) -> None:
    """Raise unless `value` is a pair `(low, high)` with `0 < low <= high <= high`."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{name}={value!r}: must be a pair (low, high)")
    for end in value:
        check_fraction(name, end, high=high, open_low=True)
    if value[0] > value[1]:
        raise ValueError(f"{name}={value}: the low end must not exceed the high end")
    if math.isinf(value[1]):
        raise ValueError(f"{name}={value}: both ends must be finite")


def check_grid_size(name: str, value: object, *, ndims: Collection[int] = (1, 2, 3)) -> None:
    """Raise unless `value` is a tuple of positive ints with an allowed number of axes."""
    if not isinstance(value, tuple) or not all(isinstance(side, int) for side in value):
        raise TypeError(f"{name}={value!r}: must be a tuple of ints, such as (14, 14)")
    if len(value) not in ndims:
        allowed = " or ".join(str(ndim) for ndim in ndims)
        raise ValueError(f"{name}={value}: must have {allowed} axes, got {len(value)}")
    if any(side < 1 for side in value):
        raise ValueError(f"{name}={value}: every side must be at least 1")


def values_readable(*tensors: Tensor) -> bool:
    """Whether tensor values can be looked at here without a device sync or a graph break."""
    if torch.compiler.is_compiling():
        return False
    return all(tensor.device.type == "cpu" for tensor in tensors)


def value_checks_on(*tensors: Tensor) -> bool:
    """Whether a forward should check values: under `JEPAKIT_TYPECHECK=1`, never when compiled."""
    return TYPECHECK and values_readable(*tensors)


def check_images_finite(name: str, images: Tensor) -> None:
    """Raise if a floating tensor holds NaN or infinity, naming the first bad entry of the batch."""
    if not images.is_floating_point():
        return
    # One sum is far cheaper than `isfinite` over every pixel; only a bad sum is looked into.
    if torch.isfinite(images.sum(dtype=torch.float64)):
        return
    bad = (
        ~torch.isfinite(images).flatten(1).all(dim=1)
        if images.dim() > 1
        else ~torch.isfinite(images)
    )
    if bad.any():
        first = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"{name}: must be finite, but {int(bad.sum())} of {len(images)} entries of the batch "
            f"hold NaN or infinity (the first at batch position {first})"
        )
