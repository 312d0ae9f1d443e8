"""Argument checks with one wording: the argument, the value, the rule.

The checks here are cheap and stay on always. Checks of tensor values read data back from the
device, so callers guard them with `values_readable` or, inside a forward, `value_checks_on`.
"""

import math
import os
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

__all__ = [
    "TYPECHECK",
    "check_bool",
    "check_choice",
    "check_device",
    "check_floating",
    "check_fraction",
    "check_grid_size",
    "check_images_finite",
    "check_int",
    "check_number",
    "check_pair",
    "check_process_group",
    "check_range",
    "check_row_mask",
    "check_same_shape",
    "check_tensor",
    "kind_of",
    "read_switch",
    "value_checks_on",
    "values_readable",
]


def read_switch(variable: str) -> bool:
    """Whether an environment variable is "1"; raise unless it is "0", "1", empty or not set."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{variable}={value!r}: must be '0' or '1', or not be set")
    return value == "1"


TYPECHECK = read_switch("JEPAKIT_TYPECHECK")


def kind_of(value: object) -> str:
    """Name of a value's type, with its module unless it is a builtin."""
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def check_bool(name: str, value: object) -> None:
    """Raise unless `value` is True or False; 1 and "False" are neither."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: must be a bool, got {kind_of(value)}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        options = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}={value!r}: must be one of {options}")


def check_int(name: str, value: object, *, minimum: int) -> None:
    """Raise unless `value` is an int (no bool) of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        shown = "" if isinstance(value, Tensor) else f"={value!r}"  # pixels say nothing
        raise TypeError(f"{name}{shown}: must be an int, got {kind_of(value)}")
    if value < minimum:
        raise ValueError(f"{name}={value}: must be at least {minimum}")


def check_number(
    name: str, value: object, *, positive: bool = False, minimum: float | None = None
) -> None:
    """Raise unless `value` is a finite number, above 0 with `positive`, at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r}: must be a number, got {kind_of(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value}: must be finite")
    if positive and value <= 0:
        raise ValueError(f"{name}={value}: must be above 0")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name}={value}: must be at least {minimum:g}")


def check_fraction(
    name: str, value: object, *, low: float = 0.0, high: float = 1.0, open_low: bool = False
) -> None:
    """Raise unless `value` is a number in `[low, high]`, or `(low, high]` with `open_low`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r}: must be a number, got {kind_of(value)}")
    inside = (low < value if open_low else low <= value) and value <= high
    if not inside:  # NaN lands here too
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}={value}: must lie in {bracket}{low:g}, {high:g}]")


def check_pair(name: str, value: object, ends: str = "(low, high)") -> tuple[Any, Any]:
    """The two ends of a tuple; raise unless `value` is one."""
    if not isinstance(value, tuple):
        raise TypeError(f"{name}={value!r}: must be a tuple {ends}, got {kind_of(value)}")
    if len(value) != 2:
        raise TypeError(f"{name}={value!r}: must be a pair {ends}, got {len(value)} entries")
    return value


def check_range(name: str, value: object, *, high: float = math.inf) -> None:
    """Raise unless `value` is a pair `(low, high)` with `0 < low <= high <= high`."""
    low_end, high_end = check_pair(name, value)
    for end in (low_end, high_end):
        check_fraction(name, end, high=high, open_low=True)
    if low_end > high_end:
        raise ValueError(f"{name}={value}: the low end must not exceed the high end")
    if math.isinf(high_end):
        raise ValueError(f"{name}={value}: both ends must be finite")


def check_grid_size(name: str, value: object, *, ndims: Collection[int] = (1, 2, 3)) -> None:
    """Raise unless `value` is a tuple of positive ints with an allowed number of axes."""
    rule = "must be a tuple of ints, such as (14, 14)"
    if not isinstance(value, tuple):
        raise TypeError(f"{name}={value!r}: {rule}, got {kind_of(value)}")
    for side in value:
        if isinstance(side, bool) or not isinstance(side, int):
            raise TypeError(f"{name}={value!r}: {rule}, got {kind_of(side)} in it")
    if len(value) not in ndims:
        allowed = " or ".join(str(ndim) for ndim in ndims)
        raise ValueError(f"{name}={value}: must have {allowed} axes, got {len(value)}")
    if any(side < 1 for side in value):
        raise ValueError(f"{name}={value}: every side must be at least 1")


def check_tensor(name: str, value: object, dtype: torch.dtype | None = None) -> None:
    """Raise unless `value` is a tensor, and of `dtype` if that is given."""
    if not isinstance(value, Tensor):
        kind = kind_of(value)
        hint = "; convert it with torch.from_numpy" if kind == "numpy.ndarray" else ""
        raise TypeError(f"{name}: must be a torch.Tensor, got {kind}{hint}")
    if dtype is not None and value.dtype != dtype:
        wanted = str(dtype).removeprefix("torch.")
        raise TypeError(f"{name}: must be {wanted}, got {value.dtype}")


def check_floating(name: str, value: object) -> None:
    """Raise unless `value` is a floating tensor."""
    check_tensor(name, value)
    if isinstance(value, Tensor) and not value.is_floating_point():
        hint = "; jepakit.data.PixelStatistics makes floats of stored bytes"
        raise TypeError(
            f"{name}: must be floating point, got {value.dtype}"
            + hint * (value.dtype == torch.uint8)
        )


def check_device(name: str, value: object) -> None:
    """Raise unless `value` names a device for positions: `Tensor.to` would take a dtype too."""
    if isinstance(value, bool) or not isinstance(value, torch.device | str | int):
        shown = kind_of(value) if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"{name}={shown}: must be a device; positions have no other dtype")


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
    if images.dim() == 0:
        if not torch.isfinite(images):
            raise ValueError(f"{name}: must be finite, but a scalar among them is {images.item()}")
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


def check_same_shape(name: str, features: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless both are floating and of one shape."""
    check_floating(name, features)
    check_floating(other_name, other)
    if features.shape != other.shape:
        raise ValueError(
            f"{name} {tuple(features.shape)}: must have the shape of {other_name} "
            f"{tuple(other.shape)}; nothing is broadcast"
        )


def check_row_mask(name: str, features: Tensor, valid: Tensor | None) -> None:
    """Raise unless `valid` is None or says of every row of the features whether it counts."""
    if valid is None:
        return
    check_tensor("valid", valid, torch.bool)
    if valid.shape != features.shape[:-1]:
        raise ValueError(
            f"valid {tuple(valid.shape)}: must have the shape of {name} without its last axis, "
            f"{tuple(features.shape[:-1])}; nothing is broadcast"
        )


def check_process_group(process_group: object) -> None:
    """Raise unless it is a process group or None; a rank outside a group is handed a number."""
    if process_group is not None and not isinstance(process_group, ProcessGroup):
        raise TypeError(
            f"process_group={process_group!r}: must be a torch.distributed ProcessGroup or None, "
            f"got {kind_of(process_group)}"
        )
