"""`VectorQuantizer`: each vector becomes the nearest code of a book that follows the data."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from jepakit._checks import check_floating, check_number, check_tensor
from jepakit._distributed import sum_over_ranks
from jepakit._precision import full_precision
from jepakit._rows import check_rows, to_rows
from jepakit.nn.quantizer.arguments import check_arguments, check_generator
from jepakit.nn.quantizer.assign import drawn, nearest, not_faded, unit
from jepakit.nn.quantizer.quantized import Quantized
from jepakit.nn.quantizer.statistics import draw_vectors, totals

__all__ = ["VectorQuantizer"]


class VectorQuantizer(nn.Module):
    r"""Vector quantization with a codebook that is the moving average of what it stands for.

    A vector $z$ becomes the nearest code $e_k$, and the gradient of that code goes to $z$ as if it
    were $z$ (straight-through). The loss pulls vectors to their codes,
    $$L = \beta\, \frac{1}{n d} \sum_{i=1}^{n} \| z_i - \mathrm{sg}(e_{k_i}) \|^2,$$
    and in training each batch, after it was quantized, moves the codes. With the number $n_k$ and
    the sum $s_k$ of the vectors that got code $k$,
    $$N_k \leftarrow \gamma N_k + (1 - \gamma)\, n_k, \qquad
        m_k \leftarrow \gamma m_k + (1 - \gamma)\, s_k, \qquad
        e_k = m_k \Big/ \Big(N\, \frac{N_k + \epsilon}{N + K \epsilon}\Big), \quad N = \sum_k N_k$$
    from $N_k = 1$ and $m_k = e_k$. So a code is a mean of vectors that were seen, and no longer
    than they are (but for the smoothing, a factor of at most $1 + K \epsilon / N$).

    The first batch in training gives the first codes, vectors drawn from it. A code whose count
    falls below `refresh_below` of the mean count is replaced by a vector of the batch before the
    batch is quantized, with the mean count, so that it has as long to prove itself as any other.

    There are no parameters, so there is nothing for an optimiser or weight decay. Not-valid vectors
    get no code, come out as zeros, and have no share in anything; a vector that is not finite makes
    its own code and the loss NaN, but never enters the codebook. Statistics are float32, whatever
    the features are. In eval mode nothing changes and nothing is random.

    Args:
        num_codes: $K$.
        dim: Width of a vector.
        momentum: $\gamma$, the fraction of the old averages that is kept; strictly between 0 and 1.
        commitment_weight: $\beta$, of the loss that is returned.
        cosine: Compare directions: vectors and codes are scaled to unit length, and so is what
            comes out.
        temperature: Draw the code in training, with probabilities
            $p_k \propto \exp(-\|z - e_k\|^2 / \tau)$, by Gumbel's trick, and take the gradient of
            the relaxed sample, the codes' mean under
            $\mathrm{softmax}_k(-\|z - e_k\|^2 / \tau + g_k)$. In units of squared features; a
            number, or a schedule from step to number that falls to 0, the nearest code (compiled
            anew for each step). None for the nearest code and straight-through.
        refresh_below: Fraction of the mean count below which a code is dead; one that is rarer in
            truth is replaced over and over. 0 for none: a code without votes then fades to 0.
        smoothing: $\epsilon$ of the Laplace smoothing, in vectors; above 0. With `cosine` it
            cancels, and another value than the default raises.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range or cannot take effect.

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
        (in published code at 0, beside sums that start at the codes: the first update then
        multiplies every code that was not used), the loss is a mean over elements as in published
        code, not a sum over the width, and $\beta$ weighs the only term, since the averages replace
        the other. First codes and refresh: Jukebox (arXiv:2005.00341) and SoundStream
        (arXiv:2107.03312). `cosine`: ViT-VQGAN (arXiv:2110.04627). `temperature`: Gumbel-softmax
        (arXiv:1611.01144), straight-through; difference: logits are distances to codes that are not
        learned by gradient, so the temperature divides them alone and not the noise, and annealing
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
        refresh_below: float = 0.05,
        smoothing: float = 1e-5,
    ) -> None:
        super().__init__()
        check_arguments(
            num_codes,
            dim,
            momentum,
            commitment_weight,
            cosine,
            temperature,
            refresh_below,
            smoothing,
        )
        self.num_codes, self.dim = num_codes, dim
        self.momentum = momentum
        self.commitment_weight = commitment_weight
        self.cosine = cosine
        self.temperature = temperature
        self.refresh_below = refresh_below
        self.smoothing = smoothing
        codes = torch.randn(num_codes, dim)
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", unit(codes) if cosine else codes)
        self.register_buffer("started", torch.tensor(False))

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """The codes as they are now."""
        if self.cosine:
            return unit(self.sums)
        total = self.counts.sum()
        smoothed = (self.counts + self.smoothing) / (total + self.num_codes * self.smoothing)
        return self.sums / (total * smoothed).unsqueeze(1)

    @torch.no_grad()
    def start_from(self, codes: Float[Tensor, "k d"]) -> None:
        """Take over codes, from k-means for example, instead of drawing the first from the data.

        Args:
            codes: The codebook, `[num_codes, dim]`.
        """
        check_floating("codes", codes)
        if codes.shape != self.sums.shape:
            raise ValueError(
                f"codes {tuple(codes.shape)}: must have the shape {tuple(self.sums.shape)}"
            )
        self.counts.fill_(1)
        self.sums.copy_(unit(codes) if self.cosine else codes)
        self.started.fill_(True)

    def lookup(self, indices: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """The codes with these `indices`; zeros for -1."""
        check_tensor("indices", indices, torch.int64)
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
        """Codes for vectors; in training, the codebook moves.

        Args:
            features: Vectors, such as tokens `[b n d]`.
            valid: True where a vector counts. All if None.
            step: Step of training, for a `temperature` that is a schedule; else not read.
            generator: Randomness of the refresh and of `temperature`; the global one if None. Over
                ranks the first rank's draws refresh the codes of all, and each draws its own noise.
            process_group: Quantize the joined batch of all ranks of this group: the codebook stays
                the same on each, the loss is the global mean, and its gradient is scaled for DDP's
                averaging, also when counts differ. Every rank must call, in eval mode too.

        Raises:
            TypeError: If an argument is of the wrong type, or the module was cast to a half type.
            ValueError: If shapes do not fit, the batch is empty and there is no other rank, or
                there is a schedule and no `step`.
        """
        self._check(features, valid, generator, process_group)
        temperature = self._temperature(step) if self.training else None
        with full_precision(features):
            vectors, present = to_rows(features, valid)
            vectors = vectors.to(torch.promote_types(vectors.dtype, self.sums.dtype))
            if self.cosine:
                vectors = unit(vectors)
            known = vectors.detach()
            # What is not finite would never leave an average again.
            voting = present.squeeze(1) & known.isfinite().all(dim=1)
            known = known.masked_fill(~voting.unsqueeze(1), 0)
            if self.training:
                self._refresh(known, voting, generator, process_group)
            codes = self.codebook.to(vectors.dtype)
            path = vectors
            if temperature is None:
                indices = nearest(known, codes)
            else:
                indices, path = drawn(vectors, codes, temperature, generator)
            chosen = codes[indices]
            counts = self._vote(known, voting, indices, process_group)

            # The difference is exactly 0; it carries the gradient.
            quantized = (chosen + (path - path.detach())).masked_fill(~present, 0)
            gaps = (vectors - chosen).square().masked_fill(~present, 0).sum()
            sums = torch.stack([gaps, present.sum().to(gaps.dtype)])
            gaps, count = sum_over_ranks(sums, process_group).unbind()
            shares = counts / counts.sum().clamp(min=1)
            return Quantized(
                quantized.to(features.dtype).view(features.shape),
                indices.masked_fill(~present.squeeze(1), -1).view(features.shape[:-1]),
                self.commitment_weight * gaps / (count.clamp(min=1) * self.dim),
                torch.special.entr(shares).sum().exp(),
                (counts > 0).to(counts.dtype).mean(),
            )

    @torch.no_grad()
    def _refresh(
        self,
        vectors: Tensor,
        voting: Tensor,
        generator: torch.Generator | None,
        process_group: ProcessGroup | None,
    ) -> None:
        """Vectors of the batch in place of dead codes; before the first batch all are."""
        mean = self.counts.mean()
        dead = (self.counts < self.refresh_below * mean) | ~self.started
        fresh, count = draw_vectors(vectors, voting, dead, generator, process_group)
        dead = dead & (count > 0)
        fresh = fresh.to(self.sums.dtype) * mean
        self.sums.copy_(torch.where(dead.unsqueeze(1), fresh, self.sums))
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.started.copy_(self.started | (count > 0))

    @torch.no_grad()
    def _vote(
        self, vectors: Tensor, voting: Tensor, indices: Tensor, process_group: ProcessGroup | None
    ) -> Tensor:
        """The number of vectors of each code; in training, they move the averages."""
        votes = voting.to(vectors.dtype).unsqueeze(1)
        if not self.training:
            return totals(votes, indices, self.num_codes, process_group).squeeze(1)
        columns = torch.cat([vectors, votes], dim=1)
        found = totals(columns, indices, self.num_codes, process_group)
        sums, counts = found[:, :-1], found[:, -1]
        # A batch without a vector says nothing: the averages wait.
        share = (1 - self.momentum) * (counts.sum() > 0).to(self.sums.dtype)
        self.sums.lerp_(sums.to(self.sums.dtype), share)
        if self.cosine:
            self.sums.copy_(not_faded(self.sums))
        self.counts.lerp_(counts.to(self.counts.dtype), share)
        return counts

    def _temperature(self, step: int | None) -> float | None:
        if self.temperature is None or not callable(self.temperature):
            return self.temperature
        if step is None:
            raise ValueError("step=None: must be given in training, as temperature is a schedule")
        value = self.temperature(step)
        check_number(f"temperature({step})", value, minimum=0)
        return value or None  # the nearest code is the limit at 0

    def _check(
        self,
        features: Tensor,
        valid: Tensor | None,
        generator: object,
        process_group: ProcessGroup | None,
    ) -> None:
        check_rows("features", features, valid, process_group)
        if features.shape[-1] != self.dim:
            raise ValueError(
                f"features {tuple(features.shape)}: must be [*batch, {self.dim}], the dim that the "
                "quantizer was built with"
            )
        check_generator(generator)
        if self.training and self.sums.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"the codebook is {self.sums.dtype}: an average in a half type stands still; keep "
                "the quantizer in float32, features may be of any type"
            )

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_codes}, {self.dim}, momentum={self.momentum}, "
            f"commitment_weight={self.commitment_weight}, cosine={self.cosine}, "
            f"temperature={self.temperature}, refresh_below={self.refresh_below}, "
            f"smoothing={self.smoothing}"
        )
