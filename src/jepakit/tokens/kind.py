"""The check that an argument is a `TokenSet`, with what to pass where it is something else."""

from jepakit._checks import kind_of
from jepakit.tokens.token_set import TokenSet

__all__ = ["check_token_set"]


def check_token_set(name: str, value: object, *, like: str = "") -> None:
    """Raise unless `value` is a `TokenSet`; `like` is where a caller most likely has one."""
    if not isinstance(value, TokenSet):
        examples = " or ".join(filter(None, [like, "TokenSet.from_mask(mask, grid_size)"]))
        raise TypeError(f"{name}: must be a TokenSet, such as {examples}, got {kind_of(value)}")
