"""Normalisation and centring of the teacher's features before they are predicted."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from jepakit._checks import (
    as_choice,
    as_fraction,
    as_grid_size,
    as_int,
    check_floating,
    check_rows,
    values_readable,
)
from jepakit._distributed import sum_over_ranks
from jepakit._precision import float32_or_wider, full_precision
from jepakit._rows import everything_valid, zero_invalid

__all__ = ["TargetCentering", "normalize_targets"]

_EPSILON = 1e-5  # added to variances, as in layer norm
_RIDGE = 1e-2  # of the mean variance: directions with less are noise, and stay small when whitened


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


class TargetCentering(nn.Module):
    r"""Centre the teacher's features over the batch, position by position, and scale them.

    $$y_{ip} = A\,(x_{ip} - \mu_p), \qquad \mu_p = \frac{S_p}{N_p}, \qquad
        \Sigma = \frac{Q}{\sum_p N_p}$$

    for image $i$ and position $p$. $A$ is the identity for `scale="none"`, the inverse of
    $\sqrt{\mathrm{diag}\,\Sigma + 10^{-5}}$ for `"channel"`, and for `"whiten"`
    $(\Sigma + 10^{-2}\,\tfrac{\mathrm{tr}\,\Sigma}{d} I + 10^{-5} I)^{-1/2}$, which makes channels
    uncorrelated and turns the features as little as possible (ZCA).

    In training each batch enters the moving averages before they are used, $N$ and $S$ at the
    positions where it has valid features:
    $$N_p \leftarrow \gamma N_p + (1 - \gamma) \sum_i 1, \quad
        S_p \leftarrow \gamma S_p + (1 - \gamma) \sum_i x_{ip}, \quad
        Q \leftarrow \gamma Q + (1 - \gamma) \sum_{ip} (x_{ip} - \mu_p)(x_{ip} - \mu_p)^\top$$
    with sums over what is valid; the divisor of $Q$ is averaged like $Q$. They start at 0, which
    leaves no bias in their ratios: after the first batch $\mu$ and $\Sigma$ are those of that
    batch, whatever the momentum. With momentum 0 they always are those of the batch alone.

    It prevents targets that are a function of position alone. These are predicted perfectly without
    a look at the image, and their effective rank may be high, 12 of 64 in one run, while the
    features of all images have a standard deviation of 0.01. Here they become 0, and the scale
    keeps the part that differs between images at variance 1, so that it cannot fade out of the
    loss. `"whiten"` gives each direction of the features the same part of the loss, also those that
    are small in the first teacher; `"channel"` leaves most of it to the few directions of most
    variance, so ranks end lower. With `"none"` all may still shrink.

    There are no parameters, and no gradient passes: the result is detached. Padding comes out as
    zeros and enters no average; a valid vector that is not finite enters none either. Half
    precision is computed in float32 and returned in its own dtype. Eval mode uses the averages and
    changes nothing; a position that training never saw gets the mean of all positions.

    Law 5, batch invariance, does not hold in training: that a target depends on the other images is
    the purpose. It holds in eval mode.

    Args:
        grid_size: Grid of the features, such as `encoder.grid_size`.
        dim: Their width, such as `encoder.embed_dim`.
        scale: `"channel"` divides by the standard deviation of each channel; `"whiten"` also makes
            the channels uncorrelated, by an eigendecomposition of a `dim` x `dim` matrix in every
            call, which an accelerator has to wait for; `"none"` centres only.
        momentum: $\gamma$, the fraction of the old averages that is kept; 0 for the statistics of
            each batch alone. The averages hold about batch size / (1 - momentum) images, which
            should be some hundreds.

    Raises:
        RuntimeError: In eval mode, if there was no batch in training. On an accelerator and in
            compiled code, where values are not checked, the result is NaN instead.

    Example:
        >>> import torch
        >>> from jepakit.losses import TargetCentering
        >>> centre = TargetCentering((1, 2), 1, scale="none")
        >>> features = torch.tensor([[[1.0], [10.0]], [[3.0], [10.0]]])  # position 1 is constant
        >>> centre(features).squeeze(-1)
        tensor([[-1.,  0.],
                [ 1.,  0.]])

    Source:
        The centring of DINO (arXiv:2104.14294) and the normalised targets of data2vec
        (arXiv:2202.03555), both against collapse. Differences: DINO has one centre, for the class
        token's logits before a softmax, and uses the average before the batch enters it; its
        average starts at 0 with that bias. data2vec normalises the features of one sample, over its
        positions (speech) or each vector (images, as `normalize_targets`), not over the batch.
        Whitening as in W-MSE (arXiv:2007.06346), which whitens both sides of its loss, by a
        Cholesky factor.
    """

    counts: Tensor
    sums: Tensor
    total: Tensor
    products: Tensor | None

    def __init__(
        self,
        grid_size: Sequence[int],
        dim: int,
        *,
        scale: Literal["none", "channel", "whiten"] = "channel",
        momentum: float = 0.0,
    ) -> None:
        super().__init__()
        self.grid_size = as_grid_size("grid_size", grid_size)
        self.dim = as_int("dim", dim, minimum=1)
        self.scale = as_choice("scale", scale, ("none", "channel", "whiten"))
        self.momentum = as_fraction("momentum", momentum, open_high=True)
        num_positions = math.prod(self.grid_size)
        self.register_buffer("counts", torch.zeros(num_positions, 1))
        self.register_buffer("sums", torch.zeros(num_positions, self.dim))
        self.register_buffer("total", torch.zeros(()))
        shape = {"none": None, "channel": (self.dim,), "whiten": (self.dim, self.dim)}[self.scale]
        self.register_buffer("products", None if shape is None else torch.zeros(shape))

    @property
    def mean(self) -> Float[Tensor, "N d"]:
        """Mean at each position; where none was seen, that of all; NaN before the first batch."""
        overall = self.sums.sum(dim=0) / self.counts.sum()
        return torch.where(self.counts > 0, self.sums / self.counts, overall)

    @property
    def std(self) -> Float[Tensor, " d"]:
        """Standard deviation of each channel around the means; 1 with `scale="none"`."""
        if self.products is None:
            return torch.ones_like(self.sums[0])
        variance = self.products if self.scale == "channel" else self.products.diagonal()
        return (variance / self.total + _EPSILON).sqrt()

    def _scaled(self, centred: Tensor) -> Tensor:
        if self.products is None:
            return centred
        if self.scale == "channel":
            return centred / self.std
        covariance = self.products / self.total
        variance = covariance.diagonal().mean()
        values, vectors = torch.linalg.eigh(covariance)
        # Rounding may leave a value of -1e-9 where there is no variance.
        inverse = (values.clamp_min(0) + _RIDGE * variance + _EPSILON).rsqrt()
        whitening: Tensor = (vectors * inverse) @ vectors.T
        return centred @ whitening

    @torch.no_grad()
    def forward(
        self,
        features: Float[Tensor, "b N d"],
        valid: Bool[Tensor, "b N"] | None = None,
        *,
        process_group: ProcessGroup | None = None,
    ) -> Float[Tensor, "b N d"]:
        """Centre features; in training, update the averages first.

        Args:
            features: The teacher's features of whole images: centre before `take_tokens`.
            valid: False at padding. None if all are valid.
            process_group: Take the statistics over the joined batch of all ranks of this group, so
                that the averages stay the same on each. Batch sizes may differ; every rank must
                call.

        Raises:
            ValueError: In training with momentum 0, if there is a single image: it would be its own
                mean, and all targets 0.
            TypeError: If the module was cast to half precision and is in training.
        """
        self._check(features, valid, process_group)
        if valid is None:
            valid = everything_valid(features)
        dtype = torch.promote_types(features.dtype, self.sums.dtype)
        wide = zero_invalid(features.to(dtype), valid)
        if self.training:
            self._update(wide, valid, process_group)
        with full_precision(wide):
            scaled = self._scaled(wide - self.mean)
        return zero_invalid(scaled, valid).to(features.dtype)

    def _update(self, features: Tensor, valid: Tensor, process_group: ProcessGroup | None) -> None:
        # A NaN or an infinity would never leave a moving average again.
        usable = valid & features.isfinite().all(dim=-1)
        columns = torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)
        totals = sum_over_ranks(zero_invalid(columns, usable).sum(dim=0), process_group)
        sums, counts = torch.split(totals.to(self.sums.dtype), [self.dim, 1], dim=-1)
        # Where a position has no valid features in the batch, its averages stay as they are.
        weight = (1 - self.momentum) * (counts > 0).to(counts.dtype)
        self.counts.lerp_(counts, weight)
        self.sums.lerp_(sums, weight)
        if self.products is None:
            return
        # Around the mean, in a second pass: a difference of large squares would cancel.
        rows = zero_invalid(features - self.mean, usable).flatten(0, 1)
        with full_precision(rows):
            products = rows.square().sum(dim=0) if self.scale == "channel" else rows.T @ rows
        products = sum_over_ranks(products, process_group).to(self.sums.dtype)
        weight = (1 - self.momentum) * (counts.sum() > 0).to(counts.dtype)
        self.total.lerp_(counts.sum(), weight)
        self.products.lerp_(products, weight)

    def _check(
        self, features: Tensor, valid: Tensor | None, process_group: ProcessGroup | None
    ) -> None:
        check_rows("features", features, valid, process_group)
        shape, num_positions = tuple(features.shape), len(self.sums)
        if features.dim() != 3 or shape[1:] != (num_positions, self.dim):
            raise ValueError(
                f"features {shape}: must hold the whole grid {self.grid_size}, so be "
                f"[batch, {num_positions}, {self.dim}]; take_tokens comes after"
            )
        if self.training:
            if self.sums.dtype in (torch.float16, torch.bfloat16):
                raise TypeError(
                    f"the averages are {self.sums.dtype}: moving averages in half precision do not "
                    "move; keep the module in float32, features may have any dtype"
                )
            if len(features) < 2 and self.momentum == 0 and process_group is None:
                raise ValueError(
                    f"features {shape}: must be of at least 2 images with momentum=0, since one is "
                    "its own mean; set a momentum, for averages over batches"
                )
        elif values_readable(self.counts) and not self.counts.any():
            raise RuntimeError(
                "TargetCentering in eval mode has no averages yet: call it in training first, or "
                "load a state_dict"
            )

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.grid_size}, {self.dim}, scale={self.scale!r}, momentum={self.momentum}"
