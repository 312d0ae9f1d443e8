"""`TargetCentering`: statistics by position over valid features, of a batch or many."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jepakit.losses import TargetCentering


def batch(
    seed: int, size: int, grid_size: tuple[int, int] = (2, 3), dim: int = 4
) -> tuple[Tensor, Tensor]:
    """Features with another mean at each position, and a ragged `valid`."""
    random = torch.Generator().manual_seed(seed)
    num_positions = grid_size[0] * grid_size[1]
    offset = 5 * torch.randn(num_positions, dim, generator=torch.Generator().manual_seed(99))
    features = offset + torch.randn(size, num_positions, dim, generator=random)
    return features.double(), torch.rand(size, num_positions, generator=random) < 0.6


def naive(
    batches: list[tuple[Tensor, Tensor]], momentum: float, scale: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The last batch's result, the means, the deviations and the matrix, entry by entry.

    A valid feature has the weight momentum ** (later batches that saw its position).
    """
    _, num_positions, dim = batches[0][0].shape
    totals = torch.zeros(num_positions, dim, dtype=torch.float64)
    weights = torch.zeros(num_positions, 1, dtype=torch.float64)
    products, weight = torch.zeros(dim, dim, dtype=torch.float64), 0
    for features, valid in batches:
        for p in range(num_positions):
            rows = features[valid[:, p], p]
            if len(rows):
                totals[p] = momentum * totals[p] + rows.sum(0)
                weights[p] = momentum * weights[p] + len(rows)
        if valid.any():
            products, weight = momentum * products, momentum * weight + int(valid.sum())
            for image, p in valid.nonzero().tolist():
                row = features[image, p] - totals[p] / weights[p]
                products = products + torch.outer(row, row)
    mean, covariance = totals / weights, products / weight
    std = (covariance.diagonal() + 1e-5).sqrt()
    if scale == "whiten":
        eye = torch.eye(dim, dtype=torch.float64)
        ridge = covariance + (1e-2 * covariance.trace() / dim + 1e-5) * eye
        values, vectors = torch.linalg.eigh(ridge)
        matrix = vectors @ (values**-0.5).diag() @ vectors.T
    else:
        std = std if scale == "channel" else torch.ones(dim, dtype=torch.float64)
        matrix = (1 / std).diag()
    features, valid = batches[-1]
    result = torch.where(valid.unsqueeze(-1), (features - mean) @ matrix, 0)
    return result, mean, std, matrix


@given(
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=4),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    scale=st.sampled_from(["none", "channel", "whiten"]),
    seed=st.integers(0, 2**31 - 10),
)
def test_equals_a_loop_over_valid_features(
    sizes: list[int], momentum: float, scale: str, seed: int
) -> None:
    """Traps: padding in the mean; averages that start at 0; a mean of means where counts differ."""
    centre = TargetCentering((2, 3), 4, scale=scale, momentum=momentum).double()
    batches = [batch(seed + number, size) for number, size in enumerate(sizes)]
    if not any(bool(valid.any()) for _, valid in batches):
        return
    for features, valid in batches:
        poisoned = torch.where(valid.unsqueeze(-1), features, torch.nan)
        result = centre(poisoned, valid)
    expected, mean, std, matrix = naive(batches, momentum, scale)
    seen = ~mean.isnan()
    torch.testing.assert_close(centre.mean[seen], mean[seen])
    torch.testing.assert_close(centre.std, std)
    torch.testing.assert_close(result, expected)
    # Eval mode: the same averages, unchanged by what it is given; positions without any are finite.
    centre.eval()
    features, _ = batch(seed + 9, 1)
    shown = centre(features)
    torch.testing.assert_close(shown[:, seen], ((features - mean) @ matrix)[:, seen])
    assert shown.isfinite().all()
    torch.testing.assert_close(centre.mean[seen], mean[seen])


@given(seed=st.integers(0, 2**31), size=st.integers(2, 6))
def test_nothing_that_depends_on_position_alone_is_left(seed: int, size: int) -> None:
    """Trap: targets that are functions of position, which are predicted without an image."""
    features, _ = batch(seed, size)
    plain, scaled = (
        TargetCentering((2, 3), 4, scale=scale).double() for scale in ("none", "channel")
    )
    other = features + torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(plain(other), plain(features))
    torch.testing.assert_close(scaled(other), scaled(features))
    torch.testing.assert_close(scaled(features).mean(dim=0), torch.zeros(6, 4).double())
    # A small part that differs between images does not fade: one variance for every channel.
    small = features.mean(dim=0) + 0.05 * (features - features.mean(dim=0))
    variance = small.var(dim=0, correction=0).mean(dim=0)
    torch.testing.assert_close(
        scaled(small).square().mean(dim=(0, 1)), variance / (variance + 1e-5)
    )
    constant = features[:1].expand(size, -1, -1)
    torch.testing.assert_close(scaled(constant), torch.zeros_like(constant), atol=1e-9, rtol=0)


@given(seed=st.integers(0, 2**31))
def test_whitened_channels_are_uncorrelated_and_turned_as_little_as_possible(seed: int) -> None:
    """Trap: a loss that one direction of large variance fills alone."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, 4, generator=random).double()
    features = torch.randn(200, 6, 4, generator=random).double() @ mixing @ mixing
    rows = TargetCentering((2, 3), 4, scale="whiten").double()(features).flatten(0, 1)
    covariance = rows.T @ rows / len(rows)
    kept = torch.linalg.eigvalsh((features - features.mean(0)).flatten(0, 1).T.cov(correction=0))
    expected = kept / (kept + 1e-2 * kept.mean() + 1e-5)
    torch.testing.assert_close(torch.linalg.eigvalsh(covariance).sort()[0], expected.sort()[0])
    # A symmetric matrix: no rotation, so that a target means the same from step to step.
    centred = (features - features.mean(0)).flatten(0, 1)
    matrix = torch.linalg.lstsq(centred, rows).solution
    torch.testing.assert_close(matrix, matrix.T)


def test_a_position_that_never_was_valid_gets_the_mean_of_all() -> None:
    centre = TargetCentering((3,), 1, scale="none").double()
    features = torch.tensor([[[1.0], [5.0], [7.0]], [[3.0], [7.0], [9.0]]]).double()
    valid = torch.tensor([[True, True, False]] * 2)
    assert centre(features, valid).squeeze(-1).tolist() == [[-1, -1, 0], [1, 1, 0]]
    assert centre.eval()(features).squeeze(-1)[0].tolist() == [-1, -1, 3]


def test_a_batch_without_anything_valid_changes_nothing() -> None:
    centre = TargetCentering((2, 3), 4, momentum=0.5)
    first = centre(batch(0, 4)[0].float())
    before = copy.deepcopy(centre.state_dict())
    nothing = torch.zeros(4, 6, dtype=torch.bool)
    assert torch.equal(centre(first, nothing), torch.zeros_like(first))
    assert all(torch.equal(before[name], value) for name, value in centre.state_dict().items())


def test_a_vector_that_is_not_finite_never_enters() -> None:
    """Trap: one NaN, and the average is NaN for the rest of the run."""
    features, _ = batch(0, 5)
    broken = features.clone()
    broken[0, 2, 1], broken[1, 3, 0] = torch.nan, torch.inf
    centre, clean = (TargetCentering((2, 3), 4, momentum=0.9).double() for _ in range(2))
    valid = broken.isfinite().all(dim=-1)
    result, expected = centre(broken), clean(broken, valid)
    assert not result[0, 2].isfinite().all()
    torch.testing.assert_close(result[valid], expected[valid])
    torch.testing.assert_close(centre.mean, clean.mean)


def test_resumed_is_uninterrupted() -> None:
    """Law 9; also through deepcopy and pickle (law 13)."""
    centre = TargetCentering((2, 3), 4, momentum=0.7)
    for step in range(3):
        centre(batch(step, 4)[0].float())
    resumed = TargetCentering((2, 3), 4, momentum=0.7)
    resumed.load_state_dict(centre.state_dict())
    others = [resumed, copy.deepcopy(centre), pickle.loads(pickle.dumps(centre))]
    for step in range(3, 6):
        features = batch(step, 4)[0].float()
        expected = centre(features)
        assert all(torch.equal(other(features), expected) for other in others)
    assert not list(centre.parameters())


def test_training_depends_on_the_batch_and_eval_does_not() -> None:
    """Exempt from law 5 in training, as its purpose demands; law 5 holds in eval mode."""
    centre = TargetCentering((2, 3), 4, momentum=0.5)
    features = batch(0, 6)[0].float()
    assert not torch.allclose(centre(features)[:3], centre(features[:3]))
    centre.eval()
    torch.testing.assert_close(centre(features)[:1], centre(features[:1]))


def test_no_gradient_reaches_the_teacher() -> None:
    """Trap: with the student's own features as targets the loss falls to 0."""
    features = batch(0, 4)[0].requires_grad_()
    assert not TargetCentering((2, 3), 4)(features).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """In float16 a sum of squares of 300 is infinite."""
    features = (300 * batch(0, 8)[0]).to(dtype)
    half, full = TargetCentering((2, 3), 4), TargetCentering((2, 3), 4)
    with torch.autocast("cpu", torch.bfloat16):
        result = half(features)
    assert result.dtype == dtype and half.sums.dtype == torch.float32
    torch.testing.assert_close(result, full(features.float()).to(dtype))


def test_large_means_do_not_cancel_the_deviation() -> None:
    """Trap: variance as a difference of mean squares, in float32."""
    features = 1000 + batch(0, 64)[0]
    single, double = TargetCentering((2, 3), 4), TargetCentering((2, 3), 4).double()
    torch.testing.assert_close(
        single(features.float()), double(features).float(), atol=2e-3, rtol=0
    )


@pytest.mark.no_hook
@pytest.mark.parametrize("scale", ["channel", "whiten"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_compiles_as_one_graph(momentum: float, scale: str) -> None:
    """Law 14, in both modes."""
    torch.compiler.reset()
    centre = TargetCentering((2, 3), 4, scale=scale, momentum=momentum)
    other = copy.deepcopy(centre)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for step in range(3):
        features, valid = batch(step, 4)
        torch.testing.assert_close(
            compiled(features.float(), valid), centre(features.float(), valid)
        )
    torch.testing.assert_close(other.sums, centre.sums)
    centre.eval()
    other.eval()
    torch.testing.assert_close(compiled(features.float()), centre(features.float()))


@pytest.mark.no_hook
def test_what_cannot_be_centred_raises() -> None:
    features = batch(0, 4)[0].float()
    centre = TargetCentering((2, 3), 4)
    with pytest.raises(RuntimeError, match="in eval mode has no averages yet"):
        TargetCentering((2, 3), 4).eval()(features)
    with pytest.raises(ValueError, match=r"features \(1, 6, 4\): must be of at least 2 images"):
        centre(features[:1])
    assert TargetCentering((2, 3), 4, momentum=0.5)(features[:1]).isfinite().all()
    with pytest.raises(
        ValueError, match=r"features \(4, 5, 4\): must hold the whole grid \(2, 3\)"
    ):
        centre(features[:, :5])
    with pytest.raises(ValueError, match=r"valid \(4, 5\): must have the shape of features"):
        centre(features, torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"averages are torch\.bfloat16"):
        TargetCentering((2, 3), 4).bfloat16()(features)
    with pytest.raises(ValueError, match=r"momentum=1: must lie in \[0, 1\)"):
        TargetCentering((2, 3), 4, momentum=1.0)


def test_repr_shows_the_arguments() -> None:
    centre = TargetCentering([2, 3], 4, scale="none", momentum=0.5)
    assert repr(centre) == "TargetCentering((2, 3), 4, scale='none', momentum=0.5)"
    assert repr(eval(repr(centre))) == repr(centre)
