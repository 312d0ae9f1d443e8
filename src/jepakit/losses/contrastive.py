"""InfoNCE, its queue of negatives and its learned temperature."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from jepakit._checks import (
    as_bool,
    as_fraction,
    as_int,
    as_number,
    check_floating,
    check_process_group,
    check_rows,
    check_same_shape,
    check_tensor,
    value_checks_on,
)
from jepakit._distributed import gather_rows, row_counts, rows_before, sum_over_ranks
from jepakit._precision import float32_or_wider, full_precision
from jepakit._rows import to_rows

__all__ = ["FeatureQueue", "LearnableTemperature", "info_nce"]

# Norms are clamped here, which bounds the gradient of a cosine: it grows as 1 / norm.
_MIN_NORM = 1e-6


def info_nce(
    query: Float[Tensor, "*batch d"],
    key: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    temperature: float | Float[Tensor, ""] = 0.1,
    negatives: Float[Tensor, "k d"] | None = None,
    false_negatives: Bool[Tensor, "n m"] | None = None,
    symmetric: bool = False,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Cross-entropy of finding each query's own key among all keys and further negatives.

    $$L = -\frac{1}{n} \sum_{i=1}^{n} \log
        \frac{e^{q_i \cdot k_i / \tau}}{e^{q_i \cdot k_i / \tau}
        + \sum_{j \in N_i} e^{q_i \cdot k_j / \tau}}$$

    with $q$ and $k$ scaled to unit length and $N_i$ the keys of all other samples and the rows of
    `negatives`, without those that `false_negatives` excludes. Computed in float32. The gradient
    flows into keys too, unless they are detached.

    Args:
        query: Features of one view: `[b d]`, or `[b n d]` with every valid token as a query and all
            other valid ones of the batch as its negatives.
        key: Features of the other view, row by row.
        valid: True where a row counts, as query and as key. All rows if None.
        temperature: $\tau$, above 0: a number, or a tensor such as `LearnableTemperature()` gives,
            through which the gradient flows.
        negatives: Further negatives for every query, such as `FeatureQueue.negatives`. Over ranks
            they must be the same on each.
        false_negatives: True where row `i` and candidate `j` are of the same class, so that `j` is
            no negative of `i`: candidates are the keys of all rows (of all ranks, in rank order),
            then `negatives`. The own key always counts, whatever its entry is.
        symmetric: Also let each key find its query, among the queries alone, and take the mean of
            both directions.
        process_group: Compare with the keys of all ranks of this group, with value and gradient as
            in `masked_mse`, through the keys of others too. Batch sizes may differ between ranks,
            which costs a host synchronisation. Every rank must call and go backward.

    Raises:
        ValueError: If shapes do not fit (nothing is broadcast), or there is a single row and no
            other candidate.

    Example:
        >>> import torch
        >>> x = torch.eye(4)
        >>> info_nce(x, x, temperature=1.0)  # log(e + 3) - 1
        tensor(0.7437)
        >>> info_nce(x, x, temperature=1.0, false_negatives=torch.ones(4, 4, dtype=torch.bool))
        tensor(0.)

    Source:
        CPC (arXiv:1807.03748), with the cosine of CLIP (arXiv:2103.00020), whose loss is
        `symmetric=True`, and the queue of MoCo (arXiv:1911.05722), whose loss is `negatives=` with
        detached keys. Not SimCLR's NT-Xent, which also has the rows of the same view as negatives;
        and no factor of $2\tau$, as MoCo v3 has it.
    """
    check_same_shape("key", key, "query", query)
    check_rows("query", query, valid, process_group, minimum=1 if negatives is not None else 2)
    temperature = _as_temperature(temperature)
    as_bool("symmetric", symmetric)
    if negatives is not None:
        check_floating("negatives", negatives)
        if negatives.dim() != 2 or negatives.shape[1] != query.shape[-1]:
            shape, dim = tuple(negatives.shape), query.shape[-1]
            raise ValueError(f"negatives {shape}: must have the shape [k, {dim}]")
    with full_precision(query):
        rows = to_rows(query, valid)
        queries, keys = rows.values, to_rows(key, valid).values
        dtype = torch.promote_types(queries.dtype, keys.dtype)
        queries, keys = _unit(queries.to(dtype)), _unit(keys.to(dtype))
        own_valid = rows.valid.squeeze(1)

        all_queries, all_keys, padding = queries, keys, None if valid is None else ~own_valid
        counts = row_counts(queries, process_group)
        first = rows_before(counts, process_group)  # all_keys[first] is the key of query 0
        if process_group is not None:
            # One exchange: the backwards of two could run in another order on another rank.
            joined = gather_rows(torch.cat([queries, keys], dim=1), counts, process_group)
            all_queries, all_keys = joined.chunk(2, dim=1)
            # Every rank takes part, with a mask or without.
            padding = ~gather_rows(own_valid, counts, process_group)
        candidates = all_keys
        if negatives is not None:
            candidates = torch.cat([all_keys, _unit(float32_or_wider(negatives).to(dtype))])
        if false_negatives is not None:
            check_tensor("false_negatives", false_negatives, torch.bool)
            shape, expected = tuple(false_negatives.shape), (len(queries), len(candidates))
            if shape != expected:
                rule = f"must have the shape [rows, candidates], {expected}"
                raise ValueError(f"false_negatives {shape}: {rule}")

        terms = _cross_entropy(queries, candidates, first, temperature, false_negatives, padding)
        if symmetric:
            if false_negatives is not None:
                among_keys = false_negatives[:, : len(all_keys)]
                by_key = gather_rows(among_keys, counts, process_group).T
                false_negatives = by_key[first : first + len(keys)]
            back = _cross_entropy(keys, all_queries, first, temperature, false_negatives, padding)
            terms = (terms + back) / 2
        if valid is not None:
            terms = terms.masked_fill(~own_valid, 0)
        sums = torch.stack([terms.sum(), own_valid.sum().to(terms.dtype)])
        total, count = sum_over_ranks(sums, process_group).unbind()
        return total / count.clamp(min=1)


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1, eps=_MIN_NORM)


def _cross_entropy(
    anchors: Tensor,
    candidates: Tensor,
    first: int,
    temperature: float | Tensor,
    false_negatives: Tensor | None,
    padding: Tensor | None,
) -> Tensor:
    """Cross-entropy of each anchor; anchor `i` belongs to candidate `first + i`."""
    logits = anchors @ candidates.T / temperature
    positives = logits.diagonal(offset=first)
    excluded = false_negatives
    if padding is not None:
        # The queue's rows come after those of the batch, and are all valid.
        padded = F.pad(padding, (0, len(candidates) - len(padding))).expand_as(logits)
        excluded = padded if excluded is None else excluded | padded
    if excluded is not None:
        columns = torch.arange(len(candidates), device=logits.device)
        is_own = columns == columns[first : first + len(anchors)].unsqueeze(1)
        logits = logits.masked_fill(excluded & ~is_own, float("-inf"))
    return torch.logsumexp(logits, dim=1) - positives


def _as_temperature(temperature: float | Tensor) -> float | Tensor:
    if not isinstance(temperature, Tensor):
        return as_number("temperature", temperature, positive=True)
    check_floating("temperature", temperature)
    if temperature.dim() != 0:
        raise ValueError(f"temperature {tuple(temperature.shape)}: must be a scalar")
    if value_checks_on(temperature) and not temperature > 0:
        raise ValueError(f"temperature={temperature.item()}: must be above 0")
    return temperature


class FeatureQueue(nn.Module):
    """First-in, first-out queue of the last `size` feature vectors pushed in training.

    Call `push` after the loss, with the keys: a key that is in the queue already would be its own
    negative. In eval mode `push` does nothing, so that validation features never enter. Features
    are kept without gradient, and a tensor read from `negatives` does not change with a later push.
    Load the state dict on every rank: it holds their count too, which is not a buffer, and
    `DistributedDataParallel` broadcasts buffers only. Push outside of `torch.compile`: the length
    of a filling queue changes at every step.

    Args:
        size: Largest number of vectors to keep.
        dim: Their width.

    Raises:
        ValueError: If pushed features are not `[n, dim]`.

    Example:
        >>> import torch
        >>> queue = FeatureQueue(3, 2)
        >>> queue.push(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
        >>> queue.push(torch.tensor([[3.0, 3.0], [4.0, 4.0]]))
        >>> queue.negatives
        tensor([[2., 2.],
                [3., 3.],
                [4., 4.]])

    Source:
        MoCo (arXiv:1911.05722). Differences: it starts empty instead of with noise, and batches
        need not divide its size.
    """

    features: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.size = as_int("size", size, minimum=1)
        self.dim = as_int("dim", dim, minimum=1)
        self.count = 0
        # Filled from the end: the newest vector is the last row, unused rows come first.
        self.register_buffer("features", torch.zeros(self.size, self.dim))

    @property
    def negatives(self) -> Float[Tensor, "k d"]:
        """The vectors in the queue, oldest first; `[0 d]` while it is empty."""
        return self.features[self.size - self.count :]

    @torch.no_grad()
    def push(
        self, features: Float[Tensor, "n d"], *, process_group: ProcessGroup | None = None
    ) -> None:
        """Add vectors and drop the oldest beyond `size`; nothing in eval mode.

        Args:
            features: Vectors to add, the newest last. Normalised or not: `info_nce` normalises.
            process_group: Add those of all ranks of this group, in rank order, so that every rank
                holds the same queue. Every rank must call.
        """
        check_floating("features", features)
        check_process_group(process_group)
        shape = tuple(features.shape)
        if len(shape) != 2 or shape[1] != self.dim:
            raise ValueError(f"features {shape}: must have the shape [n, {self.dim}]")
        if not self.training:
            return
        # A NaN would be a negative of every query until it is dropped.
        if value_checks_on(features) and not torch.isfinite(features).all():
            raise ValueError(f"features {shape}: must be finite, got NaN or infinity")
        features = gather_rows(features, row_counts(features, process_group), process_group)
        # A new tensor: the old one may be part of a graph that has not gone backward yet.
        self.features = torch.cat([self.features, features.to(self.features)])[-self.size :]
        self.count = min(self.size, self.count + len(features))

    def get_extra_state(self) -> dict[str, int]:
        """The number of vectors in the queue."""
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the number from the `state` that `get_extra_state` gave."""
        self.count = min(self.size, as_int("count", state["count"], minimum=0))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.size}, {self.dim}"


class LearnableTemperature(nn.Module):
    r"""A learned temperature between two bounds, smooth in its parameter.

    $$\tau = \exp\Big(\frac{\log a + \log b}{2}
        + \frac{\log b - \log a}{2} \cdot \frac{2}{\pi} \arctan \theta\Big)$$

    The slope in $\theta$ falls only as $1 / (1 + \theta^2)$, so a temperature that was driven
    towards a bound returns in as many steps. A clamp has no gradient outside, and a sigmoid's
    underflows.

    Called without arguments it gives the temperature, for `info_nce(..., temperature=...)`. Keep
    the parameter out of weight decay, which would pull it to the geometric mean of the bounds.

    Args:
        low: The lower bound $a$, above 0.
        high: The upper bound $b$, above `low`.
        initial: The initial temperature; the geometric mean of the bounds if None.

    Raises:
        ValueError: If not `0 < low < initial < high`.

    Example:
        >>> temperature = LearnableTemperature(0.05, 0.2)
        >>> temperature()
        tensor(0.1000, grad_fn=<ExpBackward0>)

    Source:
        CLIP (arXiv:2103.00020) learns the logarithm and clips it, which ends its gradient.
    """

    def __init__(
        self, low: float = 0.05, high: float = 0.2, *, initial: float | None = None
    ) -> None:
        super().__init__()
        self.low = as_number("low", low, positive=True)
        self.high = as_number("high", high)
        if self.high <= self.low:
            raise ValueError(f"high={self.high:g}: must be above low={self.low:g}")
        if initial is None:
            initial = math.sqrt(self.low * self.high)
        initial = as_fraction(
            "initial", initial, low=self.low, high=self.high, open_low=True, open_high=True
        )
        middle, half_width = self._log_interval()
        position = (math.log(initial) - middle) / half_width  # in (-1, 1)
        self.theta = nn.Parameter(torch.tensor(math.tan(math.pi / 2 * position)))

    def _log_interval(self) -> tuple[float, float]:
        """Centre and half-width of the interval of log temperatures."""
        low, high = math.log(self.low), math.log(self.high)
        return (low + high) / 2, (high - low) / 2

    def forward(self) -> Float[Tensor, ""]:
        """The temperature."""
        middle, half_width = self._log_interval()
        return (middle + half_width * 2 / math.pi * torch.atan(self.theta.float())).exp()

    def extra_repr(self) -> str:
        """The bounds."""
        return f"low={self.low}, high={self.high}"
