"""InfoNCE: a sample's own key among the keys of all others."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import (
    check_bool,
    check_floating,
    check_number,
    check_same_shape,
    check_tensor,
    value_checks_on,
)
from jepakit._distributed import gather_rows, row_counts, sum_over_ranks
from jepakit._precision import float32_or_wider, full_precision
from jepakit._rows import check_rows, to_rows

__all__ = ["info_nce"]

# A vector shorter than this has no direction worth a gradient.
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
    `negatives`, without what `false_negatives` takes out. Computed in float32. The gradient flows
    into keys too, unless they are detached.

    Args:
        query: Features that ask: pooled `[b d]`, or tokens `[b n d]`, of which every valid one
            asks and every other valid one of the batch is a negative.
        key: Features that answer, row by row.
        valid: True where a row counts, as query and as key. All rows if None.
        temperature: $\tau$, above 0: a number, or a tensor such as `LearnableTemperature()` gives,
            through which the gradient flows.
        negatives: Further negatives for every query, such as `FeatureQueue.negatives`. Over ranks
            they must be the same on each.
        false_negatives: True where row `i` and candidate `j` are of the same kind, so that `j` is
            no negative of `i`: candidates are the keys of all rows (of all ranks, in rank order),
            then `negatives`. The own key always counts, whatever stands there.
        symmetric: Also let each key find its query, among the queries alone, and take the mean of
            both directions.
        process_group: Compare with the keys of all ranks of this group: each rank returns the
            global mean, with a gradient, through the keys of others too, scaled so that DDP's
            averaging gives the gradient of one big batch. Ranks may have batches of other sizes,
            for which the sizes are read back from the device once. Every rank must call and go
            backward.

    Raises:
        TypeError: If features are not floating point, masks not bool, or `temperature`, `symmetric`
            or `process_group` of another kind.
        ValueError: If shapes do not fit (nothing is broadcast), `temperature` is not above 0, or
            there is a single row and nothing to tell it from.

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
    _check_temperature(temperature)
    check_bool("symmetric", symmetric)
    if negatives is not None:
        check_floating("negatives", negatives)
        if negatives.dim() != 2 or negatives.shape[1] != query.shape[-1]:
            raise ValueError(
                f"negatives {tuple(negatives.shape)}: must have the shape [k, {query.shape[-1]}]"
            )
    with full_precision(query):
        queries, present = to_rows(query, valid)
        keys = to_rows(key, valid).values
        dtype = torch.promote_types(queries.dtype, keys.dtype)
        queries, keys = (_unit(x.to(dtype)) for x in (queries, keys))
        further = None if negatives is None else _unit(float32_or_wider(negatives).to(dtype))

        n, start, absent = len(queries), 0, None if valid is None else ~present.squeeze(1)
        all_queries, all_keys, all_absent = queries, keys, absent
        counts: list[int] = []
        if process_group is not None:
            counts = row_counts(queries, process_group)
            start = sum(counts[: process_group.rank()])
            # In one exchange, whose backward cannot be in another order on another rank.
            joined = gather_rows(torch.cat([queries, keys], dim=1), counts, process_group)
            all_queries, all_keys = joined.chunk(2, dim=1)
            # Every rank takes part, whether it has a mask or not.
            flags = gather_rows(present.to(torch.uint8), counts, process_group)
            all_absent = flags.squeeze(1) == 0
        candidates = all_keys if further is None else torch.cat([all_keys, further])
        total_rows = len(all_keys)
        if false_negatives is not None:
            _check_false_negatives(false_negatives, n, len(candidates))

        forward = _terms(queries, candidates, start, temperature, false_negatives, all_absent)
        if symmetric:
            if false_negatives is not None:
                among_rows = false_negatives[:, :total_rows]
                if process_group is not None:
                    flags = gather_rows(among_rows.to(torch.uint8), counts, process_group)
                    among_rows = flags.bool()
                false_negatives = among_rows.T[start : start + n]
            back = _terms(keys, all_queries, start, temperature, false_negatives, all_absent)
            forward = (forward + back) / 2
        terms = forward if absent is None else forward.masked_fill(absent, 0)
        sums = torch.stack([terms.sum(), present.sum().to(terms.dtype)])
        total, count = sum_over_ranks(sums, process_group).unbind()
        return total / count.clamp(min=1)


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1, eps=_MIN_NORM)


def _terms(
    anchors: Tensor,
    candidates: Tensor,
    start: int,
    temperature: float | Tensor,
    false_negatives: Tensor | None,
    absent: Tensor | None,
) -> Tensor:
    """The loss of each anchor, whose own candidate is `start` further on."""
    logits = anchors @ candidates.T / temperature
    own = logits.diagonal(offset=start)
    removed = false_negatives
    if absent is not None:
        # The queue's rows come after those of the batch, and are all there.
        gone = F.pad(absent, (0, len(candidates) - len(absent)), value=False).expand_as(logits)
        removed = gone if removed is None else removed | gone
    if removed is not None:
        columns = torch.arange(len(candidates), device=logits.device)
        is_own = columns == columns[start : start + len(anchors)].unsqueeze(1)
        logits = logits.masked_fill(removed & ~is_own, float("-inf"))
    return torch.logsumexp(logits, dim=1) - own


def _check_temperature(temperature: object) -> None:
    if not isinstance(temperature, Tensor):
        check_number("temperature", temperature, positive=True)
        return
    check_floating("temperature", temperature)
    if temperature.dim() != 0:
        raise ValueError(f"temperature {tuple(temperature.shape)}: must be a scalar, of shape ()")
    if value_checks_on(temperature) and not temperature > 0:
        raise ValueError(f"temperature={temperature.item()}: must be above 0")


def _check_false_negatives(mask: Tensor, rows: int, candidates: int) -> None:
    check_tensor("false_negatives", mask, torch.bool)
    if mask.shape != (rows, candidates):
        raise ValueError(
            f"false_negatives {tuple(mask.shape)}: must have the shape [rows, candidates], "
            f"({rows}, {candidates}), candidates being all keys and then negatives"
        )
