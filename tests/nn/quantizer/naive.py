"""The quantizer in float64 loops over vectors, written from the formulas of its docstring."""

import math

import torch
from torch import Tensor


class Naive:
    """Lists of codes; `step` takes the valid vectors of one batch, after any refresh."""

    def __init__(self, counts: Tensor, sums: Tensor, momentum: float, cosine: bool) -> None:
        self.counts = [c.item() for c in counts]
        self.sums = [s.double() for s in sums]
        self.momentum, self.cosine = momentum, cosine

    def codes(self) -> list[Tensor]:
        if self.cosine:
            return [s / s.norm() for s in self.sums]
        total, k = sum(self.counts), len(self.counts)
        smoothed = [(c + 1e-5) / (total + k * 1e-5) * total for c in self.counts]
        return [s / c for s, c in zip(self.sums, smoothed, strict=True)]

    def step(
        self, vectors: Tensor, noise: Tensor | None = None, temperature: float = 1.0
    ) -> tuple[Tensor, list[int], Tensor, float]:
        """Quantized vectors with their gradient, indices, ||z - e||^2 per element, perplexity."""
        codes, out, indices, gaps = self.codes(), [], [], 0
        if self.cosine:
            vectors = torch.stack([z / z.norm() for z in vectors])
        for i, z in enumerate(vectors):
            squares = [((z - e) ** 2).sum() for e in codes]
            if noise is None:
                best = min(range(len(codes)), key=lambda k: squares[k].item())
                out.append(codes[best] + z - z.detach())
            else:
                logits = [-s / temperature + g for s, g in zip(squares, noise[i], strict=True)]
                best = max(range(len(codes)), key=lambda k: logits[k].item())
                weights = torch.stack(logits).exp() / torch.stack(logits).exp().sum()
                soft = sum(w * e for w, e in zip(weights, codes, strict=True))
                out.append(codes[best] + soft - soft.detach())
            indices.append(best)
            gaps = gaps + ((z - codes[best]) ** 2).mean()
        g = self.momentum
        for k in range(len(codes)):
            own = [z.detach() for z, i in zip(vectors, indices, strict=True) if i == k]
            self.counts[k] = g * self.counts[k] + (1 - g) * len(own)
            self.sums[k] = g * self.sums[k] + (1 - g) * sum(own, start=0 * self.sums[k])
        shares = [indices.count(k) / len(indices) for k in range(len(codes))]
        perplexity = math.exp(-sum(p * math.log(p) for p in shares if p > 0))
        return torch.stack(out), indices, gaps / len(vectors), perplexity
