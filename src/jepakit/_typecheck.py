"""The checker that `JEPAKIT_TYPECHECK=1` runs over every annotation."""

from beartype import BeartypeConf, beartype

__all__ = ["check"]

# As static checkers have it, an int is a float too.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
