"""Adapter for models with a `patch_drop` module: timm's `VisionTransformer` and `Eva`."""

import inspect
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepakit.nn._backbones.backbone import (
    DroppingBackbone,
    KeepContext,
    Missing,
    check_drops_nothing,
    missing_attribute,
)
from jepakit.tokens import TokenSet


class KeepContextAndIndices(KeepContext):
    """Also returns the kept indices, by which rotary models gather their position tables."""

    def forward(  # type: ignore[override]  # timm's rotary models expect the pair
        self, x: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b k d"], Int[Tensor, "b s"] | None]:
        return super().forward(x), None if self.context is None else self.context.idx


class PatchDropBackbone(DroppingBackbone):
    """Replaces the module at `patch_drop`, which timm calls after positions and before blocks."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        check_drops_nothing(model.patch_drop)
        self.rotary = hasattr(model, "rope")
        # The model's own blocks, while checkpointed ones take their place during a forward.
        self.own_blocks: Any = None
        if not isinstance(model.patch_drop, KeepContext):
            kind = KeepContextAndIndices if self.rotary else KeepContext
            model.patch_drop = kind(model.num_prefix_tokens)
        self.keep = model.patch_drop

    @classmethod
    def missing_feature(cls, model: Any) -> Missing | None:
        needed = ("patch_embed.grid_size", "patch_drop", "blocks", "norm", "num_prefix_tokens")
        if missing := missing_attribute(model, *needed):
            return missing
        if "attn_mask" not in inspect.signature(model.forward_features).parameters:
            return Missing("attn_mask in forward_features")
        return None

    def set_context(self, context: TokenSet | None) -> dict[str, Tensor]:
        model, arguments = self.model, super().set_context(context)
        if self.own_blocks is not None:
            model.blocks, self.own_blocks = self.own_blocks, None
        if arguments and model.grad_checkpointing and not self.rotary:
            # timm's `VisionTransformer` ignores `grad_checkpointing` where it is given a mask.
            self.own_blocks = model.blocks
            model.blocks = nn.Sequential(*(_Checkpointed(block) for block in self.own_blocks))
        return arguments


class _Checkpointed(nn.Module):
    """A block whose activations are computed again in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, x: Float[Tensor, "b n d"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "b n d"]:
        out = checkpoint(
            self.block, x, attn_mask=attn_mask, is_causal=is_causal, use_reentrant=False
        )
        return cast(Tensor, out)
