"""Models that drop patches by a module of their own: timm's `VisionTransformer` and `Eva`."""

import inspect
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepakit.nn._backbones.backbone import DroppingBackbone, KeepTokens, missing, seen_keys
from jepakit.nn._backbones.embedding import built_grid, embedded_grid
from jepakit.tokens import TokenSet

__all__: list[str] = []


class KeepTokensAndTell(KeepTokens):
    """Keeps tokens and says which: models with rotary positions gather their tables by it."""

    def forward(  # type: ignore[override]  # timm's rotary models expect the pair
        self, x: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b k d"], Int[Tensor, "b s"] | None]:
        return super().forward(x), None if self.context is None else self.context.idx


class PatchDropBackbone(DroppingBackbone):
    """Sets the module at `patch_drop`, which timm calls after positions and before the blocks."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        present = model.patch_drop
        if not (present is None or isinstance(present, nn.Identity | KeepTokens)):
            raise ValueError(
                f"backbone.patch_drop={present}: must not drop patches itself; build the backbone "
                "with patch_drop_rate=0"
            )
        self.rotary = hasattr(model, "rope")
        self.blocks: Any = None  # as built, while others stand in for them
        if not isinstance(present, KeepTokens):
            kind = KeepTokensAndTell if self.rotary else KeepTokens
            model.patch_drop = kind(model.num_prefix_tokens)

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        name = missing(
            model, "patch_embed.grid_size", "patch_drop", "blocks", "norm", "num_prefix_tokens"
        )
        if name is not None:
            return name
        if "attn_mask" not in inspect.signature(model.forward_features).parameters:
            return "attn_mask in forward_features"
        return None

    @property
    def grid_size(self) -> tuple[int, int]:
        return built_grid(self.model)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        return embedded_grid(self.model, size)

    def show(self, context: TokenSet | None) -> dict[str, Tensor]:
        model = self.model
        model.patch_drop.context = context
        mask = seen_keys(context, model.num_prefix_tokens)
        if self.blocks is not None:
            model.blocks, self.blocks = self.blocks, None
        if mask is not None and model.grad_checkpointing and not self.rotary:
            # timm's plain transformer leaves checkpointing out where it is given a mask.
            self.blocks = model.blocks
            model.blocks = nn.Sequential(*(_Checkpointed(block) for block in self.blocks))
        return {} if mask is None else {"attn_mask": mask}


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
