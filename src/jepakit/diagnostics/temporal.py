"""Diagnostics of features over time: straight paths, and actions that can be read off them.

All compute in float64 and without a gradient.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import (
    as_fraction,
    as_number,
    check_floating,
    check_generator,
    check_row_mask,
)
from jepakit.diagnostics._valid_rows import valid_rows

__all__ = ["inverse_dynamics_r2", "straightness"]


def straightness(
    features: Float[Tensor, "b t d"], valid: Bool[Tensor, "b t"] | None = None
) -> Float[Tensor, ""]:
    r"""Mean cosine between successive steps of the features: 1 on a straight path.

    $$S = \frac{1}{n} \sum_t \frac{v_t \cdot v_{t+1}}{\|v_t\| \|v_{t+1}\|}, \qquad
        v_t = z_{t+1} - z_t$$

    over the $n$ triples of steps that are all valid. Independent features give -0.5, a path that
    turns by a right angle at every step 0, one that goes back and forth -1. A step without any
    movement has cosine 0. Straight paths are easy to predict; constant features are too, so read it
    beside a rank.

    Args:
        features: Features of the steps, one vector each; flatten or pool the tokens of a step.
        valid: True where a step is present. All if None.

    Raises:
        ValueError: If there is no triple of valid steps, or features in one are not finite.

    Example:
        >>> import torch
        >>> line = torch.arange(5.0).view(1, 5, 1) * torch.tensor([1.0, 2.0])
        >>> round(float(straightness(line)), 4)
        1.0

    Source:
        Hénaff et al. (Nature Neuroscience, 2019), who report the angle, and LeWorldModel
        (arXiv:2603.19312), which reports this cosine.
    """
    present = _check_sequences(features, valid, minimum=3)
    triples = present[:, :-2] & present[:, 1:-1] & present[:, 2:]
    windows = torch.cat([features[:, :-2], features[:, 1:-1], features[:, 2:]], dim=-1)
    first, second, third = valid_rows("features", windows, triples, minimum=1).chunk(3, dim=-1)
    return F.cosine_similarity(second - first, third - second, dim=-1, eps=1e-12).mean()


def inverse_dynamics_r2(
    features: Float[Tensor, "b t d"],
    actions: Float[Tensor, "b t_minus_1 a"],
    valid: Bool[Tensor, "b t"] | None = None,
    *,
    held_out: float = 0.25,
    ridge: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    r"""$R^2$ of actions predicted linearly from the features before and after, on held-out rows.

    A ridge regression from $[z_t, z_{t+1}]$ to $a_t$ is fitted on some of the sequences. On the
    others, averaged over the dimensions $j$ of the actions,

    $$R^2_j = 1 - \frac{\sum (a_j - \hat a_j)^2}{\sum (a_j - \bar a_j)^2}$$

    with the mean $\bar a$ of the sequences that were fitted. 1: the features hold what the actions
    do. 0: no better than the mean. Below 0: overfitted, as with too few sequences.

    Args:
        features: Features of the steps, one vector each.
        actions: Action of each step but the last.
        valid: True where a step is present; a pair of steps needs both. All if None.
        held_out: Fraction of the sequences to score, at least one. Whole sequences, since
            neighbouring pairs of one are alike.
        ridge: Penalty in units of the variance of a standardised feature; above 0.
        generator: CPU generator of the split. If None, the last sequences are held out.

    Raises:
        ValueError: If shapes do not fit, values are not finite, one side of the split has no pair,
            or an action does not vary among the held-out pairs.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> actions = torch.randn(64, 9, 2)
        >>> path = torch.cat([torch.zeros(64, 1, 2), actions.cumsum(dim=1)], dim=1)
        >>> round(float(inverse_dynamics_r2(path, actions)), 3)
        1.0
        >>> bool(inverse_dynamics_r2(torch.randn(64, 10, 2), actions) < 0.05)
        True
    """
    present = _check_sequences(features, valid, minimum=2)
    check_floating("actions", actions)
    batch, steps = features.shape[:2]
    if actions.dim() != 3 or actions.shape[:2] != (batch, steps - 1) or not actions.shape[2]:
        rule = f"must be [{batch}, {steps - 1}, a], an action for each step but the last"
        raise ValueError(f"actions {tuple(actions.shape)}: {rule}")
    held_out = as_fraction("held_out", held_out, open_low=True, open_high=True)
    ridge = as_number("ridge", ridge, positive=True)
    check_generator(generator)

    count = max(1, round(held_out * batch))
    order = torch.arange(batch) if generator is None else torch.randperm(batch, generator=generator)
    is_scored = torch.zeros(batch, dtype=torch.bool)
    is_scored[order[batch - count :]] = True
    is_scored = is_scored.to(features.device)[:, None]
    pairs = present[:, :-1] & present[:, 1:]
    rows = torch.cat([features[:, :-1], features[:, 1:], actions.to(features.device)], dim=-1)
    sides = []
    for name, chosen in (("fitted", pairs & ~is_scored), ("held-out", pairs & is_scored)):
        if not chosen.any():
            raise ValueError(f"features {tuple(features.shape)}: no valid pair in {name} sequences")
        side = valid_rows("features and actions", rows, chosen, minimum=1)
        sides.append(torch.split(side, [2 * features.shape[-1], actions.shape[-1]], dim=-1))
    (x, y), (x_scored, y_scored) = sides
    if (y_scored == y_scored[:1]).all(dim=0).any():
        raise ValueError("actions: every dimension must vary among the held-out pairs")
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    x, x_scored = (x - mean) / std, (x_scored - mean) / std
    centre = y.mean(dim=0)
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weights: Tensor = torch.linalg.solve(
        x.T @ x / len(x) + ridge * eye, x.T @ (y - centre) / len(x)
    )
    errors: Tensor = (y_scored - centre - x_scored @ weights).square().sum(dim=0)
    return (1 - errors / (y_scored - centre).square().sum(dim=0)).mean()


def _check_sequences(features: Tensor, valid: Tensor | None, *, minimum: int) -> Tensor:
    """Validity of the steps; raise unless features are `[b t d]` with `minimum` steps."""
    check_floating("features", features)
    shape = tuple(features.shape)
    if len(shape) != 3 or shape[1] < minimum or 0 in shape:
        raise ValueError(f"features {shape}: must be [b, t, d] with t at least {minimum}")
    check_row_mask("features", features, valid)
    if valid is None:
        return torch.ones(shape[:2], dtype=torch.bool, device=features.device)
    return valid
