"""`init_sincos_positions`: a backbone that knows from the first step where its patches are."""

import torch
from torch import nn

from jepakit.nn._backbones import UnsupportedBackboneError
from jepakit.nn.masked_vit import MaskedViT
from jepakit.nn.positions import sincos_table

__all__ = ["init_sincos_positions"]


def init_sincos_positions(encoder: MaskedViT) -> None:
    r"""Set a backbone's position embeddings to sines and cosines, in place.

    For a patch at row $r$ and column $c$, with $d$ the width and $w_i = 10000^{-4i/d}$,

    $$p = (\sin r w_i,\ \cos r w_i,\ \sin c w_i,\ \cos c w_i), \qquad 0 \le i < d / 4$$

    and zeros for class and register tokens. timm draws them with a deviation of 0.02, a small part
    of what a patch embedding puts out: a student that is to predict what is where has first to
    learn where, and short runs end before it has. They stay trainable; freeze them with
    `encoder.backbone.pos_embed.requires_grad_(False)`.

    For training from scratch: what a pretrained backbone has learned of positions is replaced. Call
    this before the teacher is copied and before `torch.compile`.

    Args:
        encoder: Its backbone has a learned position embedding, `pos_embed`, of the whole grid.

    Raises:
        TypeError: If `encoder` is no `MaskedViT`.
        UnsupportedBackboneError: If the backbone has no such embedding (rotary and relative
            positions, NaFlexViT), or adds its positions to something else than the grid's tokens.
        ValueError: If its width is no multiple of 4.

    Example:
        >>> import timm
        >>> from jepakit import MaskedViT
        >>> from jepakit.nn import init_sincos_positions
        >>> encoder = MaskedViT(timm.create_model("vit_tiny_patch16_224", num_classes=0))
        >>> init_sincos_positions(encoder)
        >>> encoder.backbone.pos_embed.detach()[0, 1, :3]  # sines of row 0
        tensor([0., 0., 0.])

    Source:
        The positions of MAE (arXiv:2111.06377) and I-JEPA (arXiv:2301.08243), which freeze them
        and have the column first.
    """
    if not isinstance(encoder, MaskedViT):
        raise TypeError(f"encoder: must be a MaskedViT, got {type(encoder).__name__}")
    embedding = getattr(encoder.backbone, "pos_embed", None)
    rows, columns = encoder.grid_size
    name = type(encoder.backbone).__name__
    if not isinstance(embedding, nn.Parameter) or embedding.dim() != 3:
        raise UnsupportedBackboneError(
            f"{name} has no position embedding `pos_embed` of shape [1, tokens, width] to set"
        )
    prefix = embedding.shape[1] - rows * columns
    if prefix not in (0, encoder.num_prefix_tokens):
        raise UnsupportedBackboneError(
            f"{name}.pos_embed {tuple(embedding.shape)}: must have one row for each of the "
            f"{rows} x {columns} patches, and none or {encoder.num_prefix_tokens} in front"
        )
    width = embedding.shape[2]
    if width % 4:
        raise ValueError(f"{name}.pos_embed is {width} wide: must be a multiple of 4")
    with torch.no_grad():
        embedding[:, :prefix] = 0
        embedding[:, prefix:] = sincos_table((rows, columns), width)
