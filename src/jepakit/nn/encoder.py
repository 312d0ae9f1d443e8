"""`MaskedViT`: a timm vision transformer that computes only the visible patches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepakit._checks import check_choice, check_floating, check_images_finite, value_checks_on
from jepakit.nn.transformer import key_mask
from jepakit.tokens import TokenSet, take_tokens
from jepakit.tokens.kind import check_token_set

__all__ = ["MaskedViT"]


class _KeepTokens(nn.Module):
    """Stands where timm drops patches: keeps the prefix tokens and the given patches.

    timm calls it after positions are added and before the first block. It has no parameters, so a
    backbone's state dict stays as it was.
    """

    def __init__(self, num_prefix_tokens: int, *, returns_indices: bool) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.returns_indices = returns_indices
        self.context: TokenSet | None = None

    def forward(
        self, x: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b k d"] | tuple[Float[Tensor, "b k d"], Int[Tensor, "b s"] | None]:
        context = self.context
        if context is None:
            return (x, None) if self.returns_indices else x
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        x = torch.cat([prefix, take_tokens(patches, context)], dim=1)
        # Models with rotary positions gather their tables by the indices.
        return (x, context.idx) if self.returns_indices else x


class MaskedViT(nn.Module):
    r"""A timm vision transformer whose forward can be given the visible patches.

    With patch tokens $z_p$ (embedding and position) and a context $S$,
    $f(x, S) = \mathrm{norm}(\mathrm{blocks}(\mathrm{prefix}, (z_p)_{p \in S}))$ without the prefix:
    what is hidden is dropped before the first block, so it costs nothing and leaks nothing. The
    backbone is used as it is, its own weights, blocks, attention and positions; only the module at
    its `patch_drop` is set. Class and register tokens are computed and attended to, not returned.

    `encoder(images)` equals `backbone.forward_features(images)[:, num_prefix_tokens:]`, after the
    backbone's final norm. A timm model that is built to average its tokens
    (`global_pool="avg"`) has that norm in its head (`fc_norm`); its tokens come without.

    Build the backbone with `num_classes=0`: a head, or a pooling layer of timm's own, gets no
    gradient from patch tokens, at which `DistributedDataParallel` stops; freeze what remains.
    Hybrids, with a convolutional stem in front, compute it on the whole image: what is hidden then
    reaches the visible patches through the stem, by its receptive field and its group norms.

    Args:
        backbone: A timm `VisionTransformer` or `Eva` (EVA-02, DINOv3 and other rotary models), with
            or without class token, registers, pretrained weights and `dynamic_img_size`.

    Raises:
        TypeError: If `backbone` is of another class.
        ValueError: If it drops patches itself (`patch_drop_rate` above 0). In a forward with
            padded contexts, if gradient checkpointing is on and timm would leave it out.

    Example:
        >>> import timm, torch
        >>> from jepakit import MaskedViT, RandomMask
        >>> backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64)
        >>> encoder = MaskedViT(backbone)
        >>> masks = RandomMask(encoder.grid_size, target_ratio=0.75)(2)
        >>> encoder(torch.randn(2, 3, 64, 64), masks.context).shape
        torch.Size([2, 4, 192])

    Source:
        Dropping as in MAE (arXiv:2111.06377) and I-JEPA (arXiv:2301.08243), with timm's own
        forward. Difference: contexts may be ragged; padding is no key and comes out as zeros.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        # timm costs seconds to import, and whoever has a backbone has paid for it already.
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer

        if not isinstance(backbone, VisionTransformer | Eva):
            raise TypeError(
                f"backbone={type(backbone).__name__}: must be a timm VisionTransformer or Eva, "
                "such as timm.create_model('vit_small_patch16_224', num_classes=0)"
            )
        present = backbone.patch_drop
        if not (present is None or isinstance(present, nn.Identity | _KeepTokens)):
            raise ValueError(
                f"backbone.patch_drop={present}: must not drop patches itself; build the backbone "
                "with patch_drop_rate=0"
            )
        keep = _KeepTokens(backbone.num_prefix_tokens, returns_indices=isinstance(backbone, Eva))
        self.backbone: nn.Module = backbone
        self._model.patch_drop = keep
        # timm's plain transformer leaves gradient checkpointing out where it is given a mask.
        self._masks_without_checkpointing = isinstance(backbone, VisionTransformer)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Grid that the backbone was built for, `(H, W)` in patches."""
        return cast(tuple[int, int], tuple(self._model.patch_embed.grid_size))

    @property
    def embed_dim(self) -> int:
        """Width of a token."""
        return cast(int, self._model.embed_dim)

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens in front of the patches."""
        return cast(int, self._model.num_prefix_tokens)

    @property
    def _model(self) -> Any:
        return self.backbone

    def forward(
        self, images: Float[Tensor, "b c h w"], context: TokenSet | None = None
    ) -> Float[Tensor, "b n d"]:
        """Patch tokens after the final norm: of all patches, or of the context alone.

        Args:
            images: Pixels, normalised as the backbone expects.
            context: What is visible, `[batch, n]`; None for everything. Not-valid entries come out
                as exact zeros.
        """
        self._check(images, context)
        with _visible(self._model, context) as attn_mask:
            tokens = self._model.forward_features(images, attn_mask=attn_mask)
        return _zero_padding(tokens[:, self.num_prefix_tokens :], context)

    def forward_intermediates(
        self,
        images: Float[Tensor, "b c h w"],
        layers: Sequence[int],
        context: TokenSet | None = None,
    ) -> list[Float[Tensor, "b n d"]]:
        """Patch tokens after chosen blocks, without the final norm.

        Args:
            images: Pixels, normalised as the backbone expects.
            layers: Numbers of blocks from 0, ascending; negative ones count from the end.
            context: What is visible; None for everything.
        """
        self._check(images, context)
        if not isinstance(layers, Sequence) or not all(type(layer) is int for layer in layers):
            raise TypeError(f"layers={layers!r}: must be a sequence of ints, such as [2, 5, 8, 11]")
        depth = len(self._model.blocks)
        numbers = [layer + depth if layer < 0 else layer for layer in layers]
        if (
            not numbers
            or numbers != sorted(set(numbers))
            or not 0 <= numbers[0] <= numbers[-1] < depth
        ):
            raise ValueError(
                f"layers={list(layers)}: must be distinct numbers of the {depth} blocks, ascending"
            )
        with _visible(self._model, context) as attn_mask:
            # "NCHW" would scramble a dropped set onto a full grid.
            outputs = self._model.forward_intermediates(
                images,
                indices=numbers,
                intermediates_only=True,
                stop_early=True,
                output_fmt="NLC",
                attn_mask=attn_mask,
            )
        return [_zero_padding(tokens, context) for tokens in outputs]

    def extract_features(
        self, images: Float[Tensor, "b c h w"], pool: Literal["mean", "cls"] = "mean"
    ) -> Float[Tensor, "b d"]:
        """One feature for each image, for probes and retrieval; after the backbone's `fc_norm`.

        Args:
            images: Pixels, normalised as the backbone expects.
            pool: `"mean"` over the patch tokens, or the `"cls"` token.
        """
        check_choice("pool", pool, ("mean", "cls"))
        if pool == "cls" and self._model.cls_token is None:
            raise ValueError("pool='cls': this backbone has no class token; use pool='mean'")
        self._check(images, None)
        tokens = self._model.forward_features(images)
        patches = tokens[:, self.num_prefix_tokens :]
        pooled = tokens[:, 0] if pool == "cls" else patches.mean(dim=1)
        return cast(Tensor, self._model.fc_norm(pooled))

    def _check(self, images: Tensor, context: TokenSet | None) -> None:
        embed = self._model.patch_embed
        check_floating("images", images)
        if images.dim() != 4:
            raise ValueError(
                f"images {tuple(images.shape)}: must be [batch, channels, height, width]"
            )
        if len(images) == 0:
            raise ValueError(f"images {tuple(images.shape)}: the batch must not be empty")
        if images.shape[1] != self._model.in_chans:
            raise ValueError(
                f"images {tuple(images.shape)}: must have the {self._model.in_chans} channels of "
                "the backbone"
            )
        size = tuple(images.shape[-2:])
        dynamic = self._model.dynamic_img_size
        if not dynamic and size != tuple(embed.img_size):
            raise ValueError(
                f"images of {size[0]} x {size[1]} pixels: must be {embed.img_size[0]} x "
                f"{embed.img_size[1]}, as the backbone was built; build it with img_size={size} or "
                "dynamic_img_size=True"
            )
        if (
            dynamic
            and not embed.dynamic_img_pad
            and any(side % patch for side, patch in zip(size, embed.patch_size, strict=True))
        ):
            raise ValueError(
                f"images of {size[0]} x {size[1]} pixels: sides must be multiples of the patch "
                f"size {embed.patch_size}, or build the backbone with dynamic_img_pad=True"
            )
        if context is not None:
            check_token_set("context", context, like="masks.context")
            self._check_checkpointing(context)
            grid = tuple(embed.dynamic_feat_size(size)) if dynamic else self.grid_size
            if context.grid_size != grid:
                raise ValueError(
                    f"context is on the grid {context.grid_size}: must be on the images' grid "
                    f"{grid}"
                )
            if context.idx.dim() != 2 or len(context.idx) != len(images):
                raise ValueError(
                    f"context {tuple(context.shape)}: must be [batch, n] with the images' batch "
                    f"size {len(images)}"
                )
        if value_checks_on(images):
            check_images_finite("images", images)

    def _check_checkpointing(self, context: TokenSet) -> None:
        if (
            context.padded
            and self._masks_without_checkpointing
            and self._model.grad_checkpointing
            and torch.is_grad_enabled()
        ):
            raise ValueError(
                "context with padding: timm's VisionTransformer would leave gradient checkpointing "
                "out; use contexts of one length (context_length='trim' or an int), or turn it off"
            )


@contextmanager
def _visible(backbone: Any, context: TokenSet | None) -> Iterator[Tensor | None]:
    """While active, the backbone keeps the context's patches; gives the attention mask to use."""
    keep = backbone.patch_drop
    keep.context = context
    try:
        if context is None or not context.padded:
            yield None  # an all-true mask would cost time, and no value is read back to find out
        else:
            prefix = context.valid.new_ones(len(context.valid), backbone.num_prefix_tokens)
            yield key_mask(torch.cat([prefix, context.valid], dim=1))
    finally:
        keep.context = None


def _zero_padding(tokens: Tensor, context: TokenSet | None) -> Tensor:
    if context is None or not context.padded:
        return tokens
    return tokens.masked_fill(~context.valid.unsqueeze(-1), 0)
