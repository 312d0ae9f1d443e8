"""Argument checks in one wording: the argument, the value, the rule.

`as_*` functions take what configuration files and NumPy hold and return plain Python values, which
constructors store. `check_*` functions only raise. Both are cheap and always on. Checks of tensor
values need a host synchronisation on an accelerator, so callers guard them with `values_readable`
or, inside a forward, `value_checks_on`.
"""

import math
import os
from collections.abc import Collection, Iterable, Mapping, Set, Sized
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

T = TypeVar("T")


# Refused at once, where otherwise memory would run out after minutes.
MAX_POSITIONS, MAX_DEPTH = 2**24, 10_000


def read_switch(variable: str) -> bool:
    """Return whether an environment variable is "1"; raise unless it is "0", "1" or unset."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{variable}={value!r}: must be '0' or '1', or not be set")
    return value == "1"


TYPECHECK = read_switch("JEPAKIT_TYPECHECK")


def type_name(value: object) -> str:
    """Name of a value's type, with its module unless it is a builtin."""
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return module + kind.__qualname__


def _name_and_value(name: str, value: object) -> str:
    # Without the values of a tensor, which would fill the screen.
    return name if isinstance(value, Tensor) else f"{name}={value!r}"


# Plain Python values from what configuration files and NumPy hold


def as_bool(name: str, value: object) -> bool:
    """Return True or False; raise for everything else, 1 and "False" included."""
    if not isinstance(value, bool):
        raise TypeError(f"{_name_and_value(name, value)}: must be a bool, got {type_name(value)}")
    return value


def as_int(
    name: str, value: object, *, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Return an integral number, NumPy's included, as an int; raise for bool and float."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{_name_and_value(name, value)}: must be an int, got {type_name(value)}")
    number = int(value)
    if minimum is not None and number < minimum:
        raise ValueError(f"{name}={number}: must be at least {minimum}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name}={number}: must be at most {maximum}")
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name}={number}: must fit into 64 bits")
    return number


def as_number(
    name: str, value: object, *, positive: bool = False, minimum: float | None = None
) -> float:
    """Return a finite real number as a float; above 0 with `positive`, at least `minimum`."""
    number = _as_float(name, value)
    if not -math.inf < number < math.inf:  # not `isfinite`, which torch.compile cannot trace
        raise ValueError(f"{name}={number}: must be finite")
    if positive and number <= 0:
        raise ValueError(f"{name}={_short(number)}: must be above 0")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name}={_short(number)}: must be at least {minimum:g}")
    return number


def as_fraction(
    name: str,
    value: object,
    *,
    low: float = 0.0,
    high: float = 1.0,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return a real number in `[low, high]` as a float; `open_*` leaves an end out."""
    number = _as_float(name, value)
    above = low < number if open_low else low <= number
    below = number < high if open_high else number <= high
    if not (above and below):  # also for NaN
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(f"{name}={_short(number)}: must lie in {left}{low:g}, {high:g}{right}")
    return number


def _as_float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{_name_and_value(name, value)}: must be a number, got {type_name(value)}")
    if isinstance(value, float):
        return float(value)
    try:
        # The float32 nearest to 0.1 stands for 0.1, not for 0.10000000149: a coverage that is
        # rounded up would else be one token more.
        return float(str(value) if hasattr(value, "dtype") else value)
    except OverflowError:
        raise ValueError(f"{name}: must be finite as a float") from None


def _short(number: float) -> str:
    """Format 0.0 as 0, but 1.0000001 in full, since "1: must lie in [0, 1]" would be wrong."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def as_range(name: str, value: object, *, high: float | None = None) -> tuple[float, float]:
    """Return `(low, high)` as floats above 0, of which none exceeds `high`."""
    ends = _entries(name, value, "must be a pair of numbers (low, high)", length=2)
    first, second = (
        as_number(f"{name}[{i}]", end, positive=True)
        if high is None
        else as_fraction(f"{name}[{i}]", end, high=high, open_low=True)
        for i, end in enumerate(ends)
    )
    if first > second:
        raise ValueError(f"{name}={(first, second)}: the low end must not exceed the high end")
    return first, second


def as_ints(
    name: str, value: object, *, minimum: int | None = None, length: int | None = None
) -> tuple[int, ...]:
    """Return a sequence of integral numbers as a tuple of ints."""
    rule = "must be a pair of ints" if length == 2 else "must be a sequence of ints"
    entries = _entries(name, value, rule, length=length)
    return tuple(as_int(f"{name}[{i}]", entry, minimum=minimum) for i, entry in enumerate(entries))


def as_numbers(
    name: str, value: object, *, positive: bool = False, minimum: float | None = None
) -> tuple[float, ...]:
    """Return a sequence of finite real numbers as a tuple of floats."""
    entries = _entries(name, value, "must be a sequence of numbers")
    return tuple(
        as_number(f"{name}[{i}]", entry, positive=positive, minimum=minimum)
        for i, entry in enumerate(entries)
    )


def as_grid_size(
    name: str, value: object, *, num_axes: Collection[int] = (1, 2, 3)
) -> tuple[int, ...]:
    """Return a sequence of positive integral numbers as a tuple of ints, one for each axis."""
    rule = "must be a sequence of ints, such as (14, 14)"
    sides = _entries(name, value, rule)
    for side in sides:
        if isinstance(side, bool) or not isinstance(side, Integral):
            raise TypeError(f"{_name_and_value(name, value)}: {rule}, got {type_name(side)} in it")
    grid_size = tuple(int(side) for side in sides)
    if len(grid_size) not in num_axes:
        allowed = " or ".join(str(count) for count in num_axes)
        raise ValueError(f"{name}={grid_size}: must have {allowed} axes, got {len(grid_size)}")
    if any(side < 1 for side in grid_size):
        raise ValueError(f"{name}={grid_size}: every side must be at least 1")
    if (positions := math.prod(grid_size)) > MAX_POSITIONS:
        rule = f"must have at most {MAX_POSITIONS:,} positions, got {positions:,}"
        raise ValueError(f"{name}={grid_size}: {rule}; sides are counted in patches, not in pixels")
    return grid_size


def as_image_size(name: str, value: object) -> tuple[int, int]:
    """Return `(height, width)` in pixels from a pair, or from one number for a square."""
    pair = (value, value) if isinstance(value, Integral) else value
    height, width = as_ints(name, pair, minimum=1, length=2)
    return height, width


def as_layers(name: str, value: object, depth: int) -> list[int]:
    """Return numbers of blocks, distinct and ascending, counted from 0; -1 is the last."""
    layers = as_ints(name, value)
    numbers = [layer + depth if layer < 0 else layer for layer in layers]
    if not numbers or numbers != sorted(set(numbers) & set(range(depth))):
        raise ValueError(f"{name}={layers}: must be distinct numbers of {depth} blocks, ascending")
    return numbers


def _entries(name: str, value: object, rule: str, *, length: int | None = None) -> list[Any]:
    # Tuples of types: torch 2.6 and 2.7 cannot trace `A | B`.
    unordered = isinstance(value, (str, bytes, bytearray, memoryview, Mapping, Set, Tensor))
    if unordered or not (isinstance(value, Iterable) and isinstance(value, Sized)):
        raise TypeError(f"{_name_and_value(name, value)}: {rule}, got {type_name(value)}")
    try:
        entries = list(value)
    except TypeError:  # a NumPy array without an axis is iterable by its type only
        raise TypeError(f"{name}={value!r}: {rule}, got a single {type_name(value)}") from None
    if length is not None and len(entries) != length:
        raise TypeError(f"{name}={value!r}: {rule}, got {len(entries)} entries")
    return entries


def as_choice(name: str, value: T, choices: Collection[object]) -> T:
    """Return the one of `choices` that equals `value`; raise if there is none."""
    for choice in choices:
        # By type first: a tensor or an array has no single answer to `==`.
        if isinstance(value, type(choice)) and value == choice:
            return choice  # a plain str, where NumPy's was given
    options = ", ".join(repr(choice) for choice in choices)
    raise ValueError(f"{_name_and_value(name, value)}: must be one of {options}")


def store_fields(instance: object, **values: object) -> None:
    """Set fields of a frozen dataclass to their normalised values, from its `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


# Checks that only raise


def check_tensor(name: str, value: object, dtype: torch.dtype | None = None) -> None:
    """Raise unless `value` is a tensor, and of `dtype` if that is given."""
    if not isinstance(value, Tensor):
        kind = type_name(value)
        hint = "; convert it with torch.from_numpy" if kind == "numpy.ndarray" else ""
        raise TypeError(f"{name}: must be a torch.Tensor, got {kind}{hint}")
    if dtype is not None and value.dtype != dtype:
        wanted = str(dtype).removeprefix("torch.")
        raise TypeError(f"{name}: must be {wanted}, got {value.dtype}")


def check_floating(name: str, value: object) -> None:
    """Raise unless `value` is a floating tensor."""
    check_tensor(name, value)
    if isinstance(value, Tensor) and not value.is_floating_point():
        bytes_hint = "; jepakit.data.PixelStatistics makes floats of stored bytes"
        hint = bytes_hint if value.dtype == torch.uint8 else ""
        raise TypeError(f"{name}: must be floating point, got {value.dtype}{hint}")


def check_weight_dtype(name: str, inputs: Tensor, layer: nn.Module) -> None:
    """Raise if the first product would fail, with "mat1 and mat2 must have the same dtype"."""
    if inputs.device.type == "meta" or torch.is_autocast_enabled(inputs.device.type):
        return
    weight = next(layer.parameters(), None)
    # Sharded and quantized weights have types of their own, which convert their inputs.
    if type(weight) is nn.Parameter and weight.is_floating_point() and weight.dtype != inputs.dtype:
        raise TypeError(
            f"{name}: are {inputs.dtype}, but the weights {weight.dtype}; convert one of them, or "
            "use torch.autocast"
        )


def check_device(name: str, value: object) -> None:
    """Raise unless `value` is a device, its name or its number; a dtype is none of these."""
    if isinstance(value, bool) or not isinstance(value, (torch.device, str, int)):
        shown = type_name(value) if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"{name}={shown}: must be a device; positions have no other dtype")


def check_features(features: Tensor, dim: int, rule: str) -> None:
    """Raise unless features are `[batch, n, dim]`; `rule` says where `dim` comes from."""
    check_floating("features", features)
    if features.dim() != 3 or features.shape[-1] != dim:
        raise ValueError(f"features {tuple(features.shape)}: must be [batch, n, {dim}], {rule}")
    if len(features) == 0:
        raise ValueError(f"features {tuple(features.shape)}: the batch must not be empty")


def values_readable(*tensors: Tensor) -> bool:
    """True if tensor values can be looked at here without a device sync or a graph break."""
    if torch.compiler.is_compiling():
        return False
    return all(tensor.device.type == "cpu" for tensor in tensors)


def value_checks_on(*tensors: Tensor) -> bool:
    """True if a forward should check values: under `JEPAKIT_TYPECHECK=1`, never when compiled."""
    return TYPECHECK and values_readable(*tensors)


def check_images_finite(name: str, images: Tensor) -> None:
    """Raise if a floating tensor holds NaN or infinity, naming the first bad entry of the batch."""
    # One sum is far cheaper than `isfinite` over every pixel; only a bad sum is looked into.
    if not images.is_floating_point() or torch.isfinite(images.sum(dtype=torch.float64)):
        return
    batch_size = len(images) if images.dim() else 1
    bad = ~torch.isfinite(images).reshape(batch_size, -1).all(dim=1)
    if bad.any():
        raise ValueError(
            f"{name}: must be finite, but {int(bad.sum())} of {batch_size} entries of the batch "
            f"hold NaN or infinity (the first at batch position {int(bad.nonzero()[0])})"
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


def check_rows(
    name: str,
    features: Tensor,
    valid: Tensor | None,
    process_group: ProcessGroup | None = None,
    *,
    minimum: int = 1,
) -> None:
    """Raise unless `features` are `[*batch d]` with `minimum` rows, and `valid` fits them."""
    check_floating(name, features)
    check_process_group(process_group)
    shape = tuple(features.shape)
    if features.dim() < 2 or shape[-1] == 0:
        raise ValueError(f"{name} {shape}: must have the shape [*batch, d] with d at least 1")
    check_row_mask(name, features, valid)
    rows = features.shape[:-1].numel()
    # One rank of several may have no rows: it still takes part in the collectives.
    if process_group is None and rows < minimum:
        raise ValueError(f"{name} {shape}: must have at least {minimum} rows, got {rows}")


def check_mask(mask: Tensor, grid_size: tuple[int, ...]) -> None:
    """Raise unless a mask is bool and flat over the grid."""
    check_tensor("mask", mask, torch.bool)
    size = math.prod(grid_size)
    if mask.dim() < 1 or mask.shape[-1] != size:
        raise ValueError(
            f"mask {tuple(mask.shape)}: must be flat over the grid {grid_size}, "
            f"[*batch, {size}]; flatten the grid's axes first"
        )


def check_on_grid(name: str, idx: Tensor, grid_size: tuple[int, ...]) -> None:
    """Raise unless all positions are on the grid; a host synchronisation on an accelerator."""
    if idx.numel() == 0:
        return
    size, (low, high) = math.prod(grid_size), torch.stack(torch.aminmax(idx)).tolist()
    if low < 0 or high >= size:
        raise ValueError(
            f"{name}: must lie on the grid {grid_size}, in [0, {size - 1}], got values from {low} "
            f"to {high}"
        )


def check_generator(generator: object) -> None:
    """Raise unless `generator` is a torch generator or None; a seed is neither."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{_name_and_value('generator', generator)}: must be a torch.Generator or None, got "
            f"{type_name(generator)}; for a seed, torch.Generator().manual_seed(seed)"
        )


def check_process_group(process_group: object) -> None:
    """Raise unless it is a process group or None; `new_group` gives other ranks an int."""
    if process_group is not None and not isinstance(process_group, ProcessGroup):
        raise TypeError(
            f"{_name_and_value('process_group', process_group)}: must be a torch.distributed "
            f"ProcessGroup or None, got {type_name(process_group)}"
        )
