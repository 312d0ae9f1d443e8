"""Normalisation of the teacher's features before they are predicted."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import as_choice, check_floating
from jepakit._precision import float32_or_wider

__all__ = ["normalize_targets"]


def normalize_targets(
    features: Float[Tensor, "*batch d"], kind: Literal["layer", "l2", "none"] = "layer"
) -> Float[Tensor, "*batch d"]:
    r"""Normalise each feature vector on its own, without learned parameters.

    $$\mathrm{layer}: \frac{x - \bar x}{\sqrt{\mathrm{var}(x) + 10^{-5}}}, \qquad
        \mathrm{l2}: \frac{x}{\max(\|x\|, 10^{-6})}, \qquad \mathrm{none}: x$$

    Mean and (biased) variance are over the `d` entries of one vector. A zero vector stays zero, so
    padding may be normalised too. Half precision is computed in float32 and returned in its own
    dtype.

    Args:
        features: Teacher features.
        kind: `"layer"` for mean 0 and variance 1, `"l2"` for unit length, `"none"` for no change.

    Raises:
        ValueError: If `kind="layer"` is used for vectors of a single entry, which become 0.

    Example:
        >>> import torch
        >>> normalize_targets(torch.tensor([3.0, 4.0]), "l2")
        tensor([0.6000, 0.8000])

    Source:
        The published code of I-JEPA (arXiv:2301.08243) applies `"layer"`; its paper mentions no
        normalisation, which is `"none"`. No difference from that code's layer norm.
    """
    check_floating("features", features)
    if features.dim() < 1:
        raise ValueError("features (): must have the shape [*batch, d]")
    as_choice("kind", kind, ("layer", "l2", "none"))
    if kind == "none":
        return features
    if kind == "l2":
        return F.normalize(float32_or_wider(features), dim=-1, eps=1e-6).to(features.dtype)
    shape = tuple(features.shape)
    if shape[-1] < 2:
        raise ValueError(f"kind='layer' with features {shape}: must have at least 2 entries each")
    return F.layer_norm(float32_or_wider(features), shape[-1:]).to(features.dtype)
