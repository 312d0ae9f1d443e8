"""Checks of arguments that need a `TokenSet`; all others are in `jepakit._checks`."""

from torch import Tensor

from jepakit._checks import type_name
from jepakit.tokens.token_set import TokenSet


def check_token_set(name: str, value: object, *, like: str = "") -> None:
    """Raise unless `value` is a `TokenSet`; `like` names one that the caller is likely to have."""
    if not isinstance(value, TokenSet):
        examples = " or ".join(filter(None, [like, "TokenSet.from_mask(mask, grid_size)"]))
        raise TypeError(f"{name}: must be a TokenSet, such as {examples}, got {type_name(value)}")


def check_entries(features: Tensor, tokens: TokenSet) -> None:
    """Raise unless there is one feature vector for each entry of a set."""
    if features.shape[:-1] != tokens.shape:
        raise ValueError(
            f"features {tuple(features.shape)}: must hold one feature vector for each entry of "
            f"tokens {tuple(tokens.shape)}"
        )


def check_same_device(name: str, tokens: TokenSet, other: str, tensor: Tensor) -> None:
    """Raise unless a set is on the device of its features."""
    if tokens.idx.device != tensor.device:
        raise ValueError(
            f"{name} is on {tokens.idx.device}, {other} on {tensor.device}: must be on one device; "
            "masks move as tensors do, masks.to(device)"
        )


def check_positions(name: str, tokens: TokenSet, features: Tensor) -> None:
    """Raise unless a token set holds one position for each feature vector."""
    check_token_set(name, tokens, like="masks.context")
    if tokens.shape != features.shape[:2]:
        raise ValueError(
            f"{name} {tuple(tokens.shape)}: must list the positions of features "
            f"{tuple(features.shape)}, so be {tuple(features.shape[:2])}"
        )
    check_same_device(name, tokens, "features", features)


def check_context(context: TokenSet, grid_size: tuple[int, ...], name: str, inputs: Tensor) -> None:
    """Raise unless an encoder's context `[batch, n]` fits its inputs and their grid."""
    check_token_set("context", context, like="masks.context")
    if context.grid_size != grid_size:
        raise ValueError(
            f"context is on the grid {context.grid_size}: must be on the {name}' grid {grid_size}"
        )
    if context.idx.dim() != 2 or len(context.idx) != len(inputs):
        size = tuple(context.shape)
        raise ValueError(f"context {size}: must be [batch, n] of the batch size {len(inputs)}")
    check_same_device("context", context, name, inputs)
