"""`assert_causal_contract`: the laws of a predictor of the next step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepakit._checks import as_int, as_number
from jepakit.testing._cases import Case, perturbed_copy
from jepakit.testing._violation import Law, require_finite, require_nowhere, require_shape

__all__ = ["assert_causal_contract"]


def assert_causal_contract(
    predictor: Callable[..., Tensor],
    num_tokens: int,
    encoder_dim: int,
    *,
    action_dim: int = 0,
    state_dim: int = 0,
    num_steps: int = 4,
    batch_size: int = 3,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> None:
    r"""Raise unless a predictor of the next step is causal and its rollout equals its forward.

    - Law 4, exactly: other features, actions and states after step $t$ change no bit of the
      predictions up to step $t$, and get a gradient of 0 from them. All up to step $t$ get one that
      is not 0: the action of a step reaches that step's prediction.
    - One pass for all steps gives what a pass over the first steps alone gives.
    - Law 5: the predictions of a sequence are the same alone and in any batch. Law 6: a step that
      is not valid, at the end or between others, comes out as exact zeros, affects neither value
      nor gradient, and gets none.
    - If it has a `rollout`: for every candidate it gives what `forward` gives on the steps so far
      when each prediction is fed back, from one step or several, also for ragged ones. States of
      the future are left out.

    The test runs on a copy with perturbed parameters (normal noise, std 0.02).

    Args:
        predictor: Called `(features [b t n d], actions [b t a], states [b t s], valid [b t]) ->
            [b t n d]`, as a `CausalPredictor`; actions and states are None where their width is 0.
        num_tokens: Tokens of a step, n.
        encoder_dim: Width of the features, d.
        action_dim: Width of the actions.
        state_dim: Width of the states.
        num_steps: Number of steps; at least 3.
        batch_size: Number of sequences; at least 2.
        tolerance: Largest allowed difference, as a fraction of the largest output, where numbers
            may be rounded otherwise.
        seed: For the inputs and the perturbed parameters.

    Raises:
        AssertionError: Names the violated law, what was found, and where.

    Example:
        >>> from jepakit.nn import CausalPredictor
        >>> from jepakit.testing import assert_causal_contract
        >>> predictor = CausalPredictor(
        ...     (2, 2), 16, action_dim=3, predictor_embed_dim=24, depth=2, num_heads=2)
        >>> assert_causal_contract(predictor, 4, 16, action_dim=3)
    """
    num_tokens = as_int("num_tokens", num_tokens, minimum=1)
    encoder_dim = as_int("encoder_dim", encoder_dim, minimum=1)
    action_dim = as_int("action_dim", action_dim, minimum=0)
    state_dim = as_int("state_dim", state_dim, minimum=0)
    num_steps = as_int("num_steps", num_steps, minimum=3)
    batch_size = as_int("batch_size", batch_size, minimum=2)
    tolerance = as_number("tolerance", tolerance, positive=True)
    generator = torch.Generator().manual_seed(as_int("seed", seed))
    predictor = perturbed_copy(predictor, generator)
    parameters = list(predictor.parameters()) if isinstance(predictor, nn.Module) else []
    like = parameters[0].detach() if parameters else torch.empty(0)
    inputs = {
        "features": torch.randn(
            batch_size, num_steps, num_tokens, encoder_dim, generator=generator
        ).to(like)
    }
    for name, dim in (("actions", action_dim), ("states", state_dim)):
        if dim:
            inputs[name] = torch.randn(batch_size, num_steps, dim, generator=generator).to(like)
    case = _Case(predictor, generator, tolerance, inputs)

    _check_values(case)
    _check_gradients(case)
    _check_first_steps(case)
    _check_padding(case)
    if hasattr(predictor, "rollout"):
        _check_rollout(case, action_dim)


@dataclass(frozen=True)
class _Case(Case):
    inputs: dict[str, Tensor]

    @property
    def num_steps(self) -> int:
        return self.inputs["features"].shape[1]

    def lengths(self) -> list[int]:
        """Lengths of ragged sequences: all steps, 1, 2, ..."""
        return [(number - 1) % self.num_steps + 1 for number in range(len(self.inputs["features"]))]

    def predict(self, inputs: dict[str, Tensor], valid: Tensor | None = None) -> Tensor:
        """Predictions of the right shape."""
        features = inputs["features"]
        out = self.part(features, inputs.get("actions"), inputs.get("states"), valid)
        require_shape("the output must be [b t n d] =", out, features.shape)
        return out

    def first(self, count: int) -> dict[str, Tensor]:
        return {name: tensor[:, :count] for name, tensor in self.inputs.items()}


@torch.no_grad()
def _check_values(case: _Case) -> None:
    out, again = case.predict(case.inputs), case.predict(case.inputs)
    require_finite(Law.LEAK, "the prediction", out)
    case.require_close(Law.BATCH, "two calls in eval mode must agree", again, out)
    for step in range(case.num_steps - 1):
        for name, tensor in case.inputs.items():
            other = tensor.clone()
            other[:, step + 1 :] = 10 * case.noise(other[:, step + 1 :].shape, other)
            moved = case.predict(case.inputs | {name: other})
            flags = (moved != out)[:, : step + 1].flatten(2).any(dim=2)
            found = f"other {name} from step {step + 1} on changed the prediction"
            require_nowhere(Law.LEAK, flags, found, axes="sample step")


def _check_gradients(case: _Case) -> None:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in case.inputs.items()}
    out = case.predict(leaves)
    incoming = case.noise(out.shape, out)
    for step in range(case.num_steps):
        found = case.gradients(out[:, step], incoming[:, step], **leaves)
        for name, leaf in leaves.items():
            gradient = found.get(f"the {name}", torch.zeros_like(leaf))
            reached = (gradient != 0).any(dim=-1)
            if name != "features":  # an action or a state is one token
                reached = reached[..., None]
            what = f"of {name} gets a gradient from the prediction at step {step}"
            axes = "sample step token"
            late = torch.zeros_like(reached)
            late[:, step + 1 :] = True
            require_nowhere(Law.LEAK, reached & late, f"the future {what}", axes=axes)
            missing = f"the past of {name} gets no gradient from the prediction at step {step}"
            require_nowhere(Law.LEARNS, ~reached & ~late, missing, axes=axes)


@torch.no_grad()
def _check_first_steps(case: _Case) -> None:
    out = case.predict(case.inputs)
    largest = float(out.abs().max())
    for count in range(1, case.num_steps):
        alone = case.predict(case.first(count))
        what = f"one pass over {case.num_steps} steps must equal one over the first {count}"
        case.require_close(Law.LEAK, what, alone, out[:, :count], largest)


def _check_padding(case: _Case) -> None:
    steps, lengths = torch.arange(case.num_steps), torch.tensor(case.lengths())
    features = case.inputs["features"]
    valid = (steps < lengths[:, None]).to(features.device)
    valid[0, 1] = False  # of the longest sequence: padding that is not at the end
    out = case.predict(case.inputs, valid)
    flags = (out != 0).flatten(2).any(dim=2) & ~valid
    axes = "sample step"
    require_nowhere(Law.PADDING, flags, "the output of padding must be exactly zero", axes=axes)
    incoming = case.noise(out.shape, out)
    found = []
    for filler in (0.0, 1e4):  # large enough to show in any output that it reaches
        leaves = {}
        for name, tensor in case.inputs.items():
            gone = ~valid.view(*valid.shape, *[1] * (tensor.dim() - 2))
            leaves[name] = tensor.masked_fill(gone, filler).requires_grad_()
        out = case.predict(leaves, valid)
        found.append((out.detach(), case.gradients(out, incoming, **leaves)))
    (expected, clean), (out, poisoned) = found
    case.require_close(Law.PADDING, "values at padding changed the output", out, expected)
    case.require_same_gradients("values at padding changed the gradient of", poisoned, clean)
    for name in case.inputs:
        gradient = poisoned.get(f"the {name}", torch.zeros_like(valid))
        reached = (gradient != 0).flatten(2).any(dim=2) & ~valid
        require_nowhere(Law.PADDING, reached, f"padding of {name} gets a gradient", axes=axes)
    largest = float(expected.abs().max())
    with torch.no_grad():
        for sample, length in enumerate(case.lengths()):
            alone = {
                name: tensor[sample : sample + 1, :length] for name, tensor in case.inputs.items()
            }
            case.require_close(
                Law.BATCH,
                f"sample {sample} in a padded batch must equal the sample alone",
                expected[sample, :length],
                case.predict(alone, valid[sample : sample + 1, :length])[0],
                largest,
            )


@torch.no_grad()
def _check_rollout(case: _Case, action_dim: int, horizon: int = 3, candidates: int = 2) -> None:
    features = case.inputs["features"]
    shape = (len(features), candidates, horizon, action_dim)
    plans = case.noise(shape, features)
    steps = torch.arange(case.num_steps)
    ragged = (steps < torch.tensor(case.lengths())[:, None]).to(features.device)
    for name, past, valid in (
        ("of one step", 1, None),
        (f"of {case.num_steps} steps", case.num_steps, None),
        ("of ragged lengths", case.num_steps, ragged),
    ):
        known = case.first(past)
        options: dict[str, Any] = {}
        if action_dim and past > 1:
            options["past_actions"] = known["actions"][:, :-1]
        rollout: Any = case.part
        out = rollout.rollout(known["features"], plans, known.get("states"), valid, **options)
        expected_shape = (len(features), candidates, horizon, *features.shape[2:])
        require_shape("a rollout must be [b k s n d] =", out, expected_shape)
        lengths = case.lengths() if valid is not None else [past] * len(features)
        expected = torch.stack(
            [_fed_back(case, i, length, plans[i]) for i, length in enumerate(lengths)]
        )
        what = f"a rollout from a past {name} must equal forward with its predictions fed back"
        case.require_close(Law.ROLLOUT, what, out, expected)


def _fed_back(case: _Case, sample: int, length: int, plans: Tensor) -> Tensor:
    """Predictions `[k s n d]` of one sample from its first steps, by calls of `forward`."""
    candidates, horizon = plans.shape[:2]
    inputs = {
        name: tensor[sample : sample + 1, :length].repeat_interleave(candidates, dim=0)
        for name, tensor in case.inputs.items()
    }
    predictions = []
    for step in range(horizon):
        if "actions" in inputs:
            past = inputs["actions"][:, : length - 1]
            inputs["actions"] = torch.cat([past, plans[:, : step + 1]], dim=1)
        pred = case.predict(inputs)[:, -1:]
        predictions.append(pred)
        inputs["features"] = torch.cat([inputs["features"], pred], dim=1)
    return torch.cat(predictions, dim=1)
