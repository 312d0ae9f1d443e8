"""Adapter for timm's `NaFlexVit`, which embeds patches and positions in a module of its own."""

from functools import partial
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from jepakit.nn._backbones.backbone import (
    DroppingBackbone,
    Missing,
    check_drops_nothing,
    check_multiples,
    keep_context,
    missing_attribute,
)
from jepakit.nn._backbones.stand_in import FollowedBy, stand_in
from jepakit.tokens import TokenSet


class NaFlexBackbone(DroppingBackbone):
    """Drops patches after the whole image is embedded.

    `NaFlexVit` also takes patches with coordinates. That is not used: timm takes the largest
    coordinate among them for the size of the grid and stretches the positions to it. Nor is its
    `patch_drop`, which is skipped in eval mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        check_drops_nothing(model.patch_drop)
        self.default_size = cast("tuple[int, int]", _default_size(model))

    @classmethod
    def missing_feature(cls, model: Any) -> Missing | None:
        needed = ("embeds.pos_drop", "embeds.dynamic_feat_size", "blocks", "norm", "patch_drop")
        if missing := missing_attribute(model, *needed):
            return missing
        if model.rope is not None:
            return Missing("positions that are added (rope=None)")
        if _default_size(model) is None:
            return Missing("an image size to report a grid for; build it with img_size")
        return None

    def keeping(self, context: TokenSet) -> Any:
        embeds = self.model.embeds
        keep = partial(keep_context, context=context, num_prefix_tokens=self.num_prefix_tokens)
        pos_drop = FollowedBy(embeds.pos_drop, keep)
        return stand_in(self.model, embeds=stand_in(embeds, pos_drop=pos_drop))

    @property
    def grid_size(self) -> tuple[int, int]:
        return self.grid_of(self.default_size)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        embeds = self.model.embeds
        if not embeds.dynamic_img_pad:
            check_multiples(size, embeds.patch_size, "patch size")
        return cast("tuple[int, int]", embeds.dynamic_feat_size(size))

    @property
    def has_class_token(self) -> bool:
        return bool(self.model.has_class_token)

    def attention_pooled(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        return cast(Tensor, self.model._pool(features))


def _default_size(model: Any) -> tuple[int, int] | None:
    embeds = model.embeds
    if embeds.default_img_size is not None:
        return cast("tuple[int, int]", tuple(embeds.default_img_size))
    if embeds.pos_embed_grid_size is not None:
        (rows, columns), (height, width) = embeds.pos_embed_grid_size, embeds.patch_size
        return rows * height, columns * width
    return None
