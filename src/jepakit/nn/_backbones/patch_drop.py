"""Adapter for models with a `patch_drop` module: timm's `VisionTransformer` and `Eva`."""

import inspect
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jepakit.nn._backbones.backbone import (
    DroppingBackbone,
    Missing,
    check_drops_nothing,
    keep_context,
    missing_attribute,
)
from jepakit.nn._backbones.stand_in import stand_in
from jepakit.tokens import TokenSet


class PatchDropBackbone(DroppingBackbone):
    """Keeps patches at `patch_drop`, which timm calls after positions and before blocks."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        check_drops_nothing(model.patch_drop)
        self.rotary = hasattr(model, "rope")

    @classmethod
    def missing_feature(cls, model: Any) -> Missing | None:
        needed = ("patch_embed.grid_size", "patch_drop", "blocks", "norm", "num_prefix_tokens")
        if missing := missing_attribute(model, *needed):
            return missing
        if "attn_mask" not in inspect.signature(model.forward_features).parameters:
            return Missing("attn_mask in forward_features")
        return None

    def keeping(self, context: TokenSet) -> Any:
        model, prefix = self.model, self.num_prefix_tokens

        def patch_drop(x: Tensor) -> Any:
            kept = keep_context(x, context, prefix)
            # Rotary models gather their position tables by the kept indices.
            return (kept, context.idx) if self.rotary else kept

        if context.padded and model.grad_checkpointing and not self.rotary:
            # timm's `VisionTransformer` ignores `grad_checkpointing` where it is given a mask.
            blocks = [partial(checkpoint, block, use_reentrant=False) for block in model.blocks]
            return stand_in(model, patch_drop=patch_drop, blocks=blocks)
        return stand_in(model, patch_drop=patch_drop)
