"""`MaskedViT`: a timm vision transformer that computes only the visible patches."""

from collections.abc import Sequence
from typing import Any, Literal, cast

from jaxtyping import Float
from torch import Tensor, nn

from jepakit._checks import (
    check_bool,
    check_choice,
    check_floating,
    check_images_finite,
    value_checks_on,
)
from jepakit.nn._backbones import adapt
from jepakit.tokens import TokenSet
from jepakit.tokens._arguments import check_same_device, check_token_set

__all__ = ["MaskedViT"]


class MaskedViT(nn.Module):
    r"""A timm vision transformer whose forward can be given the visible patches.

    With patch tokens $z_p$ (embedding and position) and a context $S$,
    $f(x, S) = \mathrm{norm}(\mathrm{blocks}(\mathrm{prefix}, (z_p)_{p \in S}))$ without the prefix:
    what is hidden is dropped before the first block, so it costs nothing and leaks nothing. The
    backbone is used as it is, its own weights, blocks, attention and positions, and its state dict
    keeps its names. Class and register tokens are computed and attended to, not returned.

    `encoder(images)` equals `backbone.forward_features(images)[:, num_prefix_tokens:]`, after the
    backbone's final norm. A timm model that is built to average its tokens
    (`global_pool="avg"`) has that norm in its head (`fc_norm`); its tokens come without.

    Build the backbone with `num_classes=0`: a head, or a pooling layer of timm's own, gets no
    gradient from patch tokens, at which `DistributedDataParallel` stops; freeze what remains.
    Hybrids, with a convolutional stem in front, compute it on the whole image: what is hidden then
    reaches the visible patches through the stem, by its receptive field and its group norms.
    Models with batch norms (XCiT, TinyViT ...) mix the images of a batch while they train, hidden
    patches included; in eval mode they do not.

    `torch.compile(fullgraph=True)` takes every model, and gradient checkpointing with it, but for
    one pair: blocks with a relative-position bias of their own, checkpointed, with a context. There
    the compiler stops, and without `fullgraph` it leaves these blocks uncompiled.

    Args:
        backbone: A timm model. Patches are dropped from the `VisionTransformer` family (DeiT,
            DINOv2, SigLIP, AIMv2, hybrids ...), `Eva` (EVA-02, DINOv3 and other rotary models),
            `Beit`, `VisionTransformerRelPos` and `NaFlexVit`.
        mask_mode: `"drop"` leaves hidden patches out. `"replace"` is for models that need the whole
            grid (Swin, Hiera and whatever has a `patch_embed`): a learnable token stands behind
            `patch_embed` for every hidden patch, nothing is saved, and the tokens that come out are
            those of the last stage, on whose grid samplers work.

    Raises:
        UnsupportedBackboneError: If the backbone lacks what the mode needs; says what.
        ValueError: If it drops patches itself (`patch_drop_rate` above 0).

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
        Replacing as in SimMIM (arXiv:2111.09886); difference: a cell of the last stage is hidden
        as a whole.
    """

    def __init__(self, backbone: nn.Module, mask_mode: Literal["drop", "replace"] = "drop") -> None:
        super().__init__()
        check_choice("mask_mode", mask_mode, ("drop", "replace"))
        self._adapter = adapt(backbone, mask_mode)
        self.backbone: nn.Module = backbone
        self.mask_mode = mask_mode
        if mask_mode == "replace":
            self.replacing = cast(Any, self._adapter).replacing

    @property
    def grid_size(self) -> tuple[int, int]:
        """Grid of the tokens, `(H, W)`, for images of the size that the backbone was built for."""
        return self._adapter.grid_size

    @property
    def embed_dim(self) -> int:
        """Width of a token."""
        return self._adapter.embed_dim

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens in front of the patches."""
        return self._adapter.num_prefix_tokens

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
        tokens = self._adapter.tokens(images, context)
        return _zero_padding(tokens[:, self.num_prefix_tokens :], context)

    def forward_intermediates(
        self,
        images: Float[Tensor, "b c h w"],
        layers: Sequence[int],
        context: TokenSet | None = None,
        *,
        norm: bool = False,
    ) -> list[Float[Tensor, "b n d"]]:
        """Patch tokens after chosen layers.

        Args:
            images: Pixels, normalised as the backbone expects.
            layers: Numbers of blocks from 0, ascending; negative ones count from the end. With
                `mask_mode="replace"`, numbers of timm's feature stages.
            context: What is visible; None for everything. With `mask_mode="replace"`, only stages
                on `grid_size` can be asked for with a context.
            norm: Apply the backbone's final norm to each, so that layer -1 is what `forward` gives
                and no parameter of the norm is left without a gradient. Not with
                `mask_mode="replace"`, whose stages differ in width. A backbone that is built to
                average its tokens has its norm in the head: it has none to apply, here as in
                `forward`.
        """
        check_bool("norm", norm)
        if norm and self.mask_mode == "replace":
            raise ValueError(
                "norm=True: must be False with mask_mode='replace', where the final norm has the "
                "width of the last stage only"
            )
        self._check(images, context)
        numbers = self._layer_numbers(layers)
        outputs = self._adapter.intermediates(images, numbers, context)
        if norm:
            outputs = [cast(Any, self.backbone).norm(tokens) for tokens in outputs]
        return [_zero_padding(tokens, context) for tokens in outputs]

    def extract_features(
        self,
        images: Float[Tensor, "b c h w"],
        pool: Literal["mean", "cls", "map"] | None = "mean",
    ) -> Float[Tensor, "b ..."]:
        """Features for probes and retrieval: one for each image, after the backbone's `fc_norm`.

        Args:
            images: Pixels, normalised as the backbone expects.
            pool: `"mean"` over the patch tokens, the `"cls"` token, or `"map"`, the backbone's own
                attention pooling. None leaves the patch tokens `[b n d]` as `forward` gives them.
        """
        check_choice("pool", pool, ("mean", "cls", "map", None))
        model: Any = self.backbone
        if pool == "cls" and not self._adapter.has_class_token:
            raise ValueError("pool='cls': this backbone has no class token; use pool='mean'")
        if pool == "map" and getattr(model, "attn_pool", None) is None:
            raise ValueError(
                "pool='map': this backbone has no attention pooling; build it with "
                "global_pool='map' or use pool='mean'"
            )
        self._check(images, None)
        tokens = self._adapter.tokens(images, None)
        patches = tokens[:, self.num_prefix_tokens :]
        if pool is None:
            return patches
        if pool == "map":
            pooled = self._adapter.attention_pooled(tokens)
        else:
            pooled = tokens[:, 0] if pool == "cls" else patches.mean(dim=1)
        return cast(Tensor, model.fc_norm(pooled)) if hasattr(model, "fc_norm") else pooled

    def _layer_numbers(self, layers: Sequence[int]) -> list[int]:
        if not isinstance(layers, Sequence) or not all(type(layer) is int for layer in layers):
            raise TypeError(f"layers={layers!r}: must be a sequence of ints, such as [2, 5, 8, 11]")
        depth = self._adapter.num_layers
        numbers = [layer + depth if layer < 0 else layer for layer in layers]
        if (
            not numbers
            or numbers != sorted(set(numbers))
            or not 0 <= numbers[0] <= numbers[-1] < depth
        ):
            raise ValueError(
                f"layers={list(layers)}: must be distinct numbers of the {depth} blocks, ascending"
            )
        return numbers

    def _check(self, images: Tensor, context: TokenSet | None) -> None:
        if self._adapter.model is not self.backbone:
            raise RuntimeError(
                "encoder.backbone: must be the one that was wrapped, since it was prepared to take "
                "a context; build MaskedViT(new_backbone) (DataParallel replicates the backbone: "
                "use DistributedDataParallel)"
            )
        check_floating("images", images)
        if images.dim() != 4:
            raise ValueError(
                f"images {tuple(images.shape)}: must be [batch, channels, height, width]"
            )
        if len(images) == 0:
            raise ValueError(f"images {tuple(images.shape)}: the batch must not be empty")
        channels = self._adapter.in_channels
        if images.shape[1] != channels:
            hint = "; are they [batch, height, width, channels]?"
            raise ValueError(
                f"images {tuple(images.shape)}: must have the {channels} channels of the backbone"
                + hint * (images.shape[-1] == channels)
            )
        height, width = images.shape[-2:]
        grid = self._adapter.grid_of((height, width))
        if context is not None:
            check_token_set("context", context, like="masks.context")
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
            check_same_device("context", context, "images", images)
        if value_checks_on(images):
            check_images_finite("images", images)

    def extra_repr(self) -> str:
        """Arguments that the submodules do not show."""
        return f"mask_mode={self.mask_mode!r}"


def _zero_padding(tokens: Tensor, context: TokenSet | None) -> Tensor:
    if context is None or not context.padded:
        return tokens
    return tokens.masked_fill(~context.valid.unsqueeze(-1), 0)
