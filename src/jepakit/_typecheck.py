"""The checker that `JEPAKIT_TYPECHECK=1` runs over every annotation."""

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from beartype import BeartypeConf, FrozenDict, beartype

# Arguments come from configuration files and NumPy too: `_checks` turns any integral number into an
# int, any real one into a float, any sequence of them into a tuple, and refuses the rest.
_SEQUENCES: tuple[Any, ...] = (
    Sequence[int],
    Sequence[float],
    tuple[int, ...],
    tuple[float, ...],
    tuple[int, int],
    tuple[float, float],
)

check = beartype(
    conf=BeartypeConf(
        hint_overrides=FrozenDict(
            {int: Integral, float: Real, **dict.fromkeys(_SEQUENCES, Iterable)}
        )
    )
)
