"""Sets of grid positions with their validity, and the operations between them and features."""

from jepakit.tokens.masks import Masks
from jepakit.tokens.ops import mean_tokens, put_tokens, take_tokens
from jepakit.tokens.token_set import TokenSet

__all__ = ["Masks", "TokenSet", "mean_tokens", "put_tokens", "take_tokens"]
