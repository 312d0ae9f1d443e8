"""Loss of a latent world model: teacher forcing, and a rollout of a few steps."""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepakit._checks import as_bool, as_int, check_floating, check_row_mask, check_same_shape
from jepakit._wrapped import unwrap
from jepakit.losses.masked import masked_l1

__all__ = ["next_step_loss"]


def next_step_loss(
    predictor: nn.Module,
    features: Float[Tensor, "b t n d"],
    actions: Float[Tensor, "b t_minus_1 a"] | None = None,
    states: Float[Tensor, "b t s"] | None = None,
    valid: Bool[Tensor, "b t"] | None = None,
    *,
    targets: Float[Tensor, "b t n d"] | None = None,
    rollout_steps: int = 2,
    use_future_states: bool = False,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] = masked_l1,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    r"""Loss of the next step from the true past, plus that of a rollout from the first step.

    $$L = \ell\big(f(z_{0..t}),\ y_{t+1}\big)_{t = 0 .. T - 2}
        + \ell\big(\hat z_{1..r},\ y_{1..r}\big), \qquad
        \hat z_{i+1} = f(z_0, \hat z_1, \dots, \hat z_i)$$

    each one mean over its own valid elements: teacher forcing, and $r$ predictions that are fed
    back. A pair counts if both of its steps are valid, a rollout if its first step is. Gradients
    flow through the predictions that are fed back.

    Nothing keeps the features from collapsing. Give the features of a teacher or of a frozen
    encoder, or add a regulariser such as `sigreg` on the features of each step.

    Args:
        predictor: A `CausalPredictor`, or a module that is called as one and has its `rollout`; it
            may be wrapped by DDP or compiled.
        features: Features of all steps, which the predictions start from.
        actions: Action of each step but the last, `[b, t - 1, a]`; None without actions.
        states: State of each step; None without states.
        valid: True where a step is present. All if None.
        targets: Features to predict; `features` if None. A gradient flows to the targets too unless
            they are detached, as a teacher's are.
        rollout_steps: $r$, at most t - 1. With 0 there is no rollout.
        use_future_states: Give the rollout the states of the steps that it predicts, instead of
            leaving them out.
        loss: Loss of features `[b s n d]`, `loss(pred, target, valid)`, a single number.

    Raises:
        ValueError: If there are fewer than 2 steps, or too few for `rollout_steps`.

    Returns:
        The total, and its parts, detached, as `"teacher_forced"` and `"rollout"`.

    Example:
        >>> import torch
        >>> from jepakit.nn import CausalPredictor
        >>> predictor = CausalPredictor(
        ...     (1,), 32, action_dim=2, predictor_embed_dim=64, depth=1, num_heads=2)
        >>> features, actions = torch.randn(8, 6, 1, 32), torch.randn(8, 5, 2)
        >>> total, parts = next_step_loss(predictor, features, actions)
        >>> total.backward()
        >>> list(parts)
        ['teacher_forced', 'rollout']

    Source:
        V-JEPA 2-AC (arXiv:2506.09985): L1, two steps, from the first step. It gives the true
        states (`use_future_states=True`) and layer-normalises predictions (`normalize=True` of the
        predictor). Differences: ragged lengths, and means over valid elements.
    """
    check_floating("features", features)
    shape = tuple(features.shape)
    if len(shape) != 4 or shape[1] < 2:
        raise ValueError(f"features {shape}: must be [b, t, n, d] with t at least 2")
    goals = features if targets is None else targets
    check_same_shape("targets", goals, "features", features)
    check_row_mask("features", features[:, :, 0], valid)
    if valid is None:
        valid = torch.ones(shape[:2], dtype=torch.bool, device=features.device)
    present = valid
    as_bool("use_future_states", use_future_states)
    if use_future_states and states is None:
        raise ValueError("use_future_states=True: must come with states")
    steps = as_int("rollout_steps", rollout_steps, minimum=0)
    if steps >= shape[1]:
        raise ValueError(f"rollout_steps={steps}: must be at most t - 1 = {shape[1] - 1}")

    def compare(pred: Tensor, start: Tensor) -> Tensor:
        """Loss of the predictions of the steps 1, 2, ..., where `start` and the step are valid."""
        counted = start & present[:, 1 : 1 + pred.shape[1]]
        goal = goals[:, 1 : 1 + pred.shape[1]]
        return loss(pred, goal, counted[..., None].expand(pred.shape[:-1]))

    past_states = None if states is None else states[:, :-1]
    pred = predictor(features[:, :-1], actions, past_states, valid[:, :-1])
    parts = {"teacher_forced": compare(pred, valid[:, :-1])}
    if steps > 0:
        if actions is None:  # one candidate of actions of width 0
            plan = features.new_zeros(shape[0], 1, steps, 0)
        else:
            plan = actions[:, None, :steps]
        options: dict[str, Any] = {}
        if use_future_states and states is not None and steps > 1:
            options["future_states"] = states[:, None, 1:steps]
        rollout = cast(Any, unwrap(predictor)).rollout
        first_state = None if states is None else states[:, :1]
        rolled = rollout(features[:, :1], plan, first_state, valid[:, :1], **options)
        parts["rollout"] = compare(rolled[:, 0], valid[:, :1])
    total = torch.stack(list(parts.values())).sum()
    return total, {name: value.detach() for name, value in parts.items()}
