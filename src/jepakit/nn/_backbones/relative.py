"""Adapter for relative-position biases: timm's `Beit` and `VisionTransformerRelPos`.

These models take no attention mask. They compute one bias shared by all blocks, which may be None,
and pass it to every block as an argument. In that argument a context travels here as
`KeptPositions`: as an argument it also reaches a block that checkpointing runs again. Each block's
attention gathers its own bias for the kept pairs and adds -inf for padding.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from timm.layers.pos_embed_rel import RelPosBias, RelPosMlp
from timm.models import beit
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn

from jepakit.nn._backbones.backbone import (
    DroppingBackbone,
    Features,
    KeepContext,
    Missing,
    context_key_mask,
    missing_attribute,
    sequence_positions,
)
from jepakit.tokens import TokenSet


@dataclass(frozen=True)
class KeptPositions:
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


class _GathersBias:
    """Mixin for timm's classes that compute a bias: gathers it while `kept` is set."""

    kept: KeptPositions | None = None

    def gathered(self, bias: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return bias if self.kept is None else self.kept.gather(bias)


class BeitAttention(_GathersBias, beit.Attention):
    def _get_rel_pos_bias(self) -> Tensor:
        return self.gathered(super()._get_rel_pos_bias())

    def forward(self, x: Features, shared_rel_pos_bias: Any = None) -> Features:
        self.kept = shared_rel_pos_bias
        has_own_bias = self.relative_position_bias_table is not None
        padding = None if self.kept is None or has_own_bias else self.kept.padding_bias(x)
        try:
            return super().forward(x, padding)
        finally:
            self.kept = None


class BeitSharedBias(_GathersBias, beit.RelativePositionBias):
    """BEiT's bias of all blocks, gathered once."""

    def forward(self) -> Tensor:
        return self.gathered(super().forward())


class GatheredRelPosBias(_GathersBias, RelPosBias):
    def get_bias(self) -> Tensor:
        return self.gathered(super().get_bias())


class GatheredRelPosMlp(_GathersBias, RelPosMlp):
    def get_bias(self) -> Tensor:
        return self.gathered(super().get_bias())


class GatheredRelPosAttention(RelPosAttention):
    """timm's attention, with the kept positions passed on to its bias module."""

    def forward(self, x: Features, shared_rel_pos: Any = None) -> Features:
        bias = cast(_GathersBias, self.rel_pos)
        bias.kept = shared_rel_pos
        try:
            return cast(Tensor, super().forward(x))
        finally:
            bias.kept = None


class NoSharedBias(_GathersBias, nn.Module):
    """Takes the place of a shared bias that is None, and passes the kept positions to the blocks.

    Without a context it returns None, as the model had it.
    """

    def forward(self) -> KeptPositions | None:  # called by timm's `Beit`
        return self.kept

    def get_bias(self) -> KeptPositions | None:  # called by timm's `VisionTransformerRelPos`
        return self.kept

    def set_window_size(self, _window_size: tuple[int, int]) -> None:
        """Called by timm's `set_input_size`; there is no table to resize."""


# timm's classes and the subclasses that gather.
_GATHERING: dict[type, type] = {
    beit.Attention: BeitAttention,
    beit.RelativePositionBias: BeitSharedBias,
    RelPosAttention: GatheredRelPosAttention,
    RelPosBias: GatheredRelPosBias,
    RelPosMlp: GatheredRelPosMlp,
}


def _make_gathering(module: nn.Module | None) -> None:
    """Change the class of timm's module to the subclass that gathers; parameters and names stay."""
    if type(module) in _GATHERING:
        module.__class__ = _GATHERING[type(module)]


class RelativeBackbone(DroppingBackbone):
    """Computes the bias of the whole grid and gathers that of the kept pairs."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        is_beit = hasattr(model, "rel_pos_bias")
        name = "rel_pos_bias" if is_beit else "shared_rel_pos"
        if getattr(model, name) is None:
            setattr(model, name, NoSharedBias())
            for block in model.blocks:
                _make_gathering(block.attn)
                _make_gathering(getattr(block.attn, "rel_pos", None))
        self.shared = getattr(model, name)
        _make_gathering(self.shared)
        # BEiT puts its class token in front before it adds positions, so the output of `pos_drop`
        # has it; RelPos models, which add no positions, put it in front after `patch_embed`.
        self.keep = KeepContext(model.num_prefix_tokens if is_beit else 0)
        hooked = model.pos_drop if is_beit else model.patch_embed
        hooked.register_forward_hook(self.keep.hook)

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
        if first is not None and not (shared is None or isinstance(shared, NoSharedBias)):
            return Missing("a relative-position bias that is either shared or each block's own")
        modules = [shared] if isinstance(shared, nn.Module) else [b.attn for b in model.blocks]
        known = (*_GATHERING, *_GATHERING.values(), NoSharedBias)
        other = next((type(module) for module in modules if type(module) not in known), None)
        if other is not None:
            return Missing(f"attention of timm's own classes, but has {other.__name__}")
        return None

    def set_context(self, context: TokenSet | None) -> dict[str, Tensor]:
        self.keep.context = context
        self.shared.kept = None
        if context is not None:
            prefix = self.model.num_prefix_tokens
            positions = sequence_positions(context, prefix)
            self.shared.kept = KeptPositions(positions, context_key_mask(context, prefix))
        return {}
