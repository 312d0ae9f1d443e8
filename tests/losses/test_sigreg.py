"""SIGReg: closed forms, what it says about collapse, and how much memory it takes."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from jepakit.losses import lejepa, lejepa_loss, sigreg


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_equals_the_closed_form_of_the_whole_integral() -> None:
    """Epps and Pulley 1983: over all t the integral is three sums of exponentials.

    In one dimension every slice is +1 or -1, and the statistic is even.
    """
    x = torch.randn(40, 1, dtype=torch.float64, generator=seeded()) * 1.7 + 0.4
    n, gaps = len(x), x - x.T
    closed = math.sqrt(2 * math.pi) * (
        torch.exp(-gaps.square() / 2).sum() / n**2
        - 2 / math.sqrt(2) * torch.exp(-x.square() / 4).sum() / n
        + 1 / math.sqrt(3)
    )
    ours = sigreg(x, num_slices=3, num_points=400, t_max=12.0)
    torch.testing.assert_close(ours, n * closed, rtol=1e-8, atol=0)


def test_expectation_under_the_normal() -> None:
    """The integral of (1 - exp(-t^2)) exp(-t^2 / 2), whatever the number of samples."""
    a, b = 3 / math.sqrt(2), 3 * math.sqrt(1.5)
    expected = math.sqrt(2 * math.pi) * (math.erf(a) - math.erf(b) / math.sqrt(3))
    for n in (50, 1000):
        values = [
            sigreg(torch.randn(n, 32, generator=seeded(i)), num_slices=64, generator=seeded(i))
            for i in range(30)
        ]
        assert float(torch.stack(values).mean()) == pytest.approx(expected, rel=0.1)


def test_a_collapse_to_zero_in_closed_form() -> None:
    n = 200
    inside = [math.exp(-(t**2) / 2) for t in torch.linspace(-3, 3, 601).tolist()]
    expected = 0.01 * sum((1 - w) ** 2 * w for w in inside) * n
    assert float(sigreg(torch.zeros(n, 8))) == pytest.approx(expected, rel=2e-3)


def test_shrinking_is_seen() -> None:
    """Trap: projections standardised first give the same statistic at std 1 and at collapse."""
    x = torch.randn(500, 16, generator=seeded())
    values = [float(sigreg(s * x, generator=seeded(1))) for s in (1.0, 0.5, 0.1, 0.01)]
    assert values == sorted(values)
    assert values[1] > 5 * values[0]
    assert values[-1] > 100 * values[0]


@pytest.mark.parametrize("kind", ["constant", "rank one"])
def test_collapsed_features_are_driven_apart(kind: str) -> None:
    """Law 11. Equal samples get equal gradients, by symmetry; a small difference grows."""
    noise = torch.randn(64, 8, dtype=torch.float64, generator=seeded())
    line = torch.linspace(-1, 1, 64, dtype=torch.float64)[:, None] * torch.ones(1, 8)
    base = 0.1 * torch.ones(64, 8, dtype=torch.float64) if kind == "constant" else line
    exact = base.clone().requires_grad_()
    sigreg(exact, generator=seeded(1)).backward()
    assert exact.grad.abs().max() > 0.02
    if kind == "constant":
        torch.testing.assert_close(exact.grad, exact.grad[:1].expand_as(exact))

    x = (base + 1e-4 * noise).requires_grad_()
    sigreg(x, num_slices=256, generator=seeded(1)).backward()
    after = (x - x.grad).detach()

    def spread(y: Tensor) -> Tensor:
        values = torch.linalg.svdvals(y - y.mean(dim=0))
        return values[0] if kind == "constant" else values[1:].max()

    assert spread(after) > 1.1 * spread(x.detach())


def test_rank_one_leaves_its_line() -> None:
    """Losses of the covariance alone keep rank one for ever; this one does not."""
    x = torch.linspace(-2, 2, 64, dtype=torch.float64)[:, None] * torch.ones(1, 8)
    x.requires_grad_()
    sigreg(x, num_slices=256, generator=seeded(1)).backward()
    values = torch.linalg.svdvals(x.grad)
    assert values[1] > 0.02 * values[0]


def test_every_argument_matters() -> None:
    x = torch.randn(30, 4, generator=seeded())
    base = sigreg(x, generator=seeded(1))
    assert torch.equal(base, sigreg(x, generator=seeded(1)))
    for change in ({"num_slices": 7}, {"num_points": 5}, {"t_max": 4.0}, {"generator": seeded(2)}):
        assert sigreg(x, **({"generator": seeded(1)} | change)) != base


def test_slices_do_not_depend_on_the_type() -> None:
    x = torch.randn(30, 4, generator=seeded())
    wide = sigreg(x.double(), generator=seeded(1))
    torch.testing.assert_close(sigreg(x, generator=seeded(1)).double(), wide, rtol=1e-5, atol=0)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and slices are cut to blocks, none of which may be lost or counted twice."""
    found = []
    for block, rows in ((2**21, 2**13), (12, 4)):
        monkeypatch.setattr(lejepa, "_BLOCK_ELEMENTS", block)
        monkeypatch.setattr(lejepa, "_BLOCK_ROWS", rows)
        x = torch.randn(11, 5, dtype=torch.float64, generator=seeded()).requires_grad_()
        value = sigreg(x, num_slices=10, generator=seeded(1))
        found.append((value, *torch.autograd.grad(value, x)))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"num_slices": 0}, ValueError, "num_slices=0: must be at least 1"),
        ({"num_points": 1}, ValueError, "num_points=1: must be at least 2"),
        ({"t_max": 0.0}, ValueError, "t_max=0: must be above 0"),
        ({"generator": 3}, TypeError, r"generator=3: must be a torch\.Generator or None"),
    ],
)
@pytest.mark.no_hook
def test_bad_arguments(change: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        sigreg(torch.randn(4, 3), **change)
    with pytest.raises(error, match=text):
        lejepa_loss(torch.randn(2, 4, 3), **change)


WITHIN = """
import resource, sys, torch
from jepakit.losses import sigreg
rows, dim, megabytes = map(int, sys.argv[1:])
torch.set_num_threads(1)
x = torch.randn(rows, dim).requires_grad_()
sigreg(x[:64], num_slices=64).backward()
held = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + megabytes * 2**20,) * 2)
sigreg(x, num_slices=1024).backward()
"""


def fits(rows: int, dim: int, megabytes: int) -> bool:
    """True if forward and backward run within so many megabytes more than are held before.

    Peaks of resident memory say less: those of the imports, and what the system takes back, hide
    them.
    """
    command = [sys.executable, "-c", WITHIN, *map(str, (rows, dim, megabytes))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "alloc" in done.stderr or "memory" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("rows", "dim"), [(4096, 512), (48_000, 64)])
def test_memory(rows: int, dim: int) -> None:
    """Trap: tensors of [rows, slices, points], kept for the backward: one has 285 MB at 4,096 rows
    and 3,300 MB at 48,000."""
    assert fits(rows, dim, 250)
    assert not fits(rows, dim, 10), "the limit is none"
