"""`Quantized`: what a quantizer gives."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Quantized"]


class Quantized(NamedTuple):
    r"""Codes instead of vectors, and how the codebook was used.

    With $p_k$ the share of code $k$ among the valid vectors of the batch (of all ranks),
    `perplexity` is $\exp(-\sum_k p_k \log p_k)$: as many codes, equally used, would be as varied.

    Args:
        quantized: The code of each vector, of the features' shape and type; 0 where not valid.
        indices: Its number, of which `quantized` is the code, sampled or not; -1 where not valid,
            which `cross_entropy(..., ignore_index=-1)` leaves out.
        loss: The commitment loss, weighted: add it to the others.
        perplexity: From 1 to the number of codes; 1 if nothing is valid.
        usage: Fraction of the codes that the batch uses. A batch of few vectors cannot use many.

    Example:
        >>> import torch
        >>> from jepakit.nn import VectorQuantizer
        >>> out = VectorQuantizer(8, 2)(torch.randn(2, 64, 2))
        >>> out.quantized.shape, out.indices.shape, out.usage
        (torch.Size([2, 64, 2]), torch.Size([2, 64]), tensor(1.))

    Source:
        jepakit's own.
    """

    quantized: Float[Tensor, "*batch d"]
    indices: Int[Tensor, "*batch"]
    loss: Float[Tensor, ""]
    perplexity: Float[Tensor, ""]
    usage: Float[Tensor, ""]
