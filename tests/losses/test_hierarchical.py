"""`hierarchical_loss` equals a loop over levels, samples and tokens, whatever a level's size."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from jepakit import hierarchical_loss, masked_l1, masked_mse, masked_smooth_l1
from jepakit.losses import SoftOptimalWeights, UncertaintyWeights, decay_weights

SIZES = [(2, 12), (2, 5), (1, 3)]  # targets and tokens of each level


def levels(seed: int, *, batch: int = 3, dim: int = 4, share: float = 0.6):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, m, n, dim) for m, n in SIZES]
    preds = [torch.randn(shape, generator=generator) for shape in shapes]
    targets = [torch.randn(shape, generator=generator) for shape in shapes]
    valids = [torch.rand(shape[:-1], generator=generator) < share for shape in shapes]
    for valid in valids:
        valid[0, 0, 0] = True
    return preds, targets, valids


@given(
    st.integers(0, 2**32 - 1),
    st.one_of(st.none(), st.lists(st.floats(0, 3), min_size=3, max_size=3).filter(any)),
)
def test_equals_a_loop(seed, weights) -> None:
    """Law 7. Traps: a mean of means; a factor of the width, of levels or of the batch left over."""
    preds, targets, valids = levels(seed)
    ours = [pred.clone().requires_grad_() for pred in preds]
    theirs = [pred.clone().requires_grad_() for pred in preds]
    total, parts = hierarchical_loss(ours, targets, valids, weights=weights, loss=masked_mse)

    expected = torch.zeros(())
    for level, (pred, target, valid) in enumerate(zip(theirs, targets, valids, strict=True)):
        terms = [
            (pred[b, m, n, j] - target[b, m, n, j]) ** 2
            for b, m, n in valid.nonzero().tolist()
            for j in range(pred.shape[-1])
        ]
        mean = sum(terms) / len(terms)
        torch.testing.assert_close(parts[f"level_{level}"], mean, rtol=1e-5, atol=1e-6)
        expected = expected + mean * (1 / 3 if weights is None else weights[level])
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    total.backward()
    expected.backward()
    for one, other in zip(ours, theirs, strict=True):
        grad = torch.zeros_like(one) if one.grad is None else one.grad  # a level of weight 0
        torch.testing.assert_close(grad, other.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0], SoftOptimalWeights()], ids=repr)
def test_a_levels_size_is_no_weight(weights) -> None:
    """The same errors on 4 cells and on 400, a tenth of them valid, count the same."""
    torch.manual_seed(0)
    small, other = torch.randn(2, 4, 3), torch.randn(2, 9, 3)
    large = small.repeat(1, 100, 1)
    valid = torch.zeros(2, 400, dtype=torch.bool)
    valid[:, :40] = True
    full = torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)
    totals = []
    for first, there in ((small, full[0]), (large, valid)):
        preds = [first, other]
        zeros = [torch.zeros_like(pred) for pred in preds]
        totals.append(hierarchical_loss(preds, zeros, [there, full[1]], weights=weights)[0])
    torch.testing.assert_close(*totals)


@pytest.mark.parametrize(
    "weights", [None, decay_weights(3), SoftOptimalWeights(), UncertaintyWeights(3)], ids=repr
)
def test_parts_carry_no_graph(weights) -> None:
    """Trap: parts that are kept for a curve keep the graph of every step alive."""
    preds, targets, valids = levels(0)
    preds = [pred.requires_grad_() for pred in preds]
    total, parts = hierarchical_loss(preds, targets, valids, weights=weights)
    assert total.requires_grad
    assert not any(part.requires_grad for part in parts.values())


@pytest.mark.parametrize(
    "weights",
    [(1, 2, 0.5), np.array([1.0, 2.0, 0.5]), OmegaConf.create([1, 2, 0.5])],
    ids=["tuple", "numpy", "omegaconf"],
)
def test_weights_come_from_configuration_files_and_numpy(weights) -> None:
    expected = hierarchical_loss(*levels(0), weights=[1.0, 2.0, 0.5])[0]
    assert hierarchical_loss(*levels(0), weights=weights)[0] == expected


def test_one_level_is_the_loss_itself() -> None:
    preds, targets, valids = (each[:1] for each in levels(0))
    total, parts = hierarchical_loss(preds, targets, valids)
    torch.testing.assert_close(total, masked_smooth_l1(preds[0], targets[0], valids[0]))
    assert list(parts) == ["level_0"]


def test_the_loss_and_its_options_reach_every_level() -> None:
    preds, targets, valids = levels(0)
    loss = functools.partial(masked_smooth_l1, beta=0.1)
    for chosen in (masked_l1, loss):
        _, parts = hierarchical_loss(preds, targets, valids, loss=chosen)
        for part, *level in zip(parts.values(), preds, targets, valids, strict=True):
            assert torch.equal(part, chosen(*level))


def test_a_level_without_anything_valid() -> None:
    """It adds 0, leaves finite gradients, and takes no weight from the others."""
    preds, targets, valids = levels(0)
    valids[1] = valids[1] & False
    alone, _ = hierarchical_loss(preds[::2], targets[::2], valids[::2], weights=[1.0, 1.0])
    for weights in ([1.0, 1.0, 1.0], None, SoftOptimalWeights(), UncertaintyWeights(3)):
        inputs = [pred.clone().requires_grad_() for pred in preds]
        total, parts = hierarchical_loss(inputs, targets, valids, weights=weights)
        assert parts["level_1"] == 0
        total.backward()
        assert not inputs[1].grad.any()
        assert all(torch.isfinite(pred.grad).all() and pred.grad.any() for pred in inputs[::2])
        if weights == [1.0, 1.0, 1.0]:
            torch.testing.assert_close(total, alone)
        if isinstance(weights, SoftOptimalWeights):
            two = hierarchical_loss(preds[::2], targets[::2], valids[::2], weights=weights)[0]
            torch.testing.assert_close(total, two)
        if isinstance(weights, UncertaintyWeights):
            assert weights.raw.grad[1] == 0 and weights.raw.grad[0] != 0
    nothing = [valid & False for valid in valids]
    for weights in (None, SoftOptimalWeights(), UncertaintyWeights(3)):
        inputs = [pred.clone().requires_grad_() for pred in preds]
        total, _ = hierarchical_loss(inputs, targets, nothing, weights=weights)
        total.backward()
        assert total == 0
        assert not any(pred.grad.any() for pred in inputs)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"targets": 2},
            ValueError,
            "3 preds, 2 targets and 3 valids: must be as many of each as there are levels, at "
            "least one",
        ),
        (
            {"preds": 0, "targets": 0, "valids": 0},
            ValueError,
            "0 preds, 0 targets and 0 valids: must be as many of each as there are levels, at "
            "least one",
        ),
        (
            {"weights": [1.0, 0.5]},
            ValueError,
            "weights=(1.0, 0.5): must be 3, one for each level, not all 0",
        ),
        ({"weights": [1.0, -0.5, 1]}, ValueError, "weights[1]=-0.5: must be at least 0"),
        ({"weights": [1.0, float("nan"), 1]}, ValueError, "weights[1]=nan: must be finite"),
        (
            {"weights": [0, 0.0, 0]},
            ValueError,
            "weights=(0.0, 0.0, 0.0): must be 3, one for each level, not all 0",
        ),
        (
            {"weights": [1.0, "a", 1]},
            TypeError,
            "weights[1]='a': must be a number, got str",
        ),
        (
            {"weights": "fine"},
            TypeError,
            "weights='fine': must be a sequence of numbers, got str",
        ),
        (
            {"weights": UncertaintyWeights(2)},
            ValueError,
            "losses (3,): must be a vector, one for each of 2 levels",
        ),
        (
            {"loss": functools.partial(masked_mse, reduction="sample")},
            ValueError,
            "loss: must give a single number, but gives (3,) on level 0",
        ),
    ],
)
def test_errors(change, error, text) -> None:
    arguments = dict(zip(("preds", "targets", "valids"), levels(0), strict=True))
    for name, value in change.items():
        arguments[name] = arguments[name][:value] if name in arguments else value
    with pytest.raises(error) as raised:
        hierarchical_loss(**arguments)
    assert str(raised.value) == text


@pytest.mark.no_hook
@pytest.mark.parametrize("weights", [None, "decay", "soft", "uncertainty"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_compiles_as_one_graph(weights, autocast) -> None:
    torch.compiler.reset()
    chosen = {
        None: None,
        "decay": decay_weights(3),
        "soft": SoftOptimalWeights(),
        "uncertainty": UncertaintyWeights(3),
    }[weights]
    _, targets, valids = levels(0)
    inputs = [torch.randn(*target.shape[:-1], 6) for target in targets]

    def step(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            preds = [x @ weight for x in inputs]
            total, parts = hierarchical_loss(preds, targets, valids, weights=chosen)
        return total, parts["level_2"]

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        weight = torch.linspace(-1, 1, 24).view(6, 4).requires_grad_()
        total, part = function(weight)
        assert total.dtype == torch.float32
        total.backward()
        results.append((total.detach(), part.detach(), weight.grad))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_a_level_of_weight_0_is_only_reported():
    """Trap: 0 times infinity."""
    pred = [torch.ones(1, 4, 2, requires_grad=True), torch.full((1, 2, 2), math.inf)]
    valid = [torch.ones(each.shape[:-1], dtype=torch.bool) for each in pred]
    zeros = [torch.zeros_like(each) for each in pred]
    total, parts = hierarchical_loss(pred, zeros, valid, weights=[1.0, 0.0], loss=masked_mse)
    assert total == 1 and parts["level_1"] == math.inf
    total.backward()
    assert pred[0].grad.isfinite().all()


def test_weights_that_give_a_vector_raise():
    tokens = [torch.ones(1, 4, 2)] * 2
    valid = [torch.ones(1, 4, dtype=torch.bool)] * 2
    with pytest.raises(ValueError, match=r"weights: must give a single number, but gives \(2,\)"):
        hierarchical_loss(tokens, tokens, valid, weights=lambda losses: losses)


@pytest.mark.no_hook
@pytest.mark.parametrize("name", ["preds", "targets", "valids"])
@pytest.mark.parametrize("given", [None, torch.ones(3, 2, 2)], ids=["none", "tensor"])
def test_what_is_no_sequence_of_levels_raises(name, given) -> None:
    arguments = dict(zip(("preds", "targets", "valids"), levels(0), strict=True)) | {name: given}
    kind = "NoneType" if given is None else "torch.Tensor"
    with pytest.raises(TypeError) as raised:
        hierarchical_loss(**arguments)
    assert str(raised.value) == f"{name}: must be a sequence of tensors, got {kind}"


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"loss": None}, "loss=None: must be a function, got NoneType"),
        (
            {"loss": lambda *_: 0.5},
            "loss: must give a torch.Tensor, but gives float on level 0",
        ),
        ({"weights": lambda losses: 0.5}, "weights: must give a torch.Tensor, but gives float"),
    ],
)
def test_functions_must_return_tensors(arguments, text) -> None:
    """Trap: an error of this library's own code, about an attribute of a float."""
    with pytest.raises(TypeError) as raised:
        hierarchical_loss(*levels(0), **arguments)
    assert str(raised.value) == text
