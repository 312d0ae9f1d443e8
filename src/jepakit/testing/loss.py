"""`assert_loss_contract`: the laws of a masked regression loss."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from jepakit._checks import as_bool, as_int, as_number, check_choice
from jepakit.testing._violation import Law, fail, first_index, require_close

__all__ = ["assert_loss_contract"]

_REDUCTIONS = ("mean", "sum", "sample", "none")


def assert_loss_contract(
    loss: Callable[..., Tensor],
    *,
    reductions: Sequence[str] = ("mean", "sum"),
    grows_with_dim: bool = False,
    dim: int = 8,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> None:
    r"""Raise unless a masked loss is one mean over its valid tokens.

    - Law 7: with $n$ valid tokens in the batch, $L = \frac{1}{n} \sum_{t\ \mathrm{valid}} L_t$ in
      value and gradient, where $L_t$ is the loss of token $t$ alone; the value does not depend on
      the width.
    - Law 6: values at padding, NaN included, affect neither value nor gradient; more padding
      changes nothing; a batch without valid tokens gives 0 with a graph and zero gradients.
    - Comparison: the loss of random features is not 0, changes with the target and has a gradient
      for pred.
    - Shapes that do not match are refused, not broadcast.

    The loss is called with `[b, m, n, d]` in float64. The contract is for losses that compare token
    with token; a loss across tokens, such as a contrastive one, has no $L_t$.

    Args:
        loss: Called `(pred, target, valid)` for the mean, and with `reduction=` for the others.
        reductions: Those of `"mean"`, `"sum"`, `"sample"` and `"none"` that it offers, `"mean"`
            among them. `("mean",)` for a loss without that argument.
        grows_with_dim: True if the loss is meant to grow with the width, as a distance or a sum
            over features does. Else features repeated twice must give the same loss.
        dim: Width of the features; at least 2, so that a target of width 1 does not fit.
        tolerance: Largest allowed difference, as a fraction of the larger value.
        seed: For the features.

    Raises:
        AssertionError: Names the violated law, what was found, and where.
        ValueError: If `reductions` lacks `"mean"` or has an unknown name.

    Example:
        >>> from jepakit import masked_mse
        >>> from jepakit.testing import assert_loss_contract
        >>> assert_loss_contract(masked_mse, reductions=("mean", "sum", "sample", "none"))
    """
    for reduction in reductions:
        check_choice("reductions", reduction, _REDUCTIONS)
    if "mean" not in reductions:
        raise ValueError(
            f"reductions={tuple(reductions)}: must hold 'mean', which the law is about"
        )
    dim = as_int("dim", dim, minimum=2)
    tolerance = as_number("tolerance", tolerance, positive=True)
    as_bool("grows_with_dim", grows_with_dim)

    generator = torch.Generator().manual_seed(as_int("seed", seed))
    pred, target = (
        torch.randn(3, 2, 5, dim, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    counts = torch.tensor([[5, 1], [0, 2], [1, 4]])
    valid = torch.arange(5) < counts.unsqueeze(-1)
    case = _Case(loss, pred, target, valid, tolerance)

    _check_mean(case)
    _check_padding(case)
    _check_nothing_valid(case)
    _check_shapes(case)
    if not grows_with_dim:
        wide = loss(pred.repeat(1, 1, 1, 2), target.repeat(1, 1, 1, 2), valid)
        what = f"the loss of features repeated twice, of width {2 * dim} instead of {dim}"
        case.require_close(Law.MEAN, what, wide, loss(pred, target, valid))
    if len(reductions) > 1:
        _check_reductions(case, reductions)


@dataclass(frozen=True)
class _Case:
    loss: Callable[..., Tensor]
    pred: Tensor
    target: Tensor
    valid: Tensor
    tolerance: float

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Copies of pred and target that collect gradients."""
        return _leaf(self.pred), _leaf(self.target)

    def mean(self, pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """The loss, a tensor of shape () with a graph."""
        value = self.loss(pred, target, valid)
        if not isinstance(value, Tensor) or value.shape != ():
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            fail(Law.INTERFACE, f"the mean must be a tensor of shape (), got {found}")
        if not value.requires_grad:
            fail(Law.INTERFACE, "the mean carries no gradient")
        return value

    def require_close(self, law: Law, what: str, actual: Tensor, expected: Tensor) -> None:
        require_close(law, what, actual, expected, self.tolerance)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def _gradients(value: Tensor, pred: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """Gradients of both inputs; zeros for a target that the loss detaches."""
    return torch.autograd.grad(value, [pred, target], materialize_grads=True)


def _check_mean(case: _Case) -> None:
    pred, target = case.leaves()
    value = case.mean(pred, target, case.valid)
    single = torch.ones(1, 1, 1, dtype=torch.bool)
    losses = [
        case.mean(p.view(1, 1, 1, -1), t.view(1, 1, 1, -1), single)
        for p, t in zip(pred[case.valid], target[case.valid], strict=True)
    ]
    naive = torch.stack(losses).mean()
    counts = case.valid.sum(dim=-1).tolist()
    what = f"must equal that of a loop over the valid tokens ({counts} of 5 in each set)"
    case.require_close(Law.MEAN, f"the value {what}", value, naive)
    expected = _gradients(naive, pred, target)
    gradients = _gradients(value, pred, target)
    for name, ours, theirs in zip(("pred", "target"), gradients, expected, strict=True):
        case.require_close(Law.MEAN, f"the gradient of {name} {what}", ours, theirs)
    if value.item() == 0:
        fail(Law.COMPARES, "the loss of random pred and target is 0")
    if not gradients[0].any():
        fail(Law.COMPARES, "the gradient of pred is zero everywhere")
    if case.mean(pred, target / 2 + 1, case.valid).item() == value.item():
        fail(Law.COMPARES, "another target gives the same loss")


def _check_padding(case: _Case) -> None:
    pred, target = case.leaves()
    value = case.mean(pred, target, case.valid)
    expected = _gradients(value, pred, target)
    padding = ~case.valid.unsqueeze(-1)
    for filler in (1e6, math.inf, math.nan):
        for name in ("pred", "target"):
            inputs = {"pred": pred, "target": target}
            inputs[name] = inputs[name].masked_fill(padding, filler)
            poisoned = _leaf(inputs["pred"]), _leaf(inputs["target"])
            ours = case.mean(*poisoned, case.valid)
            cause = f"with {filler} at padding of {name}"
            case.require_close(Law.PADDING, f"the value {cause}", ours, value)
            for of, gradient, clean in zip(
                ("pred", "target"), _gradients(ours, *poisoned), expected, strict=True
            ):
                what = f"the gradient of {of} {cause}"
                case.require_close(Law.PADDING, what, gradient, clean)
                if (gradient * padding).any():
                    index = first_index((gradient * padding) != 0)
                    found = f"{what} is {float(gradient[index]):.3g} where it must be 0"
                    fail(Law.PADDING, found, where=f"index {index}")
    longer = case.mean(
        F.pad(pred, (0, 0, 0, 3)),
        F.pad(target, (0, 0, 0, 3)),
        F.pad(case.valid, (0, 3), value=False),
    )
    case.require_close(Law.PADDING, "the value with 3 more entries of padding", longer, value)


def _check_nothing_valid(case: _Case) -> None:
    pred, target = case.leaves()
    value = case.mean(pred, target, torch.zeros_like(case.valid))
    if value.item() != 0:
        fail(Law.PADDING, f"the loss without valid tokens must be 0, got {value.item()}")
    for name, gradient in zip(("pred", "target"), _gradients(value, pred, target), strict=True):
        if not torch.equal(gradient, torch.zeros_like(gradient)):
            found = float(gradient[first_index(gradient != 0)])
            fail(Law.PADDING, f"the gradient of {name} without valid tokens must be 0, got {found}")


def _check_shapes(case: _Case) -> None:
    """Arguments that would broadcast raise."""
    pred, target, valid = case.pred, case.target, case.valid
    for name, arguments in {
        "target": (pred, target[..., :1], valid),
        "target (one sample)": (pred, target[:1], valid),
        "pred": (pred[:, :, :1], target, valid),
        "valid": (pred, target, valid[:, :, :1]),
        "valid (one sample)": (pred, target, valid[:1]),
        "valid (no batch)": (pred, target, valid[0]),
    }.items():
        try:
            value = case.loss(*arguments)
        except Exception:  # any error is a refusal
            continue
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in arguments)
        found = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        fail(
            Law.INTERFACE,
            f"a wrong {name} in (pred, target, valid) of shapes {shapes} must raise, not "
            f"broadcast; got {found}",
        )


def _check_reductions(case: _Case, reductions: Sequence[str]) -> None:
    pred, target, valid = case.pred, case.target, case.valid
    values = {name: case.loss(pred, target, valid, reduction=name) for name in reductions}
    mean, count, dim = values["mean"], int(valid.sum()), pred.shape[-1]
    default = case.loss(pred, target, valid)
    case.require_close(Law.MEAN, "the default reduction must be the mean", default, mean)
    total = values.get("sum")
    if total is not None:
        # `sum` adds one value for each token, or one for each of its `dim` elements.
        per_token = total.item() / (mean.item() * count)
        if not any(math.isclose(per_token, k, rel_tol=case.tolerance) for k in (1, dim)):
            fail(
                Law.MEAN,
                f"reduction='sum' is {per_token:.6g} times the mean times {count} valid tokens",
                hint=f"must be 1 (a value for each token) or {dim} (one for each element)",
            )
    if "none" in values:
        elements = values["none"]
        if elements.shape not in (pred.shape, valid.shape):
            found = f"reduction='none' has shape {tuple(elements.shape)}"
            fail(Law.INTERFACE, f"{found}, must be that of pred or of valid")
        if elements[~valid].any():
            padding = ~valid.view(*valid.shape, *[1] * (elements.dim() - valid.dim()))
            index = first_index((elements != 0) & padding)
            found = f"reduction='none' is {float(elements[index]):.3g} at padding"
            fail(Law.PADDING, found, where=f"index {index}")
        case.require_close(Law.MEAN, "the mean of reduction='none'", elements[valid].mean(), mean)
        if total is not None:
            case.require_close(Law.MEAN, "the sum of reduction='none'", elements.sum(), total)
    if "sample" in values:
        samples = [
            case.loss(pred[i : i + 1], target[i : i + 1], valid[i : i + 1])
            for i in range(len(pred))
        ]
        what = "reduction='sample' must equal the loss of each sample alone"
        case.require_close(Law.MEAN, what, values["sample"], torch.stack(samples))
