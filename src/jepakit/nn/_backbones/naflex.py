"""timm's `NaFlexVit`, which embeds patches and positions in a module of its own."""

from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from jepakit.nn._backbones.backbone import DroppingBackbone, KeepAfter, missing, seen_keys
from jepakit.tokens import TokenSet

__all__: list[str] = []


class NaFlexBackbone(DroppingBackbone):
    """Images go in as images, so that positions follow the whole grid, and patches go thereafter.

    Given patches and coordinates instead, timm takes the largest visible coordinate for the grid's
    size and stretches the positions to it; and its `patch_drop` is left out in eval mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        if model.patch_drop is not None:
            raise ValueError(
                f"backbone.patch_drop={model.patch_drop}: must not drop patches itself; build the "
                "backbone with patch_drop_rate=0"
            )
        self.default_size = cast(tuple[int, int], _default_size(model))
        self.keep = KeepAfter(model.num_prefix_tokens)
        model.embeds.pos_drop.register_forward_hook(self.keep)

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        name = missing(
            model, "embeds.pos_drop", "embeds.dynamic_feat_size", "blocks", "norm", "patch_drop"
        )
        if name is None and model.rope is not None:
            return "positions that are added (rope=None)"
        if name is None and _default_size(model) is None:
            return "an image size to report a grid for; build it with img_size"
        return name

    @property
    def grid_size(self) -> tuple[int, int]:
        return self.grid_of(self.default_size)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        embeds = self.model.embeds
        patch = embeds.patch_size
        if not embeds.dynamic_img_pad and any(s % p for s, p in zip(size, patch, strict=True)):
            raise ValueError(
                f"images of {size[0]} x {size[1]} pixels: sides must be multiples of the patch "
                f"size {tuple(patch)}, or build the backbone with dynamic_img_pad=True"
            )
        rows, columns = embeds.dynamic_feat_size(size)
        return rows, columns

    @property
    def has_class_token(self) -> bool:
        return bool(self.model.has_class_token)

    def attention_pooled(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        return cast(Tensor, self.model._pool(tokens))

    def show(self, context: TokenSet | None) -> dict[str, Tensor]:
        self.keep.context = context
        mask = seen_keys(context, self.model.num_prefix_tokens)
        return {} if mask is None else {"attn_mask": mask}


def _default_size(model: Any) -> tuple[int, int] | None:
    embeds = model.embeds
    if embeds.default_img_size is not None:
        return cast(tuple[int, int], tuple(embeds.default_img_size))
    if embeds.pos_embed_grid_size is not None:
        grid, patch = embeds.pos_embed_grid_size, embeds.patch_size
        return grid[0] * patch[0], grid[1] * patch[1]
    return None
