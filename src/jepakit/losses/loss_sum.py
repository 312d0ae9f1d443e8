"""`LossSum`: the weighted sum of several named losses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import as_number, check_floating, store_fields, type_name, value_checks_on
from jepakit._precision import float32_or_wider

__all__ = ["LossSum"]


@dataclass(frozen=True)
class LossSum:
    r"""Weighted sum of named terms; a weight is a number or a schedule.

    $$L = \sum_t w_t(s)\, \ell_t$$

    Every term with a weight must be given in every call, and no other may be: a misspelt or
    forgotten one raises instead of being left out.

    A term whose weight is exactly 0 at this step is left out of the total, not multiplied: it may
    be NaN or infinite, and gets no gradient, not even zeros. (Parameters that only such a term
    reaches are unused in that step, which `DistributedDataParallel` accepts only with
    `find_unused_parameters=True`.) Any other NaN makes the total NaN, and raises on the CPU under
    `JEPAKIT_TYPECHECK=1`. A step where all weights are 0 raises.

    A compiled function that calls this with a changing step is compiled again: call it outside of
    `torch.compile` then.

    Args:
        weights: The weight of each term by its name: a number of at least 0, or a function from
            step to number, such as `jepakit.linear`. Not all of them 0.

    Raises:
        ValueError: If all weights are 0.

    Example:
        >>> import torch
        >>> from jepakit import linear
        >>> loss_sum = LossSum({"prediction": 1.0, "variance": linear(0.0, 0.5, steps=100)})
        >>> terms = {"prediction": torch.tensor(2.0), "variance": torch.tensor(4.0)}
        >>> total, parts = loss_sum(terms, step=50)
        >>> total, parts
        (tensor(3.), {'prediction': tensor(2.), 'variance': tensor(4.)})
        >>> loss_sum.weights_at(50)
        {'prediction': 1.0, 'variance': 0.25}
    """

    weights: Mapping[str, float | Callable[[int], float]]

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Mapping):
            kind = type_name(self.weights)
            raise TypeError(f"weights: must be a mapping from names to weights, got {kind}")
        weights: dict[str, float | Callable[[int], float]] = {}
        for name, weight in self.weights.items():
            # A module is callable too, and its parameters would be in no optimiser.
            if isinstance(weight, torch.nn.Module):
                raise TypeError(f"weights[{name!r}]: apply a learned weight to the term instead")
            if not callable(weight):
                weight = as_number(f"weights[{name!r}]", weight, minimum=0)
            weights[name] = weight
        if all(weight == 0 for weight in weights.values()):
            raise ValueError(f"weights={weights}: must hold a term, and not all be 0")
        store_fields(self, weights=weights)

    def weights_at(self, step: int | None = None) -> dict[str, float]:
        """The weights at a `step` of training, which may be None if no weight is a schedule."""
        weights: dict[str, float] = {}
        for name, weight in self.weights.items():
            if not callable(weight):
                weights[name] = weight
                continue
            if step is None:
                raise ValueError(f"step=None: must be given, as weights[{name!r}] is a schedule")
            weights[name] = as_number(f"weights[{name!r}]({step})", weight(step), minimum=0)
        if not any(weights.values()):
            raise ValueError(f"step={step}: all weights are 0, so there is nothing to learn from")
        return weights

    def __call__(
        self, terms: Mapping[str, Float[Tensor, ""]], *, step: int | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The total, in float32 or wider, and the terms by name, not weighted and detached.

        Args:
            terms: The value of each term, a single number.
            step: Step of training, for the weights that are schedules.
        """
        self._check_terms(terms)
        weights = self.weights_at(step)
        for name, weight in weights.items():
            value = terms[name]
            if weight != 0 and value_checks_on(value) and not torch.isfinite(value):
                raise ValueError(f"terms[{name!r}]={value.item()}: must be finite")
        weighted = [w * float32_or_wider(terms[name]) for name, w in weights.items() if w != 0]
        return torch.stack(weighted).sum(), {name: terms[name].detach() for name in weights}

    def _check_terms(self, terms: Mapping[str, Tensor]) -> None:
        if not isinstance(terms, Mapping):
            raise TypeError(f"terms: must be a mapping from names, got {type_name(terms)}")
        missing = [name for name in self.weights if name not in terms]
        unknown = [name for name in terms if name not in self.weights]
        if missing or unknown:
            raise ValueError(
                f"terms: must be exactly {list(self.weights)}, but {missing or 'none'} are missing "
                f"and {unknown or 'none'} have no weight"
            )
        for name, value in terms.items():
            check_floating(f"terms[{name!r}]", value)
            if value.dim() != 0:
                raise ValueError(f"terms[{name!r}] {tuple(value.shape)}: must be a single number")
