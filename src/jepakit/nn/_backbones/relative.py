"""Adapter for relative-position biases: timm's `Beit` and `VisionTransformerRelPos`.

These models take no attention mask. Each attention adds a bias for every pair of positions, its own
or one that all blocks share. With a context, the bias of the kept pairs is gathered, and -inf is
added for padding.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from timm.layers.pos_embed_rel import RelPosBias, RelPosMlp
from timm.models import beit
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn

from jepakit._wrapped import unwrap
from jepakit.nn._backbones.backbone import (
    DroppingBackbone,
    Missing,
    context_key_mask,
    keep_context,
    missing_attribute,
    sequence_positions,
)
from jepakit.nn._backbones.stand_in import FollowedBy, stand_in
from jepakit.tokens import TokenSet

_KNOWN = (beit.Attention, beit.RelativePositionBias, RelPosAttention, RelPosBias, RelPosMlp)


@dataclass(frozen=True)
class KeptPairs:
    """Positions in the model's sequence that a forward keeps, and which keys are not padding."""

    positions: Int[Tensor, "b n"]
    key_mask: Bool[Tensor, "b 1 1 n"] | None

    def gather(self, bias: Float[Tensor, "... h N N"]) -> Float[Tensor, "b h n n"]:
        """Return the bias of the kept pairs, -inf where the key is padding."""
        full = bias.reshape(bias.shape[-3:])
        # Row i and column j of a sample: the bias of query positions[i] and key positions[j].
        queries, keys = self.positions[:, :, None], self.positions[:, None, :]
        kept = full[:, queries, keys].transpose(0, 1)
        return kept if self.key_mask is None else kept.masked_fill(~self.key_mask, -torch.inf)

    def padding_bias(self, like: Tensor) -> Float[Tensor, "b 1 1 n"] | None:
        """Return 0, and -inf where the key is padding: the bias of a model that has none."""
        if self.key_mask is None:
            return None
        return like.new_zeros(self.key_mask.shape).masked_fill(~self.key_mask, -torch.inf)


class RelativeBackbone(DroppingBackbone):
    """Computes the bias of the whole grid and gathers that of the kept pairs."""

    @classmethod
    def missing_feature(cls, model: Any) -> Missing | None:
        is_beit = hasattr(model, "rel_pos_bias") and hasattr(model, "pos_drop")
        own = "relative_position_bias_table" if is_beit else "rel_pos"
        names = ["patch_embed.grid_size", "blocks.0.attn", "norm", "num_prefix_tokens"]
        names += [] if is_beit else ["shared_rel_pos"]
        if missing := missing_attribute(model, *names, f"blocks.0.attn.{own}"):
            return missing
        shared = model.rel_pos_bias if is_beit else model.shared_rel_pos
        first = getattr(model.blocks[0].attn, own)
        if first is not None and shared is not None:
            return Missing("a relative-position bias that is either shared or each block's own")
        modules = [b.attn for b in model.blocks] if shared is None else [shared]
        other = next((type(module) for module in modules if type(module) not in _KNOWN), None)
        if other is not None:
            return Missing(f"attention of timm's own classes, but has {other.__name__}")
        return None

    def _prepare(self, context: TokenSet | None) -> tuple[Any, dict[str, Tensor]]:
        # The key mask is part of the bias.
        return self.model if context is None else self.keeping(context), {}

    def keeping(self, context: TokenSet) -> Any:
        model, prefix = self.model, self.num_prefix_tokens
        mask = context_key_mask(context, prefix)
        pairs = KeptPairs(sequence_positions(context, prefix), mask)
        if hasattr(model, "rel_pos_bias"):
            # BEiT puts its class token in front before it adds positions.
            keep = partial(keep_context, context=context, num_prefix_tokens=prefix)
            replaced: dict[str, Any] = {"pos_drop": FollowedBy(model.pos_drop, keep)}
            shared, own = model.rel_pos_bias, model.blocks[0].attn.relative_position_bias_table
            if shared is not None:
                replaced["rel_pos_bias"] = lambda: pairs.gather(shared())
            elif own is None:
                replaced["rel_pos_bias"] = lambda: pairs.padding_bias(like=model.cls_token)
        else:
            # RelPos models add no positions and put their class token in front later.
            keep = partial(keep_context, context=context, num_prefix_tokens=0)
            replaced = {"patch_embed": FollowedBy(model.patch_embed, keep)}
            shared, own = model.shared_rel_pos, model.blocks[0].attn.rel_pos
            if shared is not None:
                replaced["shared_rel_pos"] = _gathering(shared, "get_bias", pairs)
        if own is not None:
            replaced["blocks"] = [partial(_run_block, block, pairs) for block in model.blocks]
        return stand_in(model, **replaced)


def _gathering(module: Any, method: str, pairs: KeptPairs) -> Any:
    """Return a stand-in for a module, one of whose methods returns the bias of the kept pairs."""
    compute: Any = getattr(module, method)
    return stand_in(module, **{method: lambda: pairs.gather(compute())})


def _run_block(block: nn.Module, pairs: KeptPairs, x: Tensor, **arguments: Any) -> Tensor:
    # The stand-in is made here, so that it lies within what checkpointing compiles and runs again.
    return cast(Tensor, _gathering_block(block, pairs)(x, **arguments))


def _gathering_block(block: Any, pairs: KeptPairs) -> Any:
    block = cast(Any, unwrap(block))  # compiled for itself, it would call its own attention
    inner = getattr(block, "_checkpoint_wrapped_module", None)
    if inner is not None:
        return stand_in(block, _checkpoint_wrapped_module=_gathering_block(inner, pairs))
    attn: Any = unwrap(block.attn)
    if isinstance(attn, beit.Attention):
        return stand_in(block, attn=_gathering(attn, "_get_rel_pos_bias", pairs))
    rel_pos = _gathering(unwrap(attn.rel_pos), "get_bias", pairs)
    return stand_in(block, attn=stand_in(attn, rel_pos=rel_pos))
