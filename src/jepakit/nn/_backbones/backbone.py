"""Base classes of the adapters through which `MaskedViT` runs a timm model of any family."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jepakit.nn._padding import key_mask
from jepakit.tokens import TokenSet, take_tokens

Images = Float[Tensor, "b c h w"]
Features = Float[Tensor, "b n d"]


class UnsupportedBackboneError(TypeError):
    """A model that `MaskedViT` cannot run on a context; the text names the missing feature."""


class Missing(str):
    """A feature that a model lacks, as a noun phrase for an error message."""


def missing_attribute(model: Any, *names: str) -> Missing | None:
    """Return the first of some dotted attributes that a model does not have."""
    for name in names:
        owner = model
        for part in name.split("."):
            if not hasattr(owner, part):
                return Missing(name)
            owner = getattr(owner, part)
    return None


class Backbone(ABC):
    """A timm model, its grid, and its forward with a context.

    It is not a module, so the model keeps its own names in a state dict.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    @abstractmethod
    def grid_size(self) -> tuple[int, int]:
        """Grid of the output for images of the size that the model was built for."""

    @abstractmethod
    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Grid of the output for images of `size` pixels; raise if the model rejects them."""

    @abstractmethod
    def features(self, images: Images, context: TokenSet | None) -> Features:
        """Features after the final norm: class and register tokens, then patches of the context."""

    @abstractmethod
    def intermediates(
        self, images: Images, layers: Sequence[int], context: TokenSet | None
    ) -> list[Features]:
        """Patch features after the given layers, without the final norm."""

    @property
    @abstractmethod
    def num_layers(self) -> int: ...

    @property
    def embed_dim(self) -> int:
        return int(self.model.num_features)

    @property
    def in_channels(self) -> int:
        return int(getattr(self.model, "in_chans", 3))

    @property
    def num_prefix_tokens(self) -> int:
        return int(getattr(self.model, "num_prefix_tokens", 0))

    @property
    def has_class_token(self) -> bool:
        return getattr(self.model, "cls_token", None) is not None

    def attention_pooled(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """All features, prefix included, pooled by the model's own `attn_pool`."""
        return cast(Tensor, self.model.pool(features))


class DroppingBackbone(Backbone):
    """A model with one sequence of blocks, in front of which patches can be dropped."""

    @classmethod
    @abstractmethod
    def missing_feature(cls, model: Any) -> Missing | None:
        """Return what a model lacks to be of this family; None if it has everything."""

    @abstractmethod
    def keeping(self, context: TokenSet) -> Any:
        """Return a stand-in for the model that keeps the prefix and the context's patches."""

    def _prepare(self, context: TokenSet | None) -> tuple[Any, dict[str, Tensor]]:
        """Return the model to call, and the arguments beside the images."""
        if context is None:
            return self.model, {}
        mask = context_key_mask(context, self.num_prefix_tokens)
        return self.keeping(context), {} if mask is None else {"attn_mask": mask}

    @property
    def num_layers(self) -> int:
        return len(self.model.blocks)

    @property
    def grid_size(self) -> tuple[int, int]:
        return cast("tuple[int, int]", self.model.patch_embed.grid_size)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        embed = self.model.patch_embed
        if not getattr(self.model, "dynamic_img_size", False):
            check_built_size(size, embed.img_size)
            return self.grid_size
        if not embed.dynamic_img_pad:
            check_multiples(size, embed.feat_ratio(as_scalar=False), "patch size")
        return cast("tuple[int, int]", embed.dynamic_feat_size(size))

    def features(self, images: Images, context: TokenSet | None) -> Features:
        model, arguments = self._prepare(context)
        return cast(Tensor, model.forward_features(images, **arguments))

    def intermediates(
        self, images: Images, layers: Sequence[int], context: TokenSet | None
    ) -> list[Features]:
        model, arguments = self._prepare(context)
        outputs = model.forward_intermediates(
            images,
            indices=list(layers),
            intermediates_only=True,
            stop_early=True,
            output_fmt="NLC",  # "NCHW" would scramble the features of a context onto a full grid
            **arguments,
        )
        return list(outputs)


def keep_context(
    x: Float[Tensor, "b n d"], context: TokenSet, num_prefix_tokens: int
) -> Float[Tensor, "b k d"]:
    """Return the prefix and the context's patches of a sequence."""
    prefix, patches = x[:, :num_prefix_tokens], x[:, num_prefix_tokens:]
    return torch.cat([prefix, take_tokens(patches, context)], dim=1)


def check_drops_nothing(present: nn.Module | None) -> None:
    """Raise unless a backbone's `patch_drop` keeps all patches."""
    if not (present is None or isinstance(present, nn.Identity)):
        raise ValueError(f"backbone.patch_drop={present}: must be None; set patch_drop_rate=0")


def context_key_mask(
    context: TokenSet | None, num_prefix_tokens: int
) -> Bool[Tensor, "b 1 1 n"] | None:
    """Return the attention mask that excludes padding; None where the context promises none."""
    if context is None or not context.padded:
        return None
    prefix = context.valid.new_ones(len(context.valid), num_prefix_tokens)
    return key_mask(torch.cat([prefix, context.valid], dim=1))


def sequence_positions(context: TokenSet, num_prefix_tokens: int) -> Int[Tensor, "b n"]:
    """Return positions in the model's sequence: the prefix, then the context's patches.

    With one class token, patch p of the grid is entry p + 1 of the sequence: the context [0, 5]
    gives [0, 1, 6].
    """
    prefix = torch.arange(num_prefix_tokens, device=context.idx.device)
    prefix = prefix.expand(len(context.idx), num_prefix_tokens)
    return torch.cat([prefix, context.idx + num_prefix_tokens], dim=1)


def check_built_size(size: tuple[int, int], built: Sequence[int]) -> None:
    if size != tuple(built):
        raise ValueError(
            f"images of {size[0]} x {size[1]} pixels: must be {built[0]} x {built[1]}, as the "
            f"backbone was built; build it with img_size={size}"
        )


def check_multiples(size: tuple[int, int], steps: Sequence[int], name: str) -> None:
    if any(side % step for side, step in zip(size, steps, strict=True)):
        raise ValueError(
            f"images of {size[0]} x {size[1]} pixels: sides must be multiples of the {name} "
            f"{tuple(steps)}"
        )
