"""`assert_predictor_contract`: the laws of a predictor of targets from a context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepakit._checks import as_grid_size, as_int, as_number
from jepakit.testing._probe import (
    emptied,
    perturbed_copy,
    ragged_token_sets,
    single_sample,
    trainable_parameters,
)
from jepakit.testing._violation import Law, fail, first_index, require_close, require_finite
from jepakit.tokens import TokenSet

__all__ = ["assert_predictor_contract"]

# Value of features and gradients at padding, large enough to show in any output that it reaches.
_FILLER = 1e4
# Positions that are compared as targets of a single token.
_NUM_SINGLE_TARGETS = 8


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
    zero-initialised layers do not hide the rest. The predictor itself is not changed.

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
        ValueError: If the grid has fewer than 3 positions, or `batch_size` is below 2.

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
    if torch.Size(grid).numel() < 3:
        raise ValueError(f"grid_size={grid}: must have at least 3 positions")
    generator = torch.Generator().manual_seed(as_int("seed", seed))
    predictor = perturbed_copy(predictor, generator)
    parameters = list(predictor.parameters()) if isinstance(predictor, nn.Module) else []
    like = parameters[0].detach() if parameters else torch.empty(0)
    case = _Case(
        predictor,
        ragged_token_sets(grid, (batch_size,), generator, like.device, extra_padding=2),
        ragged_token_sets(grid, (batch_size, num_targets), generator, like.device, extra_padding=3),
        encoder_dim,
        out_dim,
        like,
        generator,
        tolerance,
    )
    features = case.random_features(case.context)
    _check_output(case.predict(features, case.context, case.targets), case.targets)
    _check_batch_mates(case, features)
    _check_padding(case, features)
    _check_empty_sets(case)
    _check_positions(case)
    _check_single_targets(case)
    _check_learning(case, features)


@dataclass(frozen=True)
class _Case:
    predictor: Callable[..., Tensor]
    context: TokenSet
    targets: TokenSet
    dim: int
    out_dim: int
    like: Tensor
    generator: torch.Generator
    tolerance: float

    def random_features(self, tokens: TokenSet) -> Tensor:
        """Random features with zeros at padding, as an encoder returns them."""
        values = torch.randn(*tokens.shape, self.dim, generator=self.generator).to(self.like)
        return values.masked_fill(~tokens.valid.unsqueeze(-1), 0)

    def random_incoming_gradient(self) -> Tensor:
        shape = (*self.targets.shape, self.out_dim)
        return torch.randn(shape, generator=self.generator).to(self.like)

    def predict(self, features: Tensor, context: TokenSet, targets: TokenSet) -> Tensor:
        """Predictions of the right shape."""
        out: Any = self.predictor(features, context, targets)
        expected = (*targets.shape, self.out_dim)
        if not isinstance(out, Tensor) or tuple(out.shape) != expected:
            found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            fail(Law.INTERFACE, f"the output must be [b m n d] = {expected}, got {found}")
        return out


def _check_output(out: Tensor, targets: TokenSet) -> None:
    require_finite(Law.PADDING, "the prediction", out)
    wrong = (out != 0).any(dim=-1) & ~targets.valid
    if wrong.any():
        sample, target, entry = first_index(wrong)
        largest = out[sample, target, entry].abs().max().item()
        fail(
            Law.PADDING,
            f"the output of padding must be exactly zero, got values up to {largest:.3g}",
            where=f"sample {sample}, target {target}, entry {entry}",
        )


@torch.no_grad()
def _check_batch_mates(case: _Case, features: Tensor) -> None:
    together = case.predict(features, case.context, case.targets)
    require_close(
        Law.BATCH,
        "two calls in eval mode must agree",
        case.predict(features, case.context, case.targets),
        together,
        case.tolerance,
    )
    largest = float(together.abs().max())
    for sample in range(len(features)):
        context, targets = single_sample(case.context, sample), single_sample(case.targets, sample)
        alone = features[sample : sample + 1, : context.shape[1]]
        require_close(
            Law.BATCH,
            f"sample {sample} in a padded batch must equal the sample alone",
            together[sample, :, : targets.shape[-1]],
            case.predict(alone, context, targets)[0],
            case.tolerance,
            scale=largest,
        )


def _gradients(
    case: _Case, features: Tensor, *, filler: float, incoming: Tensor
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Output, and the gradients of features and parameters, with `filler` at all padding."""
    features = features.masked_fill(~case.context.valid.unsqueeze(-1), filler).requires_grad_()
    out = case.predict(features, case.context, case.targets)
    if not out.requires_grad:
        fail(Law.INTERFACE, "the output carries no gradient")
    inputs = {"the context": features, **trainable_parameters(case.predictor)}
    incoming = incoming.masked_fill(~case.targets.valid.unsqueeze(-1), filler)
    found = torch.autograd.grad(out, list(inputs.values()), incoming, allow_unused=True)
    return out.detach(), dict(zip(inputs, found, strict=True))


def _check_padding(case: _Case, features: Tensor) -> None:
    incoming = case.random_incoming_gradient()
    expected, clean = _gradients(case, features, filler=0.0, incoming=incoming)
    out, poisoned = _gradients(case, features, filler=_FILLER, incoming=incoming)
    what = "features at padded context changed the output"
    require_close(Law.PADDING, what, out, expected, case.tolerance)
    for name, gradient in poisoned.items():
        before = clean[name]
        if gradient is not None and before is not None:
            what = f"values at padding changed the gradient of {name}"
            require_close(Law.PADDING, what, gradient, before, case.tolerance)
    reached = poisoned["the context"]
    if reached is None:
        fail(Law.LEARNS, "the context gets no gradient: predictions do not depend on it")
    used, valid = (reached != 0).any(dim=-1), case.context.valid
    if (used & ~valid).any():
        sample, entry = first_index(used & ~valid)
        fail(
            Law.PADDING,
            "padding of the context gets a gradient",
            where=f"sample {sample}, entry {entry}",
        )
    if (~used & valid).any():
        sample, entry = first_index(~used & valid)
        fail(
            Law.LEARNS,
            "a token of the context gets no gradient",
            where=f"sample {sample}, entry {entry}",
        )


def _check_empty_sets(case: _Case) -> None:
    """Samples without context, without targets, and without both give no NaN."""
    first, last = slice(0, 1), slice(len(case.context) - 1, None)
    context, targets = emptied(case.context, first), emptied(case.targets, last)
    for some_context, some_targets in (
        (context, case.targets),
        (case.context, targets),
        (emptied(context, last), targets),
    ):
        features = case.random_features(some_context)
        out = case.predict(features, some_context, some_targets)
        _check_output(out, some_targets)
        parameters = trainable_parameters(case.predictor)
        total = out.square().sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                what = f"with a sample without context or targets, the gradient of {name}"
                require_finite(Law.PADDING, what, gradient)


@torch.no_grad()
def _check_positions(case: _Case) -> None:
    """Predictions depend on the position of the target and on those of the context."""
    everything = TokenSet.full(case.context.grid_size, (1, 1), device=case.like.device)
    idx, valid = everything.idx[0], everything.valid[0, :, 1:]
    first = TokenSet(idx[:, :-1], valid, everything.grid_size)
    moved = TokenSet(idx[:, 1:], valid, everything.grid_size)
    features = case.random_features(first)
    predictions = case.predict(features, first, everything)[0, 0]
    largest = float(predictions.abs().max())
    gap, one, other = _closest_pair(predictions)
    if gap <= case.tolerance * largest:
        fail(
            Law.POSITIONS,
            f"the predictions at positions {one} and {other} differ by at most {gap:.3g} (largest "
            f"value {largest:.3g})",
            hint="mask tokens need the position of their index",
        )
    gap = float((case.predict(features, moved, everything)[0, 0] - predictions).abs().max())
    if gap <= case.tolerance * largest:
        fail(
            Law.POSITIONS,
            f"the same context, moved by one position, changes the predictions by at most {gap:.3g}"
            f" (largest value {largest:.3g})",
            hint="context tokens need the position of their index",
        )


@torch.no_grad()
def _check_single_targets(case: _Case) -> None:
    """Targets of one token differ in nothing but their position: each is the first of its set."""
    grid_size, device = case.context.grid_size, case.like.device
    everything = TokenSet.full(grid_size, (1,), device=device)
    size = everything.num_positions
    places = torch.linspace(0, size - 1, min(size, _NUM_SINGLE_TARGETS)).long().to(device)
    few = slice(0, min(size - 1, _NUM_SINGLE_TARGETS // 2))
    context = TokenSet(everything.idx[:, few], everything.valid[:, few], grid_size)
    features = case.random_features(context)
    targets = [
        TokenSet(place.view(1, 1, 1), everything.valid[:, None, :1], grid_size) for place in places
    ]
    predictions = torch.cat([case.predict(features, context, target)[0, 0] for target in targets])
    largest = float(predictions.abs().max())
    gap, one, other = _closest_pair(predictions)
    if gap <= case.tolerance * largest:
        fail(
            Law.POSITIONS,
            f"the predictions of two targets of one token, at positions {int(places[one])} and "
            f"{int(places[other])}, differ by at most {gap:.3g} (largest value {largest:.3g})",
            hint="mask tokens need the position of their index, not of their entry in the target",
        )


def _closest_pair(predictions: Tensor) -> tuple[float, int, int]:
    """The two most similar rows of `[n, d]`: their largest difference, and their indices."""
    gaps = torch.stack([(predictions - row).abs().amax(dim=-1) for row in predictions])
    gaps.fill_diagonal_(torch.inf)
    one, other = first_index(gaps == gaps.min())
    return float(gaps.min()), one, other


def _check_learning(case: _Case, features: Tensor) -> None:
    incoming = case.random_incoming_gradient()
    _, gradients = _gradients(case, features, filler=0.0, incoming=incoming)
    for name, gradient in gradients.items():
        if gradient is None:
            fail(Law.LEARNS, f"{name} gets no gradient", hint="DDP stops at an unused parameter")
        require_finite(Law.LEARNS, f"the gradient of {name}", gradient)
        if not gradient.any():
            fail(Law.LEARNS, f"the gradient of {name} is zero everywhere")
