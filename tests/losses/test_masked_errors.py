"""Error texts of the masked losses; jaxtyping would speak first under the hook."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from jepakit.losses import (
    masked_cosine,
    masked_huber,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
)

pytestmark = pytest.mark.no_hook

LOSSES = [masked_mse, masked_l1, masked_smooth_l1, masked_huber, masked_cosine]
GOOD = {
    "pred": torch.zeros(2, 3, 4),
    "target": torch.zeros(2, 3, 4),
    "valid": torch.ones(2, 3, dtype=torch.bool),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"valid": torch.ones(2, 3)},
            TypeError,
            "valid: must be bool, got torch.float32",
        ),
        (
            {"valid": [[True] * 3] * 2},
            TypeError,
            "valid: must be a torch.Tensor, got list",
        ),
        (
            {"pred": torch.zeros(2, 3, 4, dtype=torch.int64)},
            TypeError,
            "pred: must be floating point, got torch.int64",
        ),
        (
            {"target": torch.zeros(2, 3, 4, dtype=torch.int64)},
            TypeError,
            "target: must be floating point, got torch.int64",
        ),
        (
            {"target": torch.zeros(1, 3, 4)},
            ValueError,
            "target (1, 3, 4): must have the shape of pred (2, 3, 4); nothing is broadcast",
        ),
        (
            {"target": torch.zeros(2, 3, 1)},
            ValueError,
            "target (2, 3, 1): must have the shape of pred (2, 3, 4); nothing is broadcast",
        ),
        (
            {"valid": torch.ones(1, 3, dtype=torch.bool)},
            ValueError,
            "valid (1, 3): must have the shape of pred without its last axis, (2, 3); "
            "nothing is broadcast",
        ),
        (
            {"valid": torch.ones(2, 3, 4, dtype=torch.bool)},
            ValueError,
            "valid (2, 3, 4): must have the shape of pred without its last axis, (2, 3)",
        ),
        (
            {"pred": torch.zeros(3), "target": torch.zeros(3)},
            ValueError,
            "pred (3,): must have the shape [*batch, n, d]",
        ),
        ({"valid": None}, TypeError, "valid: must be a torch.Tensor, got NoneType"),
        (
            {
                "pred": torch.zeros(0, 3, 4),
                "target": torch.zeros(0, 3, 4),
                "valid": torch.ones(0, 3, dtype=torch.bool),
            },
            ValueError,
            "pred (0, 3, 4): must have at least one sample",
        ),
        (
            {"reduction": "avg"},
            ValueError,
            "reduction='avg': must be one of 'mean', 'sum', 'sample', 'none'",
        ),
        (
            {
                "pred": torch.zeros(3, 4),
                "target": torch.zeros(3, 4),
                "valid": torch.ones(3, dtype=torch.bool),
                "reduction": "sample",
            },
            ValueError,
            "reduction='sample': pred (3, 4) must have a batch axis",
        ),
    ],
)
def test_bad_input_names_argument_value_and_rule(
    loss: Callable[..., Tensor], change: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        loss(**(GOOD | change))
    assert text in str(caught.value)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["sum", "sample", "none"])
def test_a_group_without_effect_raises(loss: Callable[..., Tensor], reduction: str) -> None:
    """Law 12: `process_group` scales a mean; nothing else."""
    group = dist.ProcessGroup(0, 1)
    with pytest.raises(ValueError, match=rf"process_group with reduction='{reduction}'.*'mean'"):
        loss(**GOOD, reduction=reduction, process_group=group)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("group", ["world", -100, True])
def test_groups_of_another_kind(loss: Callable[..., Tensor], group: object) -> None:
    """A rank outside a new group is handed a number in the group's place."""
    text = (
        f"process_group={group!r}: must be a torch.distributed ProcessGroup or None, "
        f"got {type(group).__name__}"
    )
    with pytest.raises(TypeError) as caught:
        loss(**GOOD, process_group=group)
    assert str(caught.value) == text


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(("loss", "name"), [(masked_smooth_l1, "beta"), (masked_huber, "delta")])
def test_knees_are_positive(loss: Callable[..., Tensor], name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value:g}: must be (above 0|finite)"):
        loss(**GOOD, **{name: value})
