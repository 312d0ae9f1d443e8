"""`assert_predictor_contract`: what a predictor of targets from a context keeps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepakit._checks import check_grid_size, check_int, check_number
from jepakit.testing.breach import Law, fail, first_of, require_close
from jepakit.testing.probe import alone, moved_copy, ragged_sets, trainable, without
from jepakit.tokens import TokenSet

__all__ = ["assert_predictor_contract"]

_FILLER = 1e4
# Targets of one token that are compared.
_LONE = 8


def assert_predictor_contract(
    predictor: Callable[..., Tensor],
    grid_size: tuple[int, ...],
    encoder_dim: int,
    *,
    out_dim: int | None = None,
    batch_size: int = 4,
    num_targets: int = 2,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> None:
    r"""Raise unless a predictor keeps the laws of ragged sets, in eval mode.

    Law 5: a sample is predicted the same alone, in any batch and with any padding of context or
    targets. Law 6: padded targets come out as exact zeros; what stands at padded context enters
    neither value nor gradient, and gets none. Beyond them: predictions at different positions
    differ, also as targets of a single token; context moved to other positions changes them; every
    context token gets a gradient, every trainable parameter a finite one that is not zero
    everywhere.

    It probes a copy whose parameters are moved a little (normal, 0.02), so that zero-initialised
    layers do not hide the rest. The predictor itself is left as it is.

    Args:
        predictor: Called `(context, context_tokens, target_tokens) -> [b m n d]`.
        grid_size: Its grid in patches, of at least 3 positions.
        encoder_dim: Width of the context's features.
        out_dim: Width of the predictions; None for `encoder_dim`.
        batch_size: Samples in a batch; at least 2.
        num_targets: Target sets of each sample.
        tolerance: Largest difference as a fraction of the output's largest value.
        seed: Of the sets, the features and the moved parameters.

    Raises:
        AssertionError: Names the law that is broken, what was seen, and where.
        ValueError: If the grid has fewer than 3 positions, or `batch_size` is below 2.

    Example:
        >>> from jepakit import MaskedPredictor
        >>> from jepakit.testing import assert_predictor_contract
        >>> predictor = MaskedPredictor((4, 4), 32, predictor_embed_dim=48, depth=2, num_heads=4)
        >>> assert_predictor_contract(predictor, (4, 4), 32)

    Source:
        jepakit's own.
    """
    check_grid_size("grid_size", grid_size)
    check_int("encoder_dim", encoder_dim, minimum=1)
    out_dim = encoder_dim if out_dim is None else out_dim
    check_int("out_dim", out_dim, minimum=1)
    check_int("batch_size", batch_size, minimum=2)
    check_int("num_targets", num_targets, minimum=1)
    check_number("tolerance", tolerance, positive=True)
    if torch.Size(grid_size).numel() < 3:
        raise ValueError(f"grid_size={grid_size}: must have at least 3 positions")
    generator = torch.Generator().manual_seed(seed)
    predictor = moved_copy(predictor, generator)
    parameters = list(predictor.parameters()) if isinstance(predictor, nn.Module) else []
    like = parameters[0].detach() if parameters else torch.empty(0)
    case = _Case(
        predictor,
        ragged_sets(grid_size, (batch_size,), generator, like.device, extra=2),
        ragged_sets(grid_size, (batch_size, num_targets), generator, like.device, extra=3),
        encoder_dim,
        out_dim,
        like,
        generator,
        tolerance,
    )
    context = case.features(case.context)
    _check_output(case, case.call(context, case.context, case.targets), case.targets)
    _check_batch(case, context)
    _check_padding(case, context)
    _check_nothing(case, context)
    _check_positions(case, grid_size)
    _check_lone_targets(case, grid_size)
    _check_learns(case, context)


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

    def features(self, tokens: TokenSet) -> Tensor:
        """Random features, zeros at padding, as an encoder gives them."""
        values = torch.randn(*tokens.shape, self.dim, generator=self.generator).to(self.like)
        return values.masked_fill(~tokens.valid.unsqueeze(-1), 0)

    def call(self, context: Tensor, here: TokenSet, asked: TokenSet) -> Tensor:
        """The predictions, whose shape is looked at."""
        out: Any = self.predictor(context, here, asked)
        expected = (*asked.shape, self.out_dim)
        if not isinstance(out, Tensor) or tuple(out.shape) != expected:
            seen = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            fail(Law.INTERFACE, f"the output must be [b m n d] = {expected}, got {seen}")
        return out


def _check_output(case: _Case, out: Tensor, asked: TokenSet) -> None:
    if not torch.isfinite(out).all():
        where = first_of(~torch.isfinite(out))
        fail(Law.PADDING, f"the prediction is {out[where].item()} at {where}")
    wrong = (out != 0).any(dim=-1) & ~asked.valid
    if wrong.any():
        where = first_of(wrong)
        fail(
            Law.PADDING,
            f"(sample, target, slot) {where} is padding and must come out as exact zeros, got "
            f"values up to {out[where].abs().max().item():.3g}",
        )


@torch.no_grad()
def _check_batch(case: _Case, context: Tensor) -> None:
    together = case.call(context, case.context, case.targets)
    require_close(
        Law.BATCH,
        "two calls in eval mode, which must agree",
        case.call(context, case.context, case.targets),
        together,
        case.tolerance,
    )
    largest = float(together.abs().max())
    for sample in range(len(context)):
        here, asked = alone(case.context, sample), alone(case.targets, sample)
        require_close(
            Law.BATCH,
            f"sample {sample} in a padded batch against alone",
            together[sample, :, : asked.shape[-1]],
            case.call(context[sample : sample + 1, : here.shape[1]], here, asked)[0],
            case.tolerance,
            scale=largest,
        )


def _gradients(
    case: _Case, context: Tensor, *, filler: float, into: Tensor
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Output, and the gradients of context and parameters, with `filler` wherever padding is."""
    context = context.masked_fill(~case.context.valid.unsqueeze(-1), filler).requires_grad_()
    out = case.call(context, case.context, case.targets)
    if not out.requires_grad:
        fail(Law.INTERFACE, "the output carries no gradient")
    wanted = {"the context": context, **trainable(case.predictor)}
    into = into.masked_fill(~case.targets.valid.unsqueeze(-1), filler)
    found = torch.autograd.grad(out, list(wanted.values()), into, allow_unused=True)
    return out.detach(), dict(zip(wanted, found, strict=True))


def _check_padding(case: _Case, context: Tensor) -> None:
    shape = (*case.targets.shape, case.out_dim)
    into = torch.randn(shape, generator=case.generator).to(case.like)
    expected, clean = _gradients(case, context, filler=0.0, into=into)
    out, dirty = _gradients(case, context, filler=_FILLER, into=into)
    require_close(
        Law.PADDING, "features at padded context changed it", out, expected, case.tolerance
    )
    for name, gradient in dirty.items():
        before = clean[name]
        if gradient is not None and before is not None:
            what = f"what stands at padding changed the gradient of {name}"
            require_close(Law.PADDING, what, gradient, before, case.tolerance)
    reached = dirty["the context"]
    if reached is None:
        fail(Law.LEARNS, "the context gets no gradient: predictions do not depend on it")
    used, valid = (reached != 0).any(dim=-1), case.context.valid
    if (used & ~valid).any():
        sample, slot = first_of(used & ~valid)
        fail(Law.PADDING, f"padding of sample {sample}'s context, slot {slot}, gets a gradient")
    if (~used & valid).any():
        sample, slot = first_of(~used & valid)
        fail(Law.LEARNS, f"slot {slot} of the context of sample {sample} gets no gradient")


def _check_nothing(case: _Case, context: Tensor) -> None:
    """Padding only, in one sample's context, in its targets, in both."""
    first, last = slice(0, 1), slice(len(context) - 1, None)
    unseen, unasked = without(case.context, first), without(case.targets, last)
    for here, asked in (
        (unseen, case.targets),
        (case.context, unasked),
        (without(unseen, last), unasked),
    ):
        out = case.call(case.features(here), here, asked)
        _check_output(case, out, asked)
        parameters = trainable(case.predictor)
        total = out.square().sum()
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None and not torch.isfinite(gradient).all():
                fail(Law.PADDING, f"with nothing to see or predict, the gradient of {name} is NaN")


@torch.no_grad()
def _check_positions(case: _Case, grid_size: tuple[int, ...]) -> None:
    device = case.like.device
    everything = TokenSet.full(grid_size, (1, 1), device=device)
    size = everything.num_positions
    first = TokenSet(everything.idx[0, :, : size - 1], everything.valid[0, :, 1:], grid_size)
    other = TokenSet(everything.idx[0, :, 1:], everything.valid[0, :, 1:], grid_size)
    context = case.features(first)
    predictions = case.call(context, first, everything)[0, 0]
    largest = float(predictions.abs().max())
    gaps = torch.stack([(predictions - one).abs().amax(dim=-1) for one in predictions])
    gaps.fill_diagonal_(torch.inf)
    if float(gaps.min()) <= case.tolerance * largest:
        one, two = first_of(gaps == gaps.min())
        fail(
            Law.POSITIONS,
            f"the predictions at positions {one} and {two} differ by {float(gaps.min()):.3g} at "
            f"most (largest value {largest:.3g}); mask tokens need their position",
        )
    moved = case.call(context, other, everything)[0, 0]
    gap = float((moved - predictions).abs().max())
    if gap <= case.tolerance * largest:
        fail(
            Law.POSITIONS,
            f"the same context one position further on changes the predictions by {gap:.3g} at "
            f"most (largest value {largest:.3g}); context tokens need their position",
        )


@torch.no_grad()
def _check_lone_targets(case: _Case, grid_size: tuple[int, ...]) -> None:
    """Targets of one token: all are the first of their block, and only the position differs."""
    size = torch.Size(grid_size).numel()
    places = torch.linspace(0, size - 1, min(size, _LONE)).long().to(case.like.device)
    everything = TokenSet.full(grid_size, (1,), device=case.like.device)
    few = slice(0, min(size - 1, _LONE // 2))
    here = TokenSet(everything.idx[:, few], everything.valid[:, few], grid_size)
    context = case.features(here)
    lone = [
        TokenSet(place.view(1, 1, 1), everything.valid[:, None, :1], grid_size) for place in places
    ]
    predictions = torch.cat([case.call(context, here, asked)[0, 0] for asked in lone])
    largest = float(predictions.abs().max())
    gaps = torch.stack([(predictions - one).abs().amax(dim=-1) for one in predictions])
    gaps.fill_diagonal_(torch.inf)
    if float(gaps.min()) <= case.tolerance * largest:
        one, two = (int(places[at]) for at in first_of(gaps == gaps.min()))
        fail(
            Law.POSITIONS,
            f"targets of one token, at positions {one} and {two}, have predictions that differ by "
            f"{float(gaps.min()):.3g} at most (largest value {largest:.3g}); mask tokens need the "
            "position that their index names, not that of their slot in the target",
        )


def _check_learns(case: _Case, context: Tensor) -> None:
    shape = (*case.targets.shape, case.out_dim)
    into = torch.randn(shape, generator=case.generator).to(case.like)
    _, gradients = _gradients(case, context, filler=0.0, into=into)
    for name, gradient in gradients.items():
        if gradient is None:
            fail(Law.LEARNS, f"{name} gets no gradient; DDP stops at an unused parameter")
        if not torch.isfinite(gradient).all() or not gradient.any():
            seen = "zero everywhere" if torch.isfinite(gradient).all() else "not finite"
            fail(Law.LEARNS, f"the gradient of {name} is {seen}")
