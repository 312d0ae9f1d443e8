"""`target_retrieval`: predictions for hidden positions, searched among the batch's features."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepakit._checks import as_int, check_floating, check_row_mask
from jepakit._rows import everything_valid
from jepakit.diagnostics._valid_rows import float64
from jepakit.tokens import TokenSet
from jepakit.tokens._arguments import check_token_set

__all__ = ["TargetRetrieval", "target_retrieval"]

_TIE = 1e-9  # cosines that differ by less are equal; products round at 1e-16


class TargetRetrieval(NamedTuple):
    """Result of `target_retrieval`.

    Args:
        accuracy: Mean of `hits` over the blocks that have a valid position.
        chance: Accuracy of a constant prediction: the mean of 1 / number of candidates.
        hits: For each block 1 if its own image is the most similar, 0 if another is, 1 / t if its
            own is among t that are equally similar; NaN without a valid position.
        nearest: Indices in the batch of the `k` most similar images, the most similar first; -1
            where there are fewer candidates.
    """

    accuracy: Float[Tensor, ""]
    chance: Float[Tensor, ""]
    hits: Float[Tensor, "b *m"]
    nearest: Int[Tensor, "b *m k"]


def target_retrieval(
    pred: Float[Tensor, "b *m n d"],
    features: Float[Tensor, "b N d"],
    targets: TokenSet,
    valid: Bool[Tensor, "b N"] | None = None,
    *,
    k: int = 1,
) -> TargetRetrieval:
    r"""Fraction of predictions that find their own image among all images of the batch.

    A prediction $q$ for the block of positions $P$ of one image is compared with the features $t_j$
    of every image $j$ at the same positions, by the cosine over all positions and channels at once,
    $$s_j = \frac{\sum_{p \in P} \tilde q_p \cdot \tilde t_{jp}}
        {\sqrt{\sum_{p \in P} \|\tilde q_p\|^2 \; \sum_{p \in P} \|\tilde t_{jp}\|^2}}, \qquad
        \tilde q_p = q_p - \mu_p, \quad \tilde t_{jp} = t_{jp} - \mu_p, \quad
        \mu_p = \frac{1}{b} \sum_j t_{jp}$$

    and is right if the largest $s_j$ is that of its own image. Centred by position, since what all
    images share at a position says nothing about the image and would bring all cosines near 1. A
    cosine and not a distance, since a prediction of what is partly unknown is close to the mean: by
    distance it would find whichever image is closest to the mean.

    It measures the task itself, without labels, and is not met by collapse: if all features are
    equal, or the prediction is constant, the result is chance, $1/b$. Compare with `chance`, and
    with the untrained encoder and predictor, which may be above chance, since the patches of an
    image share its colours and brightness.

    Args:
        pred: Predictions at `targets`, as `MaskedPredictor` returns them.
        features: The teacher's features of the whole images, as the loss takes them: normalised or
            centred, before `take_tokens`.
        targets: The positions that were predicted.
        valid: True where an image has data, `[b, N]`. An image is compared only where it is valid
            at all positions of the block. All positions if None.
        k: Number of most similar images to return.

    Raises:
        ValueError: If shapes do not fit, there are fewer than 2 images, no target is valid, a valid
            feature is not finite, or an image is not valid at its own targets.

    Example:
        >>> import torch
        >>> from jepakit import RandomMask, take_tokens
        >>> from jepakit.diagnostics import target_retrieval
        >>> generator = torch.Generator().manual_seed(0)
        >>> features = torch.randn(8, 16, 32, generator=generator)
        >>> targets = RandomMask((4, 4))(8, generator=generator).targets
        >>> pred = take_tokens(features, targets)
        >>> found = target_retrieval(pred + 0.1 * torch.randn(pred.shape), features, targets)
        >>> float(found.accuracy), float(found.chance), found.nearest.flatten().tolist()
        (1.0, 0.125, [0, 1, 2, 3, 4, 5, 6, 7])

    Source:
        CPC (arXiv:1807.03748) reports the accuracy of finding the positive sample among negatives.
        Differences: the negatives are the same positions of other images, so that position cannot
        be found in place of content; similarity is a cosine around the mean of a position, not a
        learned product; nothing is trained for it.
    """
    _check(pred, features, targets, valid)
    batch_size, dim = len(features), features.shape[-1]
    k = as_int("k", k, minimum=1, maximum=batch_size)
    # Relative to the features' length; twice, for means that were computed in their dtype.
    rounding = 2 * max(torch.finfo(pred.dtype).eps, torch.finfo(features.dtype).eps, 1e-12)
    if valid is None:
        valid = everything_valid(features)
    blocks = targets.shape[:-1]
    pred, features = float64(pred), float64(features)
    targets, valid = targets.to(features.device), valid.to(features.device)

    # One row for each block, and one entry for each valid position of a block.
    in_block = targets.to_mask().flatten(0, -2)
    owner = torch.arange(batch_size, device=features.device)
    owner = owner.repeat_interleave(len(in_block) // batch_size)
    present = in_block.any(dim=1)
    is_candidate = (in_block.double() @ (~valid).double().T) == 0
    if not is_candidate.gather(1, owner.unsqueeze(1)).all():
        raise ValueError("valid: must be True at all targets of each image")
    row, entry = targets.valid.flatten(0, -2).nonzero(as_tuple=True)
    position = targets.idx.flatten(0, -2)[row, entry]
    vectors = pred.reshape(len(in_block), -1, dim)[row, entry]
    if not (vectors.isfinite().all() and features[valid].isfinite().all()):
        raise ValueError("pred and features: must be finite where they are valid")

    # Position by position: a table of all blocks' candidates would be [b * m, b, n, d].
    dots = features.new_zeros(len(in_block), batch_size)
    candidate_squares, pred_squares = torch.zeros_like(dots), features.new_zeros(len(in_block), 1)
    num_entries = position.bincount(minlength=len(valid.T)).tolist()
    by_position = torch.split(position.argsort(), num_entries)
    for p, entries in enumerate(by_position):
        if not len(entries):
            continue
        known = features[valid[:, p], p]
        mean, smallest = known.mean(dim=0), rounding * known.square().sum(dim=1).mean().sqrt()
        candidates = _centred(features[:, p].masked_fill(~valid[:, p, None], 0), mean, smallest)
        queries = _centred(vectors[entries], mean, smallest)
        dots.index_add_(0, row[entries], queries @ candidates.T)
        squares = candidates.square().sum(dim=1).expand(len(entries), -1)
        candidate_squares.index_add_(0, row[entries], squares)
        pred_squares.index_add_(0, row[entries], queries.square().sum(dim=1, keepdim=True))

    norms = (pred_squares * candidate_squares).sqrt()
    cosine = torch.where(norms > 0, dots / norms, 0).masked_fill(~is_candidate, -math.inf)
    best = cosine >= cosine.amax(dim=1, keepdim=True) - _TIE
    own_is_best = best.gather(1, owner.unsqueeze(1)).squeeze(1)
    hits = torch.where(present, own_is_best.double() / best.sum(dim=1), torch.nan)
    similarity, nearest = (part[:, :k] for part in cosine.sort(dim=1, descending=True, stable=True))
    nearest = nearest.masked_fill((similarity == -math.inf) | ~present.unsqueeze(1), -1)
    return TargetRetrieval(
        hits.nanmean(),
        (1 / is_candidate.sum(dim=1).double())[present].mean(),
        hits.view(blocks),
        nearest.view(*blocks, k),
    )


def _centred(
    vectors: Float[Tensor, "n d"], mean: Float[Tensor, " d"], smallest: Float[Tensor, ""]
) -> Float[Tensor, "n d"]:
    """Vectors minus the mean; zero where no more is left than rounding, of length `smallest`.

    Equal features would else have differences of 1e-17, and a cosine of these.
    """
    centred = vectors - mean
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return centred.masked_fill(length <= smallest, 0)


def _check(pred: Tensor, features: Tensor, targets: TokenSet, valid: Tensor | None) -> None:
    check_token_set("targets", targets, like="masks.targets")
    check_floating("pred", pred)
    check_floating("features", features)
    shape, num_positions = tuple(features.shape), targets.num_positions
    if features.dim() != 3 or shape[0] < 2 or shape[1] != num_positions:
        raise ValueError(
            f"features {shape}: must be of at least 2 images on the whole grid "
            f"{targets.grid_size}, so be [batch, {num_positions}, dim]"
        )
    if targets.idx.dim() < 2 or len(targets.idx) != shape[0]:
        raise ValueError(
            f"targets {tuple(targets.shape)}: must be [{shape[0]}, ..., n], of the images of "
            f"features {shape}"
        )
    if pred.shape != (*targets.shape, shape[2]):
        raise ValueError(
            f"pred {tuple(pred.shape)}: must hold one vector for each entry of targets, so be "
            f"{(*targets.shape, shape[2])}"
        )
    check_row_mask("features", features, valid)
    if not targets.valid.any():
        raise ValueError("targets: must have at least one valid position")
