"""Barlow Twins and KoLeo: by hand, and what they do to features that collapse."""

import math
import sys

import pytest
import torch

from jepakit.losses import barlow, koleo


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def collapsed(kind: str, noise: float) -> torch.Tensor:
    base = torch.ones(32, 4, dtype=torch.float64)
    if kind == "rank one":
        base = base * torch.linspace(1, 2, 32, dtype=torch.float64)[:, None]
    return base + noise * torch.randn(32, 4, dtype=torch.float64, generator=seeded())


@pytest.mark.parametrize("kind", ["constant", "rank one"])
def test_koleo_drives_collapsed_features_apart(kind: str) -> None:
    """Law 11. One direction: no gradient, by symmetry. Next to it: one over the distance."""
    exact = collapsed(kind, 0.0).requires_grad_()
    koleo(exact).backward()
    assert exact.grad.isfinite().all()
    assert exact.grad.abs().max() < 1e-6
    sizes = []
    for noise in (1e-2, 1e-4):
        x = collapsed(kind, noise).requires_grad_()
        koleo(x).backward()
        sizes.append(x.grad.norm().item())
        after = (x - 1e-3 * noise**2 * x.grad).detach()
        assert koleo(after) < koleo(x)
    assert sizes[1] == pytest.approx(100 * sizes[0], rel=0.3)


def test_koleo_does_not_see_length() -> None:
    x = torch.randn(10, 3, generator=seeded())
    torch.testing.assert_close(koleo(x * torch.rand(10, 1).add(0.1)), koleo(x))


def test_koleo_tells_close_neighbours_apart_in_float32() -> None:
    """Trap: by cosines, samples 1e-4 apart all have a cosine of exactly 1, and any is nearest."""
    angles = torch.linspace(0, 1, 50, dtype=torch.float64).square() * 0.02 + 1
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(koleo(x.float()).double(), koleo(x), rtol=1e-3, atol=0)


def test_koleo_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(11, 3, generator=seeded())
    expected = koleo(x)
    monkeypatch.setattr(sys.modules["jepakit.losses.koleo"], "_CHUNK", 4)
    assert torch.equal(koleo(x), expected)


def test_koleo_eps_is_the_least_distance() -> None:
    x = torch.ones(4, 3)
    assert koleo(x, eps=1e-3).item() == pytest.approx(-math.log(1e-3))
    with pytest.raises(ValueError, match=r"eps=0\.0: must be above 0"):
        koleo(x, eps=0.0)


def test_barlow_of_collapsed_features() -> None:
    """Constant: d, and no gradient by symmetry. Next to it the gradient drives samples apart."""
    exact = collapsed("constant", 0.0).requires_grad_()
    value = barlow(exact, exact)
    value.backward()
    assert value.item() == pytest.approx(4)
    assert not exact.grad.abs().max() > 1e-9
    x = collapsed("constant", 1e-4).requires_grad_()
    barlow(x, x).backward()
    after = (x - 1e-4 * x.grad).detach()
    assert (after.std(dim=0) > 1.2 * x.detach().std(dim=0)).all()


def test_barlow_rank_one_is_penalised_off_the_diagonal() -> None:
    """Dimensions that all say the same: d (d - 1) correlations of one."""
    x = torch.randn(50, 1, generator=seeded()).expand(50, 6)
    assert barlow(x, x).item() == pytest.approx(0.0051 * 30, rel=1e-3)
    assert barlow(x, x, off_diagonal_weight=1.0).item() == pytest.approx(30, rel=1e-3)
    assert barlow(x, x, eps=1.0) > barlow(x, x)
    with pytest.raises(ValueError, match="off_diagonal_weight=-1: must be at least 0"):
        barlow(x, x, off_diagonal_weight=-1)
