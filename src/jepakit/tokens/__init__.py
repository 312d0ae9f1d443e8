"""Sets of grid positions that carry their validity, and the way between them and features."""

from jepakit.tokens.gather import put_tokens, take_tokens
from jepakit.tokens.masks import Masks
from jepakit.tokens.mean import mean_tokens
from jepakit.tokens.token_set import TokenSet

__all__ = ["Masks", "TokenSet", "mean_tokens", "put_tokens", "take_tokens"]
