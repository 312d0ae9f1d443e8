"""What `MaskedViT` asks of a timm model, whatever its family."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jepakit.nn._features import key_mask
from jepakit.tokens import TokenSet, take_tokens

__all__: list[str] = []


class Backbone(ABC):
    """A timm model, how it is told what is visible, and where its patches are.

    No module: the model's own names in a state dict stay as they are.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    @abstractmethod
    def grid_size(self) -> tuple[int, int]:
        """Grid of the tokens that come out, for images of the size the model was built for."""

    @abstractmethod
    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Grid of the tokens for images of `size` pixels; raises if the model refuses them."""

    @abstractmethod
    def tokens(
        self, images: Float[Tensor, "b c h w"], context: TokenSet | None
    ) -> Float[Tensor, "b n d"]:
        """Tokens after the final norm, prefix tokens first; of the context, if there is one."""

    @abstractmethod
    def intermediates(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int], context: TokenSet | None
    ) -> list[Float[Tensor, "b n d"]]:
        """Patch tokens after the given layers, without norm."""

    @property
    def embed_dim(self) -> int:
        """Width of a token that comes out."""
        return int(self.model.num_features)

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return int(getattr(self.model, "in_chans", 3))

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens in front of the patches."""
        return int(getattr(self.model, "num_prefix_tokens", 0))

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """How many layers `intermediates` can choose from."""

    @property
    def has_class_token(self) -> bool:
        """Whether the first prefix token is a class token."""
        return getattr(self.model, "cls_token", None) is not None

    def attention_pooled(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """All tokens pooled by the model's own `attn_pool`."""
        return cast(Tensor, self.model.pool(tokens))


class DroppingBackbone(Backbone):
    """A model of one sequence of blocks, before which patches can be dropped."""

    @classmethod
    @abstractmethod
    def lacks(cls, model: Any) -> str | None:
        """What a model lacks to be one of this family; None if nothing."""

    @property
    def num_layers(self) -> int:
        return len(self.model.blocks)

    @abstractmethod
    def show(self, context: TokenSet | None) -> dict[str, Tensor]:
        """Make the model keep the context's patches, all with None; gives what its forward takes.

        A plain call, since a context manager would break the graph of older versions of torch.
        """

    def tokens(
        self, images: Float[Tensor, "b c h w"], context: TokenSet | None
    ) -> Float[Tensor, "b n d"]:
        try:
            return cast(Tensor, self.model.forward_features(images, **self.show(context)))
        finally:
            self.show(None)

    def intermediates(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int], context: TokenSet | None
    ) -> list[Float[Tensor, "b n d"]]:
        try:
            # "NCHW" would scramble a dropped set onto a full grid.
            outputs = self.model.forward_intermediates(
                images,
                indices=list(layers),
                intermediates_only=True,
                stop_early=True,
                output_fmt="NLC",
                **self.show(context),
            )
        finally:
            self.show(None)
        return list(outputs)


class KeepTokens(nn.Module):
    """Keeps the prefix tokens and the context's patches of a sequence; everything without one.

    It has no parameters, so a backbone's state dict stays as it was.
    """

    def __init__(self, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.context: TokenSet | None = None

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b k d"]:
        return kept_tokens(x, self.context, self.num_prefix_tokens)


class KeepAfter:
    """The same as a forward hook, where a model has no module of its own to stand in for."""

    def __init__(self, num_prefix_tokens: int) -> None:
        self.num_prefix_tokens = num_prefix_tokens
        self.context: TokenSet | None = None

    def __call__(
        self, _module: nn.Module, _arguments: tuple[Any, ...], output: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b k d"]:
        return kept_tokens(output, self.context, self.num_prefix_tokens)


def kept_tokens(
    x: Float[Tensor, "b n d"], context: TokenSet | None, num_prefix_tokens: int
) -> Float[Tensor, "b k d"]:
    """The prefix and the context's patches of a sequence; all of it without a context."""
    if context is None:
        return x
    prefix, patches = x[:, :num_prefix_tokens], x[:, num_prefix_tokens:]
    return torch.cat([prefix, take_tokens(patches, context)], dim=1)


def seen_keys(context: TokenSet | None, num_prefix_tokens: int) -> Bool[Tensor, "b 1 1 n"] | None:
    """The mask of keys that are no padding; None where nothing is padded.

    An all-true mask would cost time, and no value is read back to find out.
    """
    if context is None or not context.padded:
        return None
    prefix = context.valid.new_ones(len(context.valid), num_prefix_tokens)
    return key_mask(torch.cat([prefix, context.valid], dim=1))


def kept_positions(context: TokenSet, num_prefix_tokens: int) -> Int[Tensor, "b n"]:
    """Positions in the model's own sequence: the prefix, then the context's patches."""
    prefix = torch.arange(num_prefix_tokens, device=context.idx.device)
    prefix = prefix.expand(len(context.idx), num_prefix_tokens)
    return torch.cat([prefix, context.idx + num_prefix_tokens], dim=1)


def missing(model: Any, *names: str) -> str | None:
    """The first of some dotted attributes that a model does not have."""
    for name in names:
        place = model
        for part in name.split("."):
            if not hasattr(place, part):
                return name
            place = getattr(place, part)
    return None
