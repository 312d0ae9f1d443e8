"""`assert_loss_contract`: the laws of a masked regression loss."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from jepakit._checks import as_bool, as_choice, as_int, as_number
from jepakit.testing._cases import Case
from jepakit.testing._violation import Law, fail, require, require_nowhere, require_shape

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

    Example:
        >>> from jepakit import masked_mse
        >>> from jepakit.testing import assert_loss_contract
        >>> assert_loss_contract(masked_mse, reductions=("mean", "sum", "sample", "none"))
    """
    for reduction in reductions:
        as_choice("reductions", reduction, _REDUCTIONS)
    if "mean" not in reductions:
        raise ValueError(f"reductions={tuple(reductions)}: must hold 'mean'")
    dim = as_int("dim", dim, minimum=2)
    tolerance = as_number("tolerance", tolerance, positive=True)
    as_bool("grows_with_dim", grows_with_dim)

    generator = torch.Generator().manual_seed(as_int("seed", seed))
    pred, target = (
        torch.randn(3, 2, 5, dim, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    counts = torch.tensor([[5, 1], [0, 2], [1, 4]])
    valid = torch.arange(5) < counts.unsqueeze(-1)
    case = _Case(loss, generator, tolerance, pred, target, valid)

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
class _Case(Case):
    pred: Tensor
    target: Tensor
    valid: Tensor

    def mean(self, pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """The loss, a tensor of shape () with a graph."""
        value = self.part(pred, target, valid)
        require_shape("the mean must be a tensor of shape", value, ())
        require(Law.INTERFACE, value.requires_grad, "the mean carries no gradient")
        return value

    def mean_and_gradients(self, pred: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        pred, target = _leaf(pred), _leaf(target)
        return _with_gradients(self.mean(pred, target, valid), pred, target)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def _with_gradients(loss: Tensor, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the loss and its gradients by name; zeros for a target that the loss detaches."""
    of_pred, of_target = torch.autograd.grad(loss, [pred, target], materialize_grads=True)
    return {"loss": loss, "gradient of pred": of_pred, "gradient of target": of_target}


def _check_mean(case: _Case) -> None:
    pred, target = _leaf(case.pred), _leaf(case.target)
    single = torch.ones(1, 1, 1, dtype=torch.bool)
    losses = [
        case.mean(p.view(1, 1, 1, -1), t.view(1, 1, 1, -1), single)
        for p, t in zip(pred[case.valid], target[case.valid], strict=True)
    ]
    naive = _with_gradients(torch.stack(losses).mean(), pred, target)
    found = case.mean_and_gradients(pred, target, case.valid)
    counts = case.valid.sum(dim=-1).tolist()
    rule = f"must equal that of a loop over the valid tokens ({counts} of 5 in each set)"
    for name, value in found.items():
        case.require_close(Law.MEAN, f"the {name} {rule}", value, naive[name])
    loss, of_pred = found["loss"].item(), found["gradient of pred"]
    require(Law.COMPARES, loss != 0, "the loss of random pred and target is 0")
    require(Law.COMPARES, of_pred.any(), "the gradient of pred is zero everywhere")
    other = case.mean(pred, target / 2 + 1, case.valid).item()
    require(Law.COMPARES, other != loss, "another target gives the same loss")


def _check_padding(case: _Case) -> None:
    clean = case.mean_and_gradients(case.pred, case.target, case.valid)
    padding = ~case.valid.unsqueeze(-1)
    for filler, poisoned in itertools.product((1e6, math.inf, math.nan), ("pred", "target")):
        inputs = {"pred": case.pred, "target": case.target}
        inputs[poisoned] = inputs[poisoned].masked_fill(padding, filler)
        for name, value in case.mean_and_gradients(**inputs, valid=case.valid).items():
            what = f"the {name} with {filler} at padding of {poisoned}"
            case.require_close(Law.PADDING, what, value, clean[name])
            if name != "loss":
                found = f"{what} is not 0 at padding"
                require_nowhere(Law.PADDING, (value != 0) & padding, found)
    longer = case.mean(
        F.pad(_leaf(case.pred), (0, 0, 0, 3)),
        F.pad(case.target, (0, 0, 0, 3)),
        F.pad(case.valid, (0, 3), value=False),
    )
    what = "the loss with 3 more entries of padding"
    case.require_close(Law.PADDING, what, longer, clean["loss"])


def _check_nothing_valid(case: _Case) -> None:
    found = case.mean_and_gradients(case.pred, case.target, torch.zeros_like(case.valid))
    for name, value in found.items():
        largest = value.abs().max().item()
        what = f"the {name} without valid tokens must be 0, got {largest}"
        require(Law.PADDING, largest == 0, what)


def _check_shapes(case: _Case) -> None:
    """Check that arguments that would broadcast raise."""
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
            value = case.part(*arguments)
        except Exception:  # any error is a refusal
            continue
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in arguments)
        fail(
            Law.INTERFACE,
            f"a wrong {name} in (pred, target, valid) of shapes {shapes} must raise, not "
            f"broadcast; got {value}",
        )


def _check_reductions(case: _Case, reductions: Sequence[str]) -> None:
    pred, target, valid = case.pred, case.target, case.valid
    values = {name: case.part(pred, target, valid, reduction=name) for name in reductions}
    mean, count, dim = values["mean"], int(valid.sum()), pred.shape[-1]
    default = case.part(pred, target, valid)
    case.require_close(Law.MEAN, "the default reduction must be the mean", default, mean)
    if "sum" in values:
        # One value is added for each token, or one for each of its `dim` elements.
        per_token = values["sum"].item() / (mean.item() * count)
        require(
            Law.MEAN,
            any(math.isclose(per_token, k, rel_tol=case.tolerance) for k in (1, dim)),
            f"reduction='sum' is {per_token:.6g} times the mean times {count} valid tokens",
            hint=f"must be 1 (a value for each token) or {dim} (one for each element)",
        )
    if "none" in values:
        elements = values["none"]
        if elements.shape not in (pred.shape, valid.shape):
            found = f"reduction='none' has shape {tuple(elements.shape)}"
            fail(Law.INTERFACE, f"{found}, must be that of pred or of valid")
        padding = ~valid.view(*valid.shape, *[1] * (elements.dim() - valid.dim()))
        require_nowhere(
            Law.PADDING,
            (elements != 0) & padding,
            lambda *at: f"reduction='none' is {float(elements[at]):.3g} at padding",
        )
        case.require_close(Law.MEAN, "the mean of reduction='none'", elements[valid].mean(), mean)
        if "sum" in values:
            what = "the sum of reduction='none'"
            case.require_close(Law.MEAN, what, elements.sum(), values["sum"])
    if "sample" in values:
        samples = [
            case.part(*(tensor[i : i + 1] for tensor in (pred, target, valid)))
            for i in range(len(pred))
        ]
        what = "reduction='sample' must equal the loss of each sample alone"
        case.require_close(Law.MEAN, what, values["sample"], torch.stack(samples))
