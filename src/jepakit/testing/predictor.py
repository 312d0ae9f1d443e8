"""`assert_predictor_contract`: the laws of a predictor of targets from a context."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepakit._checks import as_grid_size, as_int, as_number
from jepakit.testing._cases import (
    Case,
    emptied,
    perturbed_copy,
    ragged_token_sets,
    require_padding_is_zero,
    single_sample,
)
from jepakit.testing._violation import (
    Law,
    fail,
    first_index,
    require,
    require_finite,
    require_nowhere,
    require_shape,
)
from jepakit.tokens import TokenSet

__all__ = ["assert_predictor_contract"]


def assert_predictor_contract(
    predictor: Callable[..., Tensor],
    grid_size: Sequence[int],
    encoder_dim: int,
    *,
    out_dim: int | None = None,
    batch_size: int = 4,
    num_targets: int = 2,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> None:
    r"""Raise unless a predictor follows the laws of ragged sets in eval mode.

    - Law 5: the prediction of a sample is the same alone, in any batch and with any padding of
      context or targets.
    - Law 6: padded targets come out as exact zeros; features at padded context affect neither value
      nor gradient, and get none.
    - Positions: predictions at different positions differ, also for targets of a single token;
      context that is moved to other positions changes them.
    - Learning: every context token gets a gradient, and every trainable parameter gets a finite one
      that is not zero everywhere.

    The test runs on a copy with perturbed parameters (normal noise, std 0.02), so that
    zero-initialised layers do not hide the rest.

    Args:
        predictor: Called `(features, context, targets) -> [b m n d]`.
        grid_size: Its grid in patches, of at least 3 positions.
        encoder_dim: Width of the context features.
        out_dim: Width of the predictions; None for `encoder_dim`.
        batch_size: Number of samples; at least 2.
        num_targets: Target sets of each sample.
        tolerance: Largest allowed difference, as a fraction of the largest output.
        seed: For the sets, the features and the perturbed parameters.

    Raises:
        AssertionError: Names the violated law, what was found, and where.

    Example:
        >>> from jepakit import MaskedPredictor
        >>> from jepakit.testing import assert_predictor_contract
        >>> predictor = MaskedPredictor((4, 4), 32, predictor_embed_dim=48, depth=2, num_heads=4)
        >>> assert_predictor_contract(predictor, (4, 4), 32)
    """
    grid = as_grid_size("grid_size", grid_size)
    encoder_dim = as_int("encoder_dim", encoder_dim, minimum=1)
    out_dim = encoder_dim if out_dim is None else as_int("out_dim", out_dim, minimum=1)
    batch_size = as_int("batch_size", batch_size, minimum=2)
    num_targets = as_int("num_targets", num_targets, minimum=1)
    tolerance = as_number("tolerance", tolerance, positive=True)
    if math.prod(grid) < 3:
        raise ValueError(f"grid_size={grid}: must have at least 3 positions")
    generator = torch.Generator().manual_seed(as_int("seed", seed))
    predictor = perturbed_copy(predictor, generator)
    parameters = list(predictor.parameters()) if isinstance(predictor, nn.Module) else []
    like = parameters[0].detach() if parameters else torch.empty(0)
    context = ragged_token_sets(grid, (batch_size,), generator, like.device, extra_padding=2)
    targets = ragged_token_sets(
        grid, (batch_size, num_targets), generator, like.device, extra_padding=3
    )
    case = _Case(predictor, generator, tolerance, context, targets, encoder_dim, out_dim, like)
    features = case.random_features(context)

    _check_batch_mates(case, features)
    _check_padding(case, features)
    _check_empty_sets(case)
    _check_positions(case)
    _check_single_targets(case)
    _check_learning(case, features)


@dataclass(frozen=True)
class _Case(Case):
    context: TokenSet
    targets: TokenSet
    dim: int
    out_dim: int
    like: Tensor

    def random_features(self, tokens: TokenSet) -> Tensor:
        """Random features with zeros at padding, as an encoder returns them."""
        values = self.noise((*tokens.shape, self.dim), self.like)
        return values.masked_fill(~tokens.valid.unsqueeze(-1), 0)

    def random_incoming_gradient(self, targets: TokenSet) -> Tensor:
        return self.noise((*targets.shape, self.out_dim), self.like)

    def predict(self, features: Tensor, context: TokenSet, targets: TokenSet) -> Tensor:
        """Predictions of the right shape."""
        out = self.part(features, context, targets)
        require_shape("the output must be [b m n d] =", out, (*targets.shape, self.out_dim))
        return out

    def predict_and_differentiate(
        self,
        features: Tensor,
        context: TokenSet,
        targets: TokenSet,
        incoming: Tensor,
        *,
        filler: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Predictions, and gradients by name, with `filler` at all padding."""
        features = features.masked_fill(~context.valid.unsqueeze(-1), filler).requires_grad_()
        out = self.predict(features, context, targets)
        incoming = incoming.masked_fill(~targets.valid.unsqueeze(-1), filler)
        return out.detach(), self.gradients(out, incoming, context=features)


@torch.no_grad()
def _check_batch_mates(case: _Case, features: Tensor) -> None:
    together, again = (case.predict(features, case.context, case.targets) for _ in range(2))
    require_finite(Law.PADDING, "the prediction", together)
    require_padding_is_zero(together, case.targets)
    case.require_close(Law.BATCH, "two calls in eval mode must agree", again, together)
    largest = float(together.abs().max())
    for sample in range(len(features)):
        context, targets = single_sample(case.context, sample), single_sample(case.targets, sample)
        alone = features[sample : sample + 1, : context.shape[1]]
        case.require_close(
            Law.BATCH,
            f"sample {sample} in a padded batch must equal the sample alone",
            together[sample, :, : targets.shape[-1]],
            case.predict(alone, context, targets)[0],
            largest,
        )


def _check_padding(case: _Case, features: Tensor) -> None:
    incoming = case.random_incoming_gradient(case.targets)
    # The filler is large enough to show in any output that it reaches.
    sets = case.context, case.targets
    expected, clean = case.predict_and_differentiate(features, *sets, incoming)
    out, poisoned = case.predict_and_differentiate(features, *sets, incoming, filler=1e4)
    what = "features at padded context changed the output"
    case.require_close(Law.PADDING, what, out, expected)
    what = "values at padding changed the gradient of"
    case.require_same_gradients(what, poisoned, clean)
    if "the context" not in poisoned:
        fail(Law.LEARNS, "the context gets no gradient: predictions do not depend on it")
    used, valid = (poisoned["the context"] != 0).any(dim=-1), case.context.valid
    axes = "sample entry"
    found = "padding of the context gets a gradient"
    require_nowhere(Law.PADDING, used & ~valid, found, axes=axes)
    found = "a token of the context gets no gradient"
    require_nowhere(Law.LEARNS, ~used & valid, found, axes=axes)


def _check_empty_sets(case: _Case) -> None:
    """Check that samples without context, without targets, and without both give no NaN."""
    first, last = slice(0, 1), slice(len(case.context) - 1, None)
    some_context, some_targets = emptied(case.context, first), emptied(case.targets, last)
    for context, targets in (
        (some_context, case.targets),
        (case.context, some_targets),
        (emptied(some_context, last), some_targets),
    ):
        incoming = case.random_incoming_gradient(targets)
        features = case.random_features(context)
        out, gradients = case.predict_and_differentiate(features, context, targets, incoming)
        require_finite(Law.PADDING, "the prediction", out)
        require_padding_is_zero(out, targets)
        for name, gradient in gradients.items():
            what = f"with a sample without context or targets, the gradient of {name}"
            require_finite(Law.PADDING, what, gradient)


@torch.no_grad()
def _check_positions(case: _Case) -> None:
    """Check that predictions depend on the positions of the target and of the context."""
    everything = TokenSet.full(case.context.grid_size, (1, 1), device=case.like.device)
    idx, valid = everything.idx[0], everything.valid[0, :, 1:]
    first = TokenSet(idx[:, :-1], valid, everything.grid_size)
    moved = TokenSet(idx[:, 1:], valid, everything.grid_size)
    features = case.random_features(first)
    predictions = case.predict(features, first, everything)[0, 0]
    largest = float(predictions.abs().max())
    gap, one, other = _closest_pair(predictions)
    what = f"the predictions at positions {one} and {other}"
    case.require_positions(what, gap, largest, "mask tokens need the position of their index")
    gap = float((case.predict(features, moved, everything)[0, 0] - predictions).abs().max())
    what = "predictions from a context, and from the same context moved by one position,"
    case.require_positions(what, gap, largest, "context tokens need the position of their index")


@torch.no_grad()
def _check_single_targets(case: _Case) -> None:
    """Check that targets of one token, each the first of its set, differ by their position."""
    grid_size = case.context.grid_size
    everything = TokenSet.full(grid_size, (1,), device=case.like.device)
    size = everything.num_positions
    places = torch.linspace(0, size - 1, min(size, 8)).long().to(case.like.device)
    few = slice(0, min(size - 1, 4))
    context = TokenSet(everything.idx[:, few], everything.valid[:, few], grid_size)
    features = case.random_features(context)
    targets = [
        TokenSet(place.view(1, 1, 1), everything.valid[:, None, :1], grid_size) for place in places
    ]
    predictions = torch.cat([case.predict(features, context, target)[0, 0] for target in targets])
    gap, one, other = _closest_pair(predictions)
    case.require_positions(
        f"the predictions of two targets of one token, at positions {int(places[one])} and "
        f"{int(places[other])},",
        gap,
        float(predictions.abs().max()),
        "mask tokens need the position of their index, not of their entry in the target",
    )


def _closest_pair(predictions: Tensor) -> tuple[float, int, int]:
    """Return the two most similar rows of `[n, d]`: their largest difference, and their indices."""
    gaps = torch.stack([(predictions - row).abs().amax(dim=-1) for row in predictions])
    gaps.fill_diagonal_(torch.inf)
    one, other = first_index(gaps == gaps.min())
    return float(gaps.min()), one, other


def _check_learning(case: _Case, features: Tensor) -> None:
    incoming = case.random_incoming_gradient(case.targets)
    _, gradients = case.predict_and_differentiate(features, case.context, case.targets, incoming)
    for name in case.trainable_parameters():
        hint = "DDP stops at an unused parameter"
        require(Law.LEARNS, name in gradients, f"{name} gets no gradient", hint=hint)
        require_finite(Law.LEARNS, f"the gradient of {name}", gradients[name])
        found = f"the gradient of {name} is zero everywhere"
        require(Law.LEARNS, gradients[name].any(), found)
