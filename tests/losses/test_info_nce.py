"""InfoNCE by hand: false negatives, the queue, one-sided and symmetric, and collapse."""

import math

import pytest
import torch

from jepakit.losses import FeatureQueue, LearnableTemperature, info_nce


def test_equal_features_give_the_logarithm_of_the_candidates() -> None:
    """Law 11: at full collapse every candidate is as good, and no gradient tells samples apart."""
    x = torch.ones(8, 4, requires_grad=True)
    for negatives, expected in ((None, math.log(8)), (torch.ones(5, 4), math.log(13))):
        value = info_nce(x, x, negatives=negatives)
        assert value.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(gradient, gradient[:1].expand_as(gradient))


def test_a_small_difference_is_driven_apart() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.ones(16, 4, dtype=torch.float64)
    x += 1e-4 * torch.randn(16, 4, generator=random, dtype=torch.float64)
    x.requires_grad_()
    info_nce(x, x).backward()
    after = (x - 2 * x.grad).detach()
    assert after.std(dim=0).norm() > 1.05 * x.detach().std(dim=0).norm()


def test_false_negatives_are_no_negatives() -> None:
    """Trap: samples of the same kind pushed apart. As if they were not in the batch."""
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    ids = torch.tensor([0, 1, 0, 2, 1])
    queued = torch.randn(2, 3)
    same = torch.cat([ids[:, None] == ids, ids[:, None] == torch.tensor([0, 9])], dim=1)
    terms = []
    for i in range(5):
        others = [y[i], *(y[j] for j in range(5) if ids[j] != ids[i])]
        others += [queued[k] for k in range(2) if not same[i, 5 + k]]
        scores = torch.cosine_similarity(x[i], torch.stack(others), dim=-1) / 0.1
        terms.append(torch.logsumexp(scores, 0) - scores[0])
    ours = info_nce(x, y, negatives=queued, false_negatives=same)
    torch.testing.assert_close(ours, torch.stack(terms).mean())
    # Whether the own key is marked does not matter.
    unmarked = same & ~torch.eye(5, 7, dtype=torch.bool)
    assert info_nce(x, y, negatives=queued, false_negatives=unmarked) == ours
    assert info_nce(x, y, negatives=queued) > ours


def test_symmetric_with_a_one_sided_mask() -> None:
    """The way back reads the mask the other way round, and knows no queue of keys."""
    x, y, queued = torch.randn(4, 3), torch.randn(4, 3), torch.randn(6, 3)
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[0, 2] = mask[1, 7] = True
    there = info_nce(x, y, negatives=queued, false_negatives=mask)
    back = info_nce(y, x, false_negatives=mask[:, :4].T)
    both = info_nce(x, y, negatives=queued, false_negatives=mask, symmetric=True)
    torch.testing.assert_close(both, (there + back) / 2)


def test_all_others_false_leaves_nothing_to_learn() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    value = info_nce(x, x.detach(), false_negatives=torch.ones(4, 4, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert not x.grad.any()


def test_the_temperature_learns() -> None:
    temperature = LearnableTemperature()
    x = torch.randn(6, 3)
    info_nce(x, x + 0.1 * torch.randn(6, 3), temperature=temperature()).backward()
    assert temperature.theta.grad != 0
    assert info_nce(x, x, temperature=0.1) != info_nce(x, x, temperature=0.2)


@pytest.mark.no_hook
def test_one_graph_with_a_learned_temperature() -> None:
    """Law 14. Trap: whether the temperature is above 0, asked inside the graph."""
    temperature = LearnableTemperature()
    x, y = torch.randn(6, 3), torch.randn(6, 3)

    def loss() -> torch.Tensor:
        return info_nce(x, y, temperature=temperature())

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    found = [
        (value, *torch.autograd.grad(value, temperature.theta)) for value in (compiled(), loss())
    ]
    assert found[0] == found[1] and found[0][1] != 0


def test_scale_of_the_features_does_not_matter() -> None:
    x, y = torch.randn(6, 3), torch.randn(6, 3)
    torch.testing.assert_close(info_nce(x, y), info_nce(1e3 * x, 10 * y))


def test_a_step_with_the_queue() -> None:
    """Pushing before the backward leaves the graph alone."""
    queue = FeatureQueue(8, 3)
    queue.push(torch.randn(5, 3))
    x, y = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    value = info_nce(x, y, negatives=queue.negatives)
    queue.push(y)
    value.backward()
    assert len(queue.negatives) == 8


def test_an_empty_queue_adds_nothing() -> None:
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    assert info_nce(x, y, negatives=FeatureQueue(8, 3).negatives) == info_nce(x, y)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"temperature": 0.0}, ValueError, r"temperature=0\.0: must be above 0"),
        ({"temperature": "hot"}, TypeError, "temperature='hot': must be a number"),
        ({"temperature": torch.ones(2)}, ValueError, r"temperature \(2,\): must be a scalar"),
        ({"negatives": torch.ones(2, 4)}, ValueError, r"negatives \(2, 4\): must have .* \[k, 3\]"),
        ({"symmetric": 1}, TypeError, "symmetric=1: must be a bool"),
        (
            {"false_negatives": torch.ones(4, 3, dtype=torch.bool)},
            ValueError,
            r"false_negatives \(4, 3\): must have the shape \[rows, candidates\], \(4, 4\)",
        ),
        ({"false_negatives": torch.ones(4, 4)}, TypeError, "false_negatives: must be bool"),
        ({"key": torch.ones(1, 3)}, ValueError, r"key \(1, 3\): must have the shape of query"),
    ],
)
@pytest.mark.no_hook
def test_bad_arguments(change: dict, error: type[Exception], text: str) -> None:
    good = {"query": torch.randn(4, 3), "key": torch.randn(4, 3)}
    with pytest.raises(error, match=text):
        info_nce(**(good | change))


@pytest.mark.parametrize("temperature", [-1.0, 0.0, math.nan])
def test_a_tensor_that_is_no_temperature_raises(temperature: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        info_nce(torch.eye(4), torch.eye(4), temperature=torch.tensor(temperature))
