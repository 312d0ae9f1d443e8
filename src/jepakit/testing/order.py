"""`assert_order_contract`: a pool over time gives a sequence and its reverse different outputs."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._checks import as_fraction, as_int, as_number
from jepakit.testing._cases import Case
from jepakit.testing._violation import Law, require, require_finite, require_nowhere, require_shape

__all__ = ["assert_order_contract"]


def assert_order_contract(
    pool: Callable[..., Tensor],
    dim: int,
    *,
    max_steps: int = 5,
    batch_size: int = 8,
    min_change: float = 0.01,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> None:
    r"""Raise unless a pool over time follows law 16, already at its present parameters.

    - Law 16: reversing sequences of 2 to `max_steps` random steps moves the output by at least
      `min_change` of its norm, each over the batch; also where steps are missing between others.
      The error says by how much it moved.
    - Law 16: padding at the end changes nothing.
    - Law 6: values at padding affect neither value nor gradient, and padding gets none; a sequence
      without a step, also of a batch that has room for none, comes out as exact zeros.

    The test runs on a copy in eval mode, whose parameters stay as they are: a new pool is tested
    at its initialisation. With positions on the features alone, a pool of random attention starts
    almost as a mean, which is blind to order.

    Args:
        pool: Called `(features [b t dim], valid [b t]) -> [b ...]`.
        dim: Width of the features.
        max_steps: Longest sequence; at least 3. With padding it is 2 steps longer, unless the pool
            has a `max_len` below that.
        batch_size: Number of sequences; at least 2.
        min_change: Least change, as a fraction of the norm of the output.
        tolerance: Largest allowed difference where nothing may change, as a fraction of the
            largest output.
        seed: For the features.

    Raises:
        ValueError: If the pool has a `max_len` below `max_steps`.
        AssertionError: Names the violated law, what was found, and where.

    Example:
        >>> from jepakit.nn import AttentionPool, TemporalPool
        >>> from jepakit.testing import assert_order_contract
        >>> assert_order_contract(TemporalPool(16, max_len=8), 16)
        >>> assert_order_contract(AttentionPool(16), 16)
        Traceback (most recent call last):
        ...
        AssertionError: law 16, order: reversing sequences of 2 steps moves the output by ... of
        ..., must be at least 1 %; ...
    """
    dim = as_int("dim", dim, minimum=1)
    max_steps = as_int("max_steps", max_steps, minimum=3)
    batch_size = as_int("batch_size", batch_size, minimum=2)
    min_change = as_fraction("min_change", min_change, open_low=True)
    tolerance = as_number("tolerance", tolerance, positive=True)
    generator = torch.Generator().manual_seed(as_int("seed", seed))
    pool = copy.deepcopy(pool)
    parameters = []
    if isinstance(pool, nn.Module):
        pool.eval()
        parameters = list(pool.parameters())
    like = parameters[0].detach() if parameters else torch.empty(0)
    features = torch.randn(batch_size, max_steps, dim, generator=generator).to(like)
    max_len = getattr(pool, "max_len", max_steps + 2)
    if max_steps > max_len:
        raise ValueError(f"max_steps={max_steps}: must be at most the pool's max_len={max_len}")
    room = min(2, max_len - max_steps)
    case = _Case(pool, generator, tolerance, features, room, min_change)

    _check_reversal(case)
    _check_padding(case)
    _check_empty_sequences(case)


@dataclass(frozen=True)
class _Case(Case):
    features: Tensor
    room: int
    min_change: float

    def encode(self, features: Tensor, valid: Tensor) -> Tensor:
        out = self.part(features, valid)
        tail = out.shape[1:] if isinstance(out, Tensor) else ()
        require_shape("the output must be [b ...] =", out, (len(features), *tail))
        return out

    def all_valid(self, length: int) -> Tensor:
        return torch.ones(len(self.features), length, dtype=torch.bool, device=self.features.device)

    def ragged(self) -> Tensor:
        """Lengths from 1 to the longest in turn."""
        longest = self.features.shape[1]
        lengths = torch.arange(len(self.features)) % longest + 1
        return (torch.arange(longest) < lengths[:, None]).to(self.features.device)


@torch.no_grad()
def _check_reversal(case: _Case) -> None:
    longest = case.features.shape[1]
    patterns = [(f"of {n} steps", case.all_valid(n)) for n in range(2, longest + 1)]
    missing = case.all_valid(longest)
    missing[:, 1] = False
    patterns.append((f"of {longest - 1} steps, one missing after the first,", missing))
    for name, valid in patterns:
        features = case.features[:, : valid.shape[1]]
        reverse = features.clone()
        present = valid[0]
        reverse[:, present] = features[:, present].flip(1)
        out, other = case.encode(features, valid), case.encode(reverse, valid)
        require_finite(Law.ORDER, "the output", out)
        norm, change = float(out.norm()), float((out - other).norm())
        require(
            Law.ORDER,
            norm > 0 and change >= case.min_change * norm,
            f"reversing sequences {name} moves the output by {change:.3g} of {norm:.3g} "
            f"({change / norm if norm else 0:.2g}), must be at least {100 * case.min_change:g} %",
            hint="weights over steps must differ between positions from the start",
        )


def _check_padding(case: _Case) -> None:
    valid = case.ragged()
    gone = ~valid[..., None]
    found = []
    incoming = None
    for filler in (0.0, 1e4):
        features = case.features.masked_fill(gone, filler).requires_grad_()
        out = case.encode(features, valid)
        if incoming is None:
            incoming = case.noise(out.shape, out)
        found.append((out.detach(), case.gradients(out, incoming, features=features)))
    (expected, clean), (out, poisoned) = found
    case.require_close(Law.PADDING, "features at padding changed the output", out, expected)
    case.require_same_gradients("features at padding changed the gradient of", poisoned, clean)
    at_features = poisoned.get("the features", torch.zeros_like(case.features))
    reached = (at_features != 0).any(dim=-1) & ~valid
    require_nowhere(Law.PADDING, reached, "padding gets a gradient", axes="sequence step")
    largest = float(expected.abs().max())
    with torch.no_grad():
        longer = F.pad(case.features, (0, 0, 0, case.room), value=1.0)
        out = case.encode(longer, F.pad(valid, (0, case.room)))
        what = "the output with more padding at the end"
        case.require_close(Law.ORDER, what, out, expected, largest)
        for number, length in enumerate(valid.sum(dim=1).tolist()):
            alone = case.features[number : number + 1, :length]
            out = case.encode(alone, case.all_valid(length)[:1])[0]
            what = f"sequence {number} alone must equal the sequence in a padded batch"
            case.require_close(Law.BATCH, what, out, expected[number], largest)


def _check_empty_sequences(case: _Case) -> None:
    longest = case.features.shape[1]
    for what, empty, length in (
        ("one sequence without a step", slice(0, 1), longest),
        ("every sequence without a step", slice(None), longest),
        ("room for no step", slice(None), 0),
    ):
        valid = case.all_valid(length)
        valid[empty] = False
        features = case.features[:, :length].clone().requires_grad_()
        out = case.encode(features, valid)
        require_finite(Law.PADDING, f"with {what}, the output", out)
        flags = (out[empty] != 0).flatten(1).any(dim=1)
        found = f"with {what}, the output of an empty sequence must be exactly zero"
        require_nowhere(Law.PADDING, flags, found, axes="sequence")
        if out.requires_grad:
            for name, gradient in case.gradients(out, 2 * out, features=features).items():
                require_finite(Law.PADDING, f"with {what}, the gradient of {name}", gradient)
