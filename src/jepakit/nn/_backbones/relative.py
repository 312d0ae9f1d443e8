"""Models with a relative-position bias: timm's `Beit` and `VisionTransformerRelPos`.

Their forward takes no mask. It hands one bias, shared by all blocks, to every block; that is where
the context travels here, so that it also reaches a block that is run again by checkpointing. The
attention of each block unpacks it, gathers its own bias for the kept pairs and adds the key mask.
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
    KeepAfter,
    kept_positions,
    missing,
    seen_keys,
)
from jepakit.nn._backbones.embedding import built_grid, embedded_grid
from jepakit.tokens import TokenSet

__all__: list[str] = []


@dataclass(frozen=True)
class Kept:
    """What a call keeps: positions in the model's sequence, and which keys are no padding."""

    positions: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b 1 1 n"] | None

    def pairs(self, bias: Float[Tensor, "... h N N"]) -> Float[Tensor, "b h n n"]:
        """The bias of the kept pairs, -inf where the key is padding."""
        full = bias.reshape(bias.shape[-3:])
        rows, columns = self.positions[:, :, None], self.positions[:, None, :]
        kept = full[:, rows, columns].transpose(0, 1)
        return kept if self.mask is None else kept.masked_fill(~self.mask, -torch.inf)

    def padding(self, like: Tensor) -> Float[Tensor, "b 1 1 n"] | None:
        """The bias of a model that has none: 0, and -inf where the key is padding."""
        if self.mask is None:
            return None
        return like.new_zeros(self.mask.shape).masked_fill(~self.mask, -torch.inf)


class _Gathered:
    """Mixed into a class of timm's that returns a bias: that of the kept pairs, if any are set."""

    kept: Kept | None = None

    def gathered(self, bias: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return bias if self.kept is None else self.kept.pairs(bias)


class BeitAttention(_Gathered, beit.Attention):
    """timm's attention, whose own bias is gathered."""

    def _get_rel_pos_bias(self) -> Tensor:
        return self.gathered(super()._get_rel_pos_bias())

    def forward(
        self, x: Float[Tensor, "b n d"], shared_rel_pos_bias: Any = None
    ) -> Float[Tensor, "b n d"]:
        kept: Kept | None = shared_rel_pos_bias
        padding = None
        if kept is not None and self.relative_position_bias_table is None:
            padding = kept.padding(x)
        self.kept = kept
        try:
            return super().forward(x, padding)
        finally:
            self.kept = None


class BeitSharedBias(_Gathered, beit.RelativePositionBias):
    """timm's bias of all blocks, gathered once for all."""

    def forward(self) -> Tensor:
        return self.gathered(super().forward())


class GatheredRelPosBias(_Gathered, RelPosBias):
    """timm's table of biases, gathered."""

    def get_bias(self) -> Tensor:
        return self.gathered(super().get_bias())


class GatheredRelPosMlp(_Gathered, RelPosMlp):
    """timm's biases from an MLP on coordinates, gathered."""

    def get_bias(self) -> Tensor:
        return self.gathered(super().get_bias())


class GatheredRelPosAttention(RelPosAttention):
    """timm's attention, which tells its bias what is kept."""

    def forward(
        self, x: Float[Tensor, "b n d"], shared_rel_pos: Any = None
    ) -> Float[Tensor, "b n d"]:
        bias = cast(_Gathered, self.rel_pos)
        bias.kept = shared_rel_pos
        try:
            return cast(Tensor, super().forward(x))
        finally:
            bias.kept = None


class NoSharedBias(_Gathered, nn.Module):
    """Stands for the bias that all blocks share where there is none: hands on what is kept."""

    def forward(self) -> Kept | None:
        """What timm's `Beit` calls."""
        return self.kept

    def get_bias(self) -> Kept | None:
        """What timm's `VisionTransformerRelPos` calls."""
        return self.kept

    def set_window_size(self, _window_size: tuple[int, int]) -> None:
        """What timm's `set_input_size` calls; there is no table to resize."""


class RelativeBackbone(DroppingBackbone):
    """A full bias, of which the kept pairs are gathered.

    timm's modules become instances of the subclasses above; their parameters and names stay.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.is_beit = hasattr(model, "rel_pos_bias")
        name = "rel_pos_bias" if self.is_beit else "shared_rel_pos"
        if getattr(model, name) is None:
            setattr(model, name, NoSharedBias())
            for block in model.blocks:
                _become(block.attn)
                _become(getattr(block.attn, "rel_pos", None))
        self.shared = getattr(model, name)
        _become(self.shared)
        # BEiT adds positions to class token and patches together; RelPos models add none.
        self.keep = KeepAfter(model.num_prefix_tokens if self.is_beit else 0)
        seam = model.pos_drop if self.is_beit else model.patch_embed
        seam.register_forward_hook(self.keep)

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        name = missing(model, "patch_embed.grid_size", "blocks.0.attn", "norm", "num_prefix_tokens")
        if name is not None:
            return name
        beit_like = hasattr(model, "rel_pos_bias") and hasattr(model, "pos_drop")
        attention = model.blocks[0].attn
        name = (
            missing(model, "blocks.0.attn.relative_position_bias_table")
            if beit_like
            else missing(model, "shared_rel_pos", "blocks.0.attn.rel_pos")
        )
        if name is not None:
            return name
        shared = model.rel_pos_bias if beit_like else model.shared_rel_pos
        own = attention.relative_position_bias_table if beit_like else attention.rel_pos
        if own is not None and not (shared is None or isinstance(shared, NoSharedBias)):
            return "a relative-position bias that is either shared by all blocks or each one's own"
        biases = (
            [shared] if isinstance(shared, nn.Module) else [block.attn for block in model.blocks]
        )
        known = (*GATHERED, *GATHERED.values(), NoSharedBias)
        other = next((type(part) for part in biases if type(part) not in known), None)
        if other is not None:
            return f"attention of timm's own class, {other.__name__} is none"
        return None

    @property
    def grid_size(self) -> tuple[int, int]:
        return built_grid(self.model)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        return embedded_grid(self.model, size)

    def show(self, context: TokenSet | None) -> dict[str, Tensor]:
        self.keep.context = context
        if context is None:
            self.shared.kept = None
        else:
            prefix = self.model.num_prefix_tokens
            self.shared.kept = Kept(kept_positions(context, prefix), seen_keys(context, prefix))
        return {}


GATHERED: dict[type, type] = {
    beit.Attention: BeitAttention,
    beit.RelativePositionBias: BeitSharedBias,
    RelPosAttention: GatheredRelPosAttention,
    RelPosBias: GatheredRelPosBias,
    RelPosMlp: GatheredRelPosMlp,
}


def _become(module: nn.Module | None) -> None:
    """Make a module of timm's an instance of our subclass of its class."""
    if type(module) in GATHERED:
        module.__class__ = GATHERED[type(module)]
