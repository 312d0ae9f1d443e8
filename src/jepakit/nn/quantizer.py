"""Vector quantizer with a codebook of moving averages."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from jepakit._checks import (
    as_bool,
    as_fraction,
    as_int,
    as_number,
    check_floating,
    check_generator,
    check_rows,
    check_tensor,
    values_readable,
)
from jepakit._distributed import broadcast_from_first, gather_scalars, sum_over_ranks
from jepakit._precision import full_precision
from jepakit._rows import to_rows

__all__ = ["Quantized", "VectorQuantizer"]


class Quantized(NamedTuple):
    r"""Result of a `VectorQuantizer`.

    Args:
        quantized: The code of each vector, of the features' shape and dtype; 0 at padding.
        indices: Index of that code in the codebook, also where it was sampled; -1 at padding, which
            `cross_entropy(..., ignore_index=-1)` leaves out.
        loss: The weighted commitment loss, to be added to the others.
        perplexity: Effective number of codes in use, $\exp(-\sum_k p_k \log p_k)$, where $p_k$ is
            the fraction of the valid vectors of all ranks that have code $k$; 1 if none is valid.
        usage_ratio: Fraction of the codes that the batch uses; few vectors cannot use many.
    """

    quantized: Float[Tensor, "*batch d"]
    indices: Int[Tensor, "*batch"]
    loss: Float[Tensor, ""]
    perplexity: Float[Tensor, ""]
    usage_ratio: Float[Tensor, ""]


class VectorQuantizer(nn.Module):
    r"""Vector quantization with a codebook that is a moving average of the vectors.

    A vector $z$ is replaced by the nearest code $e_k$, and the gradient of that code goes to $z$
    unchanged (straight-through). The loss pulls vectors to their codes,
    $$L = \beta\, \frac{1}{n d} \sum_{i=1}^{n} \| z_i - \mathrm{sg}(e_{k_i}) \|^2,$$
    and in training each batch, after it was quantized, moves the codes. With the number $n_k$ and
    the sum $s_k$ of the vectors of code $k$,
    $$N_k \leftarrow \gamma N_k + (1 - \gamma)\, n_k, \qquad
        m_k \leftarrow \gamma m_k + (1 - \gamma)\, s_k, \qquad
        e_k = m_k \Big/ \Big(N\, \frac{N_k + \epsilon}{N + K \epsilon}\Big), \quad N = \sum_k N_k$$
    from $N_k = 1$ and $m_k = e_k$. A code is thus a mean of past vectors and no longer than they
    are (except for the smoothing, a factor of at most $1 + K \epsilon / N$).

    The first batch in training gives the first codes, vectors drawn from it. Before each batch is
    quantized, every code whose count is below `refresh_ratio` of the mean count is replaced by a
    vector of the batch and gets the mean count.

    There are no parameters. Padding gets no code, comes out as zeros and enters no average. A valid
    vector that is not finite makes its own code and the loss NaN, but never enters the codebook.
    Statistics are float32. In eval mode nothing changes and nothing is random.

    Args:
        num_codes: $K$, at least 2.
        dim: Width of a vector.
        momentum: $\gamma$, the fraction of the old averages that is kept; strictly between 0 and 1.
        commitment_weight: $\beta$, weight of the loss.
        cosine: Compare directions: vectors, codes and outputs have unit length.
        temperature: Sample the code in training, with probabilities
            $p_k \propto \exp(-\|z - e_k\|^2 / \tau)$, by the Gumbel-max trick. The gradient is that
            of the relaxed sample, the mean of the codes under
            $\mathrm{softmax}_k(-\|z - e_k\|^2 / \tau + g_k)$. In units of squared features: a
            number, or a schedule from step to number, which may fall to 0, the nearest code
            (`torch.compile` recompiles for each step). None for the nearest code, straight-through.
        refresh_ratio: Fraction of the mean count, below 1, under which a code is replaced. Codes
            that are rarer than that in the data are replaced repeatedly. 0 never replaces: the
            count of an unused code then decays to 0.
        smoothing: $\epsilon$ of the Laplace smoothing, in vectors; above 0. Not with `cosine`.

    Raises:
        ValueError: If `smoothing` is set with `cosine`.

    Example:
        >>> import torch
        >>> from jepakit.nn import VectorQuantizer
        >>> quantizer = VectorQuantizer(64, 16)
        >>> features = torch.randn(8, 196, 16, requires_grad=True)
        >>> out = quantizer(features)
        >>> out.quantized.shape, out.indices.shape
        (torch.Size([8, 196, 16]), torch.Size([8, 196]))
        >>> (out.quantized.square().mean() + out.loss).backward()
        >>> features.grad.shape
        torch.Size([8, 196, 16])

    Source:
        VQ-VAE (arXiv:1711.00937), its appendix A.1 for the averages. Differences: counts start at 1
        (at 0, as in published code, the first update multiplies every code that was not used), the
        loss is a mean over elements as in published code, not a sum over the width, and $\beta$
        weighs the only term, since the averages replace the other. First codes and refresh: Jukebox
        (arXiv:2005.00341) and SoundStream (arXiv:2107.03312). `cosine`: ViT-VQGAN
        (arXiv:2110.04627). `temperature`: Gumbel-softmax (arXiv:1611.01144), straight-through;
        difference: the temperature divides the logits alone and not the noise, so that annealing
        leads to the nearest code.
    """

    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        momentum: float = 0.99,
        commitment_weight: float = 0.25,
        cosine: bool = False,
        temperature: float | Callable[[int], float] | None = None,
        refresh_ratio: float = 0.05,
        smoothing: float = 1e-5,
    ) -> None:
        super().__init__()
        self.num_codes = as_int("num_codes", num_codes, minimum=2)
        self.dim = as_int("dim", dim, minimum=1)
        self.momentum = as_fraction("momentum", momentum, open_low=True, open_high=True)
        self.commitment_weight = as_number("commitment_weight", commitment_weight, minimum=0)
        self.cosine = as_bool("cosine", cosine)
        if temperature is not None and not callable(temperature):
            temperature = as_number("temperature", temperature, positive=True)
        self.temperature = temperature
        self.refresh_ratio = as_fraction("refresh_ratio", refresh_ratio, open_high=True)
        self.smoothing = as_number("smoothing", smoothing, positive=True)
        if self.cosine and self.smoothing != 1e-5:
            raise ValueError(f"smoothing={self.smoothing}: has no effect with cosine=True")
        codes = torch.randn(self.num_codes, self.dim)
        self.register_buffer("counts", torch.ones(self.num_codes))
        self.register_buffer("sums", unit_length(codes) if self.cosine else codes)
        self.register_buffer("started", torch.tensor(False))

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """The current codes."""
        if self.cosine:
            return unit_length(self.sums)
        total = self.counts.sum()
        smoothed = (self.counts + self.smoothing) / (total + self.num_codes * self.smoothing)
        return self.sums / (total * smoothed).unsqueeze(1)

    @torch.no_grad()
    def start_from(self, codes: Float[Tensor, "k d"]) -> None:
        """Set the codebook to `codes`, for example from k-means, instead of drawing them."""
        check_floating("codes", codes)
        if codes.shape != self.sums.shape:
            shape = tuple(self.sums.shape)
            raise ValueError(f"codes {tuple(codes.shape)}: must have the shape {shape}")
        if not codes.isfinite().all():
            raise ValueError("codes: must be finite, since an average never forgets NaN")
        self.counts.fill_(1)
        self.sums.copy_(unit_length(codes) if self.cosine else codes)
        self.started.fill_(True)

    def lookup(self, indices: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """The codes with these `indices`; zeros for -1."""
        check_tensor("indices", indices, torch.int64)
        if values_readable(indices) and indices.numel() and indices.min() < -1:
            lowest = int(indices.min())
            raise ValueError(f"indices: must be -1 for padding or a code, but hold {lowest}")
        codes = F.embedding(indices.clamp(min=0), self.codebook)
        return codes.masked_fill((indices < 0).unsqueeze(-1), 0)

    def forward(
        self,
        features: Float[Tensor, "*batch d"],
        valid: Bool[Tensor, "*batch"] | None = None,
        *,
        step: int | None = None,
        generator: torch.Generator | None = None,
        process_group: ProcessGroup | None = None,
    ) -> Quantized:
        """Quantize vectors; in training, update the codebook.

        Args:
            features: Vectors, such as `[b n d]`.
            valid: False at padding. None if all are valid.
            step: Training step, for a `temperature` that is a schedule, and in training only then.
            generator: Randomness of the refresh and of `temperature`; the global one if None. Over
                ranks the first rank's draws refresh the codes of all, and each draws its own noise.
            process_group: Quantize the joined batch of all ranks of this group: the codebook stays
                the same on each, the loss is the global mean, and its gradient is scaled for DDP's
                averaging, also when counts differ. Every rank must call, in eval mode too.

        Raises:
            TypeError: If the module was cast to half precision and is in training.
        """
        check_rows("features", features, valid, process_group)
        check_generator(generator)
        self._check(features)
        temperature = self._temperature(step) if self.training else None
        with full_precision(features):
            vectors, present = to_rows(features, valid)
            vectors = vectors.to(torch.promote_types(vectors.dtype, self.sums.dtype))
            if self.cosine:
                vectors = unit_length(vectors)
            # A NaN or an infinity would never leave a moving average again.
            detached = vectors.detach()
            usable = present.squeeze(1) & detached.isfinite().all(dim=1)
            detached = detached.masked_fill(~usable.unsqueeze(1), 0)
            if self.training:
                self._refresh(detached, usable, generator, process_group)

            codes = self.codebook.to(vectors.dtype)
            if temperature is None:
                indices, surrogate = nearest_codes(detached, codes), vectors
            else:
                indices, surrogate = sample_codes(vectors, codes, temperature, generator)
            chosen = codes[indices]

            weights = usable.to(vectors.dtype).unsqueeze(1)
            columns = torch.cat([detached, weights], dim=1) if self.training else weights
            totals = columns.new_zeros(self.num_codes, columns.shape[1])
            totals = sum_over_ranks(totals.index_add_(0, indices, columns), process_group)
            counts = totals[:, -1]
            if self.training:
                self._update_averages(totals[:, :-1], counts)

            # The difference is exactly 0 and carries the gradient: `chosen + z - z` would round.
            quantized = (chosen + (surrogate - surrogate.detach())).masked_fill(~present, 0)
            errors = (vectors - chosen).square().masked_fill(~present, 0).sum()
            sums = torch.stack([errors, present.sum().to(errors.dtype)])
            errors, num_valid = sum_over_ranks(sums, process_group).unbind()
            fractions = counts / counts.sum().clamp(min=1)
            return Quantized(
                quantized.to(features.dtype).view(features.shape),
                indices.masked_fill(~present.squeeze(1), -1).view(features.shape[:-1]),
                self.commitment_weight * errors / (num_valid.clamp(min=1) * self.dim),
                torch.special.entr(fractions).sum().exp(),
                (counts > 0).to(counts.dtype).mean(),
            )

    @torch.no_grad()
    def _refresh(
        self,
        vectors: Tensor,
        usable: Tensor,
        generator: torch.Generator | None,
        process_group: ProcessGroup | None,
    ) -> None:
        """Replace rarely used codes by vectors of the batch; before the first batch, all codes."""
        mean = self.counts.mean()
        rare = (self.counts < self.refresh_ratio * mean) | ~self.started
        fresh, num_usable = draw_vectors(vectors, usable, rare, generator, process_group)
        rare = rare & (num_usable > 0)
        fresh = fresh.to(self.sums.dtype) * mean
        self.sums.copy_(torch.where(rare.unsqueeze(1), fresh, self.sums))
        self.counts.copy_(torch.where(rare, mean, self.counts))
        self.started.copy_(self.started | (num_usable > 0))

    @torch.no_grad()
    def _update_averages(self, sums: Tensor, counts: Tensor) -> None:
        # A batch without a usable vector leaves the averages as they are.
        weight = (1 - self.momentum) * (counts.sum() > 0).to(self.sums.dtype)
        self.sums.lerp_(sums.to(self.sums.dtype), weight)
        if self.cosine:
            # A code that gets no vectors decays, but keeps its direction.
            length = torch.linalg.vector_norm(self.sums, dim=-1, keepdim=True).clamp(min=1e-30)
            self.sums.mul_((_MIN_SUM_NORM / length).clamp(min=1))
        self.counts.lerp_(counts.to(self.counts.dtype), weight)

    def _temperature(self, step: int | None) -> float | None:
        if self.temperature is None or not callable(self.temperature):
            if step is not None:
                rule = f"must be left out, as temperature={self.temperature} is no schedule"
                raise ValueError(f"step={step}: {rule}")
            return self.temperature
        if step is None:
            raise ValueError("step=None: must be given in training, as temperature is a schedule")
        value = as_number(f"temperature({step})", self.temperature(step), minimum=0)
        return value or None  # the nearest code is the limit at 0

    def _check(self, features: Tensor) -> None:
        if features.shape[-1] != self.dim:
            raise ValueError(f"features {tuple(features.shape)}: must be [*batch, {self.dim}]")
        if self.training and self.sums.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"the codebook is {self.sums.dtype}: a moving average in half precision does not "
                "move; keep the quantizer in float32, features may have any dtype"
            )

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_codes}, {self.dim}, momentum={self.momentum}, "
            f"commitment_weight={self.commitment_weight}, cosine={self.cosine}, "
            f"temperature={self.temperature}, refresh_ratio={self.refresh_ratio}, "
            f"smoothing={self.smoothing}"
        )


# Codes of vectors

_MIN_NORM = 1e-6  # a shorter vector has no direction
_MIN_SUM_NORM = 1e-3  # well above it: minimum length of a sum of directions
_TABLE_SIZE = 2**26  # distances that are in memory at once


def unit_length(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Vectors scaled to length 1."""
    return F.normalize(vectors, dim=-1, eps=_MIN_NORM)


def code_scores(vectors: Float[Tensor, "n d"], codes: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    """Negative squared distances from vectors to codes, up to a constant for each vector.

    -|z - e|^2 = 2 z.e - |e|^2 - |z|^2, of which the last term does not depend on the code.
    """
    # Relative to the codes' mean: far from the origin, differences of products would cancel.
    centre = codes.mean(dim=0)
    codes = codes - centre
    return 2 * (vectors - centre) @ codes.T - codes.square().sum(dim=1)


def nearest_codes(vectors: Float[Tensor, "n d"], codes: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """Index of the nearest code of each vector, the first one of equals."""
    chunks = torch.split(vectors, max(1, _TABLE_SIZE // len(codes)))
    return torch.cat([code_scores(chunk, codes).argmax(dim=1) for chunk in chunks])


def sample_codes(
    vectors: Float[Tensor, "n d"],
    codes: Float[Tensor, "k d"],
    temperature: float,
    generator: torch.Generator | None,
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n d"]]:
    """Index of a sampled code, and the mean of all codes under the relaxed sample."""
    logits = code_scores(vectors, codes) / temperature
    logits = logits + gumbel_like(logits, generator)
    return logits.argmax(dim=1), logits.softmax(dim=1) @ codes


def gumbel_like(
    logits: Float[Tensor, "n k"], generator: torch.Generator | None
) -> Float[Tensor, "n k"]:
    """Gumbel noise, drawn on the generator's device."""
    device = logits.device if generator is None else generator.device
    noise = torch.empty(logits.shape, dtype=torch.float32, device=device)
    noise.exponential_(generator=generator).clamp_(min=torch.finfo(noise.dtype).tiny)
    return -noise.log().to(logits)


def draw_vectors(
    vectors: Float[Tensor, "n d"],
    usable: Bool[Tensor, " n"],
    slots: Bool[Tensor, " k"],
    generator: torch.Generator | None,
    process_group: ProcessGroup | None,
) -> tuple[Float[Tensor, "k d"], Int[Tensor, ""]]:
    """One usable vector for each True slot, and the number of usable ones, equal on all ranks.

    The usable vectors, ordered by rank and row, are cut into as many stretches as there are slots,
    and each slot gets a random vector of its stretch: 10 vectors for 3 slots are the stretches 0-2,
    3-5 and 6-9. So no vector is drawn twice unless there are fewer vectors than slots. Neither
    padding nor the distribution of rows over ranks changes the draw, and there is no host
    synchronisation.
    """
    device = vectors.device if generator is None else generator.device
    uniform = torch.rand(len(slots), generator=generator, dtype=torch.float32, device=device)
    uniform = broadcast_from_first(uniform.to(vectors.device), process_group)
    counts = gather_scalars(usable.sum(), process_group)  # usable vectors of each rank
    rank = 0 if process_group is None else dist.get_rank(process_group)
    before, total = counts[:rank].sum(), counts.sum()

    slot, num_slots = slots.cumsum(dim=0) - 1, slots.sum().clamp(min=1)
    low, high = slot * total // num_slots, (slot + 1) * total // num_slots
    length = (high - low).clamp(min=1)
    # Number of the drawn vector among the usable ones of this rank.
    number = low + torch.minimum((uniform * length).long(), length - 1) - before
    is_local = slots & (number >= 0) & (number < counts[rank])
    drawn = vectors.new_zeros(len(slots), vectors.shape[1])
    if len(vectors):
        # Vector number 2 is in the first row at which the cumulative count reaches 3.
        row = torch.searchsorted(usable.cumsum(dim=0), number + 1).clamp(max=len(vectors) - 1)
        drawn = torch.where(is_local.unsqueeze(1), vectors[row], drawn)
    return sum_over_ranks(drawn, process_group), total  # other ranks contribute zeros
