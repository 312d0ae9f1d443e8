"""`MaskedViT`: a timm vision transformer that computes only the visible patches."""

from collections.abc import Sequence
from typing import Any, Literal, cast

from jaxtyping import Float
from torch import Tensor, nn

from jepakit._checks import (
    as_bool,
    as_choice,
    as_image_size,
    as_layers,
    check_floating,
    check_images_finite,
    check_weight_dtype,
    value_checks_on,
)
from jepakit._wrapped import unwrap
from jepakit.nn._backbones import adapt
from jepakit.nn._backbones.backbone import UnsupportedBackboneError
from jepakit.nn._backbones.replace import ReplacingBackbone
from jepakit.nn._padding import zero_padding
from jepakit.tokens import TokenSet, mean_tokens
from jepakit.tokens._arguments import check_context

__all__ = ["MaskedViT"]


class MaskedViT(nn.Module):
    r"""A timm vision transformer that can be run on a subset of its patches.

    With patch embeddings $z_p$ (positions added) and a context $S$,
    $f(x, S) = \mathrm{norm}(\mathrm{blocks}(\mathrm{prefix}, (z_p)_{p \in S}))$ without the prefix.
    Hidden patches are dropped before the first block, so they cost nothing and cannot leak. The
    backbone keeps its weights, blocks, attention and positions, and the names in its state dict.
    Class and register tokens are computed and attended to, but not returned.

    Nothing is installed in the backbone, and no call leaves anything on it: threads, and several
    encoders, may share one and use different contexts at the same time.

    `encoder(images)` equals `backbone.forward_features(images)[:, num_prefix_tokens:]`, after the
    backbone's final norm. A timm model that is built to average its features
    (`global_pool="avg"`) has that norm in its head (`fc_norm`), and the features come without it.

    Build the backbone with `num_classes=0`: a head or a pooling layer of timm's own gets no
    gradient from patch features, at which `DistributedDataParallel` stops. Hybrids compute their
    convolutional stem on the whole image: hidden pixels then reach visible patches within the
    stem's receptive field and through its group norms. Batch norms (XCiT, TinyViT ...) mix the
    images of a batch in training, hidden patches included.

    Every model works with `torch.compile(fullgraph=True)` and with gradient checkpointing.

    Args:
        backbone: A timm model. Patches are dropped from the `VisionTransformer` family (DeiT,
            DINOv2, SigLIP, AIMv2, hybrids ...), `Eva` (EVA-02, DINOv3 and other rotary models),
            `Beit`, `VisionTransformerRelPos` and `NaFlexVit`.
        mask_mode: `"drop"` leaves hidden patches out. `"replace"` is for models that need the whole
            grid (Swin, Hiera and others with a `patch_embed`): a learnable mask token replaces the
            embedding of every hidden patch. No compute is saved, and features and grid are those
            of the last stage.

    Raises:
        UnsupportedBackboneError: If the backbone lacks a feature that the mode needs.

    Example:
        >>> import timm, torch
        >>> from jepakit import MaskedViT, RandomMask
        >>> backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64)
        >>> encoder = MaskedViT(backbone)
        >>> masks = RandomMask(encoder.grid_size, target_ratio=0.75)(2)
        >>> encoder(torch.randn(2, 3, 64, 64), masks.context).shape
        torch.Size([2, 4, 192])

    Source:
        Dropping as in MAE (arXiv:2111.06377) and I-JEPA (arXiv:2301.08243). Difference: contexts
        may be ragged; padding is no key and comes out as zeros. Replacing as in SimMIM
        (arXiv:2111.09886). Difference: a cell of the last stage is hidden as a whole.
    """

    def __init__(self, backbone: nn.Module, mask_mode: Literal["drop", "replace"] = "drop") -> None:
        super().__init__()
        mask_mode = as_choice("mask_mode", mask_mode, ("drop", "replace"))
        self._adapter = adapt(unwrap(backbone), mask_mode)
        self.backbone: nn.Module = backbone
        self.mask_mode = mask_mode
        if isinstance(self._adapter, ReplacingBackbone):
            self.replacing = self._adapter.replacing.train(backbone.training)
        self.training = backbone.training

    @property
    def grid_size(self) -> tuple[int, int]:
        """Grid of the features, `(H, W)`, for images of the size the backbone was built for."""
        return self._adapter.grid_size

    def grid_size_of(self, image_size: int | Sequence[int]) -> tuple[int, int]:
        """Grid of the features of images of a size.

        Args:
            image_size: Pixels, `(height, width)`, or one number for square images.

        Raises:
            ValueError: If `forward` would refuse images of this size.

        Example:
            >>> import timm
            >>> from jepakit import MaskedViT
            >>> arguments = dict(num_classes=0, depth=1, img_size=64, dynamic_img_size=True)
            >>> encoder = MaskedViT(timm.create_model("vit_tiny_patch16_224", **arguments))
            >>> encoder.grid_size, encoder.grid_size_of((96, 160))
            ((4, 4), (6, 10))
        """
        return self._adapter.grid_of(as_image_size("image_size", image_size))

    @property
    def embed_dim(self) -> int:
        """Width of the features."""
        return self._adapter.embed_dim

    @property
    def num_prefix_tokens(self) -> int:
        """Number of class and register tokens in front of the patches."""
        return self._adapter.num_prefix_tokens

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        context: TokenSet | None = None,
        *,
        return_hidden: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """Patch features of `images` after the final norm, of all patches or of the `context`.

        Args:
            images: Pixels, normalised as the backbone expects.
            context: Visible patches; None for all.
            return_hidden: Return the features of every position, visible or hidden, in the order of
                the grid, as losses at hidden positions need them. Only with `mask_mode="replace"`
                and a context: where patches are dropped, hidden ones have no features.
        """
        self._check(images, context)
        if as_bool("return_hidden", return_hidden):
            if not isinstance(self._adapter, ReplacingBackbone) or context is None:
                raise ValueError(
                    f"return_hidden=True: must come with mask_mode='replace' and a context, got "
                    f"mask_mode={self.mask_mode!r} and {'no' if context is None else 'a'} context"
                )
            return self._adapter.all_features(images, context)[:, self.num_prefix_tokens :]
        features = self._adapter.features(images, context)
        return zero_padding(features[:, self.num_prefix_tokens :], context)

    def forward_intermediates(
        self,
        images: Float[Tensor, "b c h w"],
        layers: Sequence[int],
        context: TokenSet | None = None,
        *,
        norm: bool = False,
    ) -> list[Float[Tensor, "b n d"]]:
        """Patch features after chosen layers.

        Args:
            images: Pixels, normalised as the backbone expects.
            layers: Numbers of blocks from 0, ascending; negative ones count from the end. With
                `mask_mode="replace"`, numbers of timm's feature stages.
            context: Visible patches; None for all. With `mask_mode="replace"`, a context allows
                only stages on `grid_size`.
            norm: Apply the backbone's final norm, if `forward` does, to each, so that layer -1
                equals `forward`. Not with `mask_mode="replace"`, whose stages differ in width.
        """
        if as_bool("norm", norm) and self.mask_mode == "replace":
            raise ValueError("norm=True: must be False with mask_mode='replace'")
        self._check(images, context)
        outputs = self._adapter.intermediates(
            images, as_layers("layers", layers, self._adapter.num_layers), context
        )
        if norm:
            outputs = [cast(Any, self.backbone).norm(features) for features in outputs]
        return [zero_padding(features, context) for features in outputs]

    def extract_features(
        self,
        images: Float[Tensor, "b c h w"],
        context: TokenSet | None = None,
        pool: Literal["mean", "cls", "map"] | None = "mean",
    ) -> Float[Tensor, "b ..."]:
        """Pooled features for probes and retrieval, after `fc_norm` if present.

        Args:
            images: Pixels, normalised as the backbone expects.
            context: Patches to see and to pool over, such as those that hold data,
                `TokenSet.from_mask(valid, grid_size)`; None for all. A sample without any is zero.
            pool: `"mean"` of the patch features, the `"cls"` token, or `"map"`, the backbone's own
                attention pooling, which takes no context. None returns the patch features
                `[b n d]` as `forward` does.
        """
        as_choice("pool", pool, ("mean", "cls", "map", None))
        model: Any = unwrap(self.backbone)
        if pool == "cls" and not self._adapter.has_class_token:
            raise ValueError("pool='cls': this backbone has no class token; use pool='mean'")
        if pool == "map" and getattr(model, "attn_pool", None) is None:
            raise ValueError("pool='map': this backbone has no attention pooling; use pool='mean'")
        if pool == "map" and context is not None:
            raise ValueError("pool='map': takes no context; use pool='mean'")
        self._check(images, context)
        features = self._adapter.features(images, context)
        patches = zero_padding(features[:, self.num_prefix_tokens :], context)
        if pool is None:
            return patches
        if pool == "map":
            pooled = self._adapter.attention_pooled(features)
        elif pool == "cls":
            pooled = features[:, 0]
        else:
            pooled = patches.mean(dim=1) if context is None else mean_tokens(patches, context)
        pooled = cast(Tensor, model.fc_norm(pooled)) if hasattr(model, "fc_norm") else pooled
        if context is None or not context.padded:
            return pooled
        # Also after `fc_norm`, which has a bias.
        return pooled.masked_fill(~context.valid.any(dim=-1, keepdim=True), 0)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """With `enable`, compute blocks again in the backward pass and keep no activations.

        Raises:
            UnsupportedBackboneError: If the backbone has no such option.
        """
        enable = as_bool("enable", enable)
        model: Any = unwrap(self.backbone)
        if not hasattr(model, "set_grad_checkpointing"):
            raise UnsupportedBackboneError(
                f"backbone={type(model).__name__}: lacks set_grad_checkpointing; use "
                "apply_activation_checkpointing of torch.distributed"
            )
        model.set_grad_checkpointing(enable)

    def _check(self, images: Tensor, context: TokenSet | None) -> None:
        if self._adapter.model is not unwrap(self.backbone):
            raise RuntimeError(
                "encoder.backbone: must be the one that was wrapped; build MaskedViT(new_backbone) "
                "(DataParallel replicates the backbone: use DistributedDataParallel)"
            )
        check_floating("images", images)
        shape = tuple(images.shape)
        if images.dim() != 4:
            raise ValueError(f"images {shape}: must be [batch, channels, height, width]")
        if len(images) == 0:
            raise ValueError(f"images {shape}: the batch must not be empty")
        channels = self._adapter.in_channels
        if shape[1] != channels:
            hint = "; are they [batch, height, width, channels]?" * (shape[3] == channels)
            raise ValueError(f"images {shape}: must have the backbone's {channels} channels{hint}")
        grid = self._adapter.grid_of((shape[2], shape[3]))
        check_weight_dtype("images", images, self._adapter.model)
        if context is not None:
            check_context(context, grid, "images", images)
        if value_checks_on(images):
            check_images_finite("images", images)

    def extra_repr(self) -> str:
        """Arguments that the submodules do not show."""
        return f"mask_mode={self.mask_mode!r}"
