"""`assert_loss_contract`: what a masked regression loss keeps."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jepakit._checks import check_bool, check_choice, check_int, check_number
from jepakit.testing.breach import Law, fail, first_of, require_close

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

    Law 7: with $n$ valid tokens in the batch, $L = \frac{1}{n} \sum_{t\ \mathrm{valid}} L_t$ in
    value and gradient, where $L_t$ is the loss of token $t$ alone; and no factor of the width is
    left over. Law 6: what stands at a not-valid place, NaN included, enters neither value nor
    gradient; more padding changes nothing; nothing valid gives 0 with a graph and zero gradients.
    The loss of random features is not 0, changes with the target and has a gradient for pred.
    Shapes that do not fit are refused, not broadcast. It is called with `[b, m, n, d]`, in float64.

    For losses that compare token with token. Those that look across tokens, as contrastive ones
    do, have no $L_t$ and other laws.

    Args:
        loss: Called `(pred, target, valid)` for the mean, and with `reduction=` for the others.
        reductions: Which of `"mean"`, `"sum"`, `"sample"` and `"none"` it offers, the mean among
            them. `("mean",)` for a loss without that argument.
        grows_with_dim: Whether it is meant to grow with the width, as a distance or a sum over
            features does. Else features repeated twice must give the same loss.
        dim: Width of the features; at least 2, so that a target of width 1 does not fit.
        tolerance: Largest difference as a fraction of the larger value.
        seed: Of the features.

    Raises:
        AssertionError: Names the law that is broken, what was seen, and where.
        ValueError: If `reductions` lacks `"mean"` or has an unknown name.

    Example:
        >>> from jepakit import masked_mse
        >>> from jepakit.testing import assert_loss_contract
        >>> assert_loss_contract(masked_mse, reductions=("mean", "sum", "sample", "none"))

    Source:
        jepakit's own.
    """
    for reduction in reductions:
        check_choice("reductions", reduction, _REDUCTIONS)
    if "mean" not in reductions:
        raise ValueError(f"reductions={tuple(reductions)}: must hold 'mean', what the law is about")
    check_int("dim", dim, minimum=2)
    check_number("tolerance", tolerance, positive=True)
    check_bool("grows_with_dim", grows_with_dim)

    random = torch.Generator().manual_seed(seed)
    pred, target = (
        torch.randn(3, 2, 5, dim, generator=random, dtype=torch.float64) for _ in range(2)
    )
    counts = torch.tensor([[5, 1], [0, 2], [1, 4]])
    valid = torch.arange(5) < counts.unsqueeze(-1)

    _check_mean(loss, pred, target, valid, tolerance)
    _check_padding(loss, pred, target, valid, tolerance)
    _check_nothing_valid(loss, pred, target, valid)
    _check_shapes(loss, pred, target, valid)
    if not grows_with_dim:
        wide = loss(pred.repeat(1, 1, 1, 2), target.repeat(1, 1, 1, 2), valid)
        what = f"features repeated twice, so of width {2 * dim}, against width {dim}"
        require_close(Law.MEAN, what, wide, loss(pred, target, valid), tolerance)
    if len(reductions) > 1:
        _check_reductions(loss, pred, target, valid, reductions, tolerance)


def _leaves(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return pred.detach().clone().requires_grad_(), target.detach().clone().requires_grad_()


def _value(loss: Callable[..., Tensor], pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    value = loss(pred, target, valid)
    if not isinstance(value, Tensor) or value.shape != ():
        seen = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        fail(Law.INTERFACE, f"the mean must be a tensor of shape (), got {seen}")
    if not value.requires_grad:
        fail(Law.INTERFACE, "the mean carries no gradient")
    return value


def _gradients(value: Tensor, pred: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """Of both inputs; zeros for a target that the loss detaches."""
    return torch.autograd.grad(value, [pred, target], materialize_grads=True)


def _check_mean(
    loss: Callable[..., Tensor], pred: Tensor, target: Tensor, valid: Tensor, tolerance: float
) -> None:
    pred, target = _leaves(pred, target)
    value = _value(loss, pred, target, valid)
    one = torch.ones(1, 1, 1, dtype=torch.bool)
    parts = [
        _value(loss, p.view(1, 1, 1, -1), t.view(1, 1, 1, -1), one)
        for p, t in zip(pred[valid], target[valid], strict=True)
    ]
    naive = torch.stack(parts).mean()
    counts = valid.sum(dim=-1).tolist()
    what = f"against a loop over the valid tokens, {counts} in each set of 5"
    require_close(Law.MEAN, f"value {what}", value, naive, tolerance)
    expected = _gradients(naive, pred, target)
    found = _gradients(value, pred, target)
    for name, ours, theirs in zip(("pred", "target"), found, expected, strict=True):
        require_close(Law.MEAN, f"gradient of {name} {what}", ours, theirs, tolerance)
    if value.item() == 0:
        fail(Law.COMPARES, "the loss of random pred and target is 0")
    if not found[0].any():
        fail(Law.COMPARES, "the gradient of pred is zero everywhere")
    if _value(loss, pred, target / 2 + 1, valid).item() == value.item():
        fail(Law.COMPARES, "another target gives the same loss")


def _check_padding(
    loss: Callable[..., Tensor], pred: Tensor, target: Tensor, valid: Tensor, tolerance: float
) -> None:
    pred, target = _leaves(pred, target)
    value = _value(loss, pred, target, valid)
    expected = _gradients(value, pred, target)
    absent = ~valid.unsqueeze(-1)
    for filler in (1e6, math.inf, math.nan):
        for name in ("pred", "target"):
            inputs = {"pred": pred, "target": target}
            inputs[name] = inputs[name].masked_fill(absent, filler)
            poisoned = _leaves(inputs["pred"], inputs["target"])
            ours = _value(loss, *poisoned, valid)
            what = f"{filler} at not-valid places of {name}"
            require_close(Law.PADDING, f"value with {what}", ours, value, tolerance)
            for of, gradient, clean in zip(
                ("pred", "target"), _gradients(ours, *poisoned), expected, strict=True
            ):
                where = f"gradient of {of} with {what}"
                require_close(Law.PADDING, where, gradient, clean, tolerance)
                if (gradient * absent).any():
                    at = first_of((gradient * absent) != 0)
                    fail(Law.PADDING, f"{where}: {float(gradient[at]):.3g} at {at}, not valid")
    pad = torch.nn.functional.pad
    longer = _value(
        loss, pad(pred, (0, 0, 0, 3)), pad(target, (0, 0, 0, 3)), pad(valid, (0, 3), value=False)
    )
    require_close(Law.PADDING, "three more not-valid tokens in each set", longer, value, tolerance)


def _check_nothing_valid(
    loss: Callable[..., Tensor], pred: Tensor, target: Tensor, valid: Tensor
) -> None:
    pred, target = _leaves(pred, target)
    value = _value(loss, pred, target, torch.zeros_like(valid))
    if value.item() != 0:
        fail(Law.PADDING, f"with nothing valid the loss must be 0, got {value.item()}")
    for name, gradient in zip(("pred", "target"), _gradients(value, pred, target), strict=True):
        if not torch.equal(gradient, torch.zeros_like(gradient)):
            seen = float(gradient[first_of(gradient != 0)])
            fail(Law.PADDING, f"with nothing valid the gradient of {name} must be 0, got {seen}")


def _check_shapes(loss: Callable[..., Tensor], pred: Tensor, target: Tensor, valid: Tensor) -> None:
    """Each of these would broadcast."""
    for name, arguments in {
        "target": (pred, target[..., :1], valid),
        "target (one sample)": (pred, target[:1], valid),
        "pred": (pred[:, :, :1], target, valid),
        "valid": (pred, target, valid[:, :, :1]),
        "valid (one sample)": (pred, target, valid[:1]),
        "valid (no batch)": (pred, target, valid[0]),
    }.items():
        try:
            value = loss(*arguments)
        except Exception:  # whatever it is, it was refused
            continue
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in arguments)
        seen = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        fail(
            Law.INTERFACE,
            f"shapes are refused, not broadcast: a wrong {name} in (pred, target, valid) of shapes "
            f"{shapes} gave {seen}",
        )


def _check_reductions(
    loss: Callable[..., Tensor],
    pred: Tensor,
    target: Tensor,
    valid: Tensor,
    reductions: Sequence[str],
    tolerance: float,
) -> None:
    found = {name: loss(pred, target, valid, reduction=name) for name in reductions}
    mean, count, dim = found["mean"], int(valid.sum()), pred.shape[-1]
    plain = loss(pred, target, valid)
    require_close(Law.MEAN, "no reduction against reduction='mean'", plain, mean, tolerance)
    total = found.get("sum")
    if total is not None:
        per_token = total.item() / (mean.item() * count)
        if not any(math.isclose(per_token, k, rel_tol=tolerance) for k in (1, dim)):
            fail(
                Law.MEAN,
                f"sum is {per_token:.6g} x mean x {count} valid tokens; must be 1 (a value for "
                f"each token) or {dim} (one for each element)",
            )
    if "none" in found:
        values = found["none"]
        if values.shape not in (pred.shape, valid.shape):
            fail(Law.INTERFACE, f"reduction='none' has shape {tuple(values.shape)}")
        if values[~valid].any():
            at = first_of((values != 0) & ~valid.view(*valid.shape, *[1] * (values.dim() - 3)))
            fail(Law.PADDING, f"reduction='none' is {float(values[at]):.3g} at {at}, not valid")
        require_close(Law.MEAN, "mean of 'none'", values[valid].mean(), mean, tolerance)
        if total is not None:
            require_close(Law.MEAN, "sum of 'none' against 'sum'", values.sum(), total, tolerance)
    if "sample" in found:
        apart = [
            loss(pred[i : i + 1], target[i : i + 1], valid[i : i + 1]) for i in range(len(pred))
        ]
        what = "reduction='sample' against each sample alone"
        require_close(Law.MEAN, what, found["sample"], torch.stack(apart), tolerance)
