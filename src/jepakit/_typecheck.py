"""The checker that `JEPAKIT_TYPECHECK=1` runs over every annotation."""

from collections.abc import Iterable, Sequence
from numbers import Integral, Real

from beartype import BeartypeConf, FrozenDict, beartype

__all__ = ["check"]

# Arguments come from configuration files and NumPy too: `_checks` turns any integral number into an
# int, any real one into a float, any sequence of them into a tuple, and refuses the rest.
check = beartype(
    conf=BeartypeConf(
        hint_overrides=FrozenDict(
            {int: Integral, float: Real, Sequence[int]: Iterable, Sequence[float]: Iterable}
        )
    )
)
