"""Adapter for any model with a `patch_embed`: hidden patches become a mask token, as in SimMIM."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepakit.nn._backbones.backbone import (
    Backbone,
    Features,
    Images,
    check_built_size,
    check_multiples,
    keep_context,
)
from jepakit.nn._backbones.layout import Layout, flat_features, image_size_of
from jepakit.nn._backbones.stand_in import FollowedBy, stand_in
from jepakit.tokens import TokenSet, take_tokens


class MaskToken(nn.Module):
    """A learnable vector that replaces the embedding of every hidden patch."""

    def __init__(self, dim: int, *, channels_first: bool) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.channels_first = channels_first

    def forward(
        self, x: Float[Tensor, "b ..."], hidden: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, "b ..."]:
        """Replace in `[b n d]`, `[b h w d]` or `[b d h w]`."""
        token = self.mask_token.to(x.dtype)
        if x.dim() == 3:
            return torch.where(rearrange(hidden, "b h w -> b (h w) 1"), token, x)
        if self.channels_first:
            return torch.where(hidden[:, None], token[:, None, None], x)
        return torch.where(hidden[..., None], token, x)


class ReplacingBackbone(Backbone):
    """Runs the whole model, with mask tokens where patches are hidden.

    An output feature is a cell of the last stage. A hidden cell hides all patches under it, so
    contexts and targets are on the grid of the last stage.
    """

    def __init__(self, model: Any, layout: Layout) -> None:
        super().__init__(model)
        self.layout = layout
        self.replacing = MaskToken(layout.patch_dim, channels_first=layout.patch_order == "NCHW")

    @property
    def grid_size(self) -> tuple[int, int]:
        # Read anew, since timm's `set_input_size` may have changed it.
        return self.grid_of(image_size_of(self.model) or self.layout.image_size)

    @property
    def num_prefix_tokens(self) -> int:
        return self.layout.num_prefix_tokens

    @property
    def num_layers(self) -> int:
        return len(getattr(self.model, "feature_info", ()))

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        embed, stride = self.model.patch_embed, self.layout.stride
        built = getattr(embed, "img_size", None)
        if built is not None and getattr(embed, "strict_img_size", False):
            check_built_size(size, built)
        check_multiples(size, stride, "backbone's stride")
        return size[0] // stride[0], size[1] // stride[1]

    def features(self, images: Images, context: TokenSet | None) -> Features:
        features = self.all_features(images, context)
        return (
            features if context is None else keep_context(features, context, self.num_prefix_tokens)
        )

    def all_features(self, images: Images, context: TokenSet | None) -> Features:
        """Features of class and register tokens, then of every cell, hidden ones included."""
        output = self._replacing_model(context).forward_features(images)
        return flat_features(self.model, output, self.layout.feature_order)

    def intermediates(
        self, images: Images, layers: Sequence[int], context: TokenSet | None
    ) -> list[Features]:
        maps = self._replacing_model(context).forward_intermediates(
            images, indices=list(layers), intermediates_only=True, output_fmt="NCHW"
        )
        outputs = [rearrange(features, "b d h w -> b (h w) d") for features in maps]
        if context is None:
            return outputs
        for layer, features in zip(layers, maps, strict=True):
            if tuple(features.shape[2:]) != context.grid_size:
                raise ValueError(
                    f"layers={list(layers)}: must be on the context's grid {context.grid_size}, "
                    f"but layer {layer} is on {tuple(features.shape[2:])}; leave the context out"
                )
        return [take_tokens(features, context) for features in outputs]

    def _replacing_model(self, context: TokenSet | None) -> Any:
        """Return a stand-in for the model that replaces the patches outside the context."""
        if context is None:
            return self.model
        # Every patch under a hidden cell.
        (h, w), (p, q) = context.grid_size, self.layout.patches_per_cell
        hidden = repeat(~context.to_mask(), "b (h w) -> b (h p) (w q)", h=h, w=w, p=p, q=q)

        def replace(output: Any) -> Any:
            if isinstance(output, tuple):  # (patches, grid)
                return (self.replacing(output[0], hidden), *output[1:])
            return self.replacing(output, hidden)

        return stand_in(self.model, patch_embed=FollowedBy(self.model.patch_embed, replace))
