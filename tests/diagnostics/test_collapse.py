"""The collapse monitor: detection within 50 steps, no false reports, and the text of reports."""

import copy
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepakit import CollapseMonitor
from jepakit.diagnostics import (
    Collapse,
    CollapseError,
    CollapseKind,
    CollapseWarning,
    Observation,
    Reference,
    effective_rank,
)
from jepakit.diagnostics.collapse import SIGNS, SignName
from jepakit.diagnostics.collapse.criteria import SignTracker, update_reference
from jepakit.losses import vicreg

DIM = 32
HALF = (torch.arange(DIM) < DIM // 2).float()
LINE = torch.randn(DIM, generator=torch.Generator().manual_seed(99))

Features = Callable[[int, Tensor], Tensor]
# What becomes of healthy rows x at a step after the beginning of the collapse, and what it is.
COLLAPSES: dict[str, tuple[Features, str]] = {
    "constant": (lambda s, x: torch.ones_like(x), "full"),
    "zero": (lambda s, x: 0 * x, "full"),
    "almost constant": (lambda s, x: 1 + 1e-4 * x, "full"),
    "rank one": (lambda s, x: x[:, :1] * LINE, "dimensional"),
    "rank one, with noise and a mean": (
        lambda s, x: x[:, :1] * LINE + 1e-3 * x + 5,
        "dimensional",
    ),
    "half dead": (lambda s, x: x * HALF, "dimensional"),
    "half dead, around a mean": (lambda s, x: x * HALF + 3, "dimensional"),
}
FALLS: dict[str, tuple[Features, str]] = {
    "two directions of 32": (lambda s, x: x * torch.where(torch.arange(DIM) < 2, 1, 0.01), "dim"),
    "half fades": (lambda s, x: x * torch.where(HALF > 0, 1, 0.8**s), "dim"),
    "shrinks by 2 %": (lambda s, x: 0.98**s * x, "slow"),
    "shrinks by 5 %": (lambda s, x: 0.95**s * x, "slow"),
    "shrinks around a mean": (lambda s, x: 2 + 0.95**s * x, "slow"),
    "the mean outgrows all": (lambda s, x: 1.06**s * 3 + x, "slow"),
    "shrinks fast": (lambda s, x: 0.75**s * x, "full"),
}


def watch(features: Features, steps: int, rows: int = 64, **options: object) -> list[Collapse]:
    monitor = CollapseMonitor(action="record", **options)
    random = torch.Generator().manual_seed(0)
    found = []
    for step in range(steps):
        seen = monitor.update(features(step, torch.randn(rows, DIM, generator=random)))
        found += [] if seen is None else [seen]
    return found


@pytest.mark.parametrize("rows", [16, 64])  # below the width, and above
@pytest.mark.parametrize("name", COLLAPSES)
def test_collapsed_from_the_first_step_on(name: str, rows: int) -> None:
    """Law 11. No reference is needed."""
    features, kind = COLLAPSES[name]
    found = watch(features, 50, rows)
    assert [(each.kind, each.first_step, each.step) for each in found] == [(kind, 0, 4)]
    assert [each.step for each in watch(features, 50, rows, every=10)] == [4]


@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("name", [*COLLAPSES, *FALLS])
def test_collapse_of_a_healthy_run(name: str, rows: int) -> None:
    features, kind = (COLLAPSES | FALLS)[name]
    start = 15
    found = watch(lambda s, x: features(s - start, x) if s >= start else x, start + 50, rows)
    assert found
    first = found[0]
    assert first.kind.startswith(kind)
    assert start < first.step < start + 50
    assert first.first_step <= first.step
    if name in COLLAPSES:
        assert (first.first_step, first.step) == (start, start + 4)
    if kind == "slow":
        assert abs(first.first_step - start) <= 9
    assert [each.kind for each in found].count(first.kind) == 1  # reported once


def test_slower_shrinkage_takes_longer_and_is_found() -> None:
    assert watch(lambda s, x: 0.99**s * x, 50) == []
    assert [each.kind for each in watch(lambda s, x: 0.99**s * x, 90)] == ["slow"]
    # Half a percent a step, in noise of batches that hides it over 30 steps.
    scale = torch.randn(1000, generator=torch.Generator().manual_seed(1)).mul(0.25).exp()
    found = watch(lambda s, x: 0.995**s * scale[s] * x, 400)
    assert found and found[0].kind == "slow"


def test_reported_again_when_it_gets_worse() -> None:
    """Slow, then full; and after a recovery a second time."""
    found = watch(lambda s, x: 0.9**s * x, 60)
    assert [each.kind for each in found] == ["slow", "full"]

    def twice(s: int, x: Tensor) -> Tensor:
        return torch.ones_like(x) if s in range(20, 40) or s in range(60, 80) else x

    assert [each.first_step for each in watch(twice, 100)] == [20, 60]


def test_a_run_that_rises_may_not_fall_back() -> None:
    """Trap: the untrained state as the only reference; a small encoder starts at a rank of 2."""

    def features(s: int, x: Tensor) -> Tensor:
        used = 2 if s < 20 or s >= 160 else 24
        return x * torch.where(torch.arange(DIM) < used, 1, 0.05)

    assert [each.first_step for each in watch(features, 180)] == [160]


@pytest.mark.parametrize("every", [1, 10])
def test_a_low_rank_that_falls_to_one_is_found(every: int) -> None:
    """Trap: 3.1 to 1.2 within 400 steps while the loss looks fine. A small encoder uses few
    directions from the first step on, so a share of its rank alone would let that pass."""
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(5)))[0]
    first, last = torch.full((2, DIM), 1e-4)
    first[:4], last[:4] = (
        torch.tensor([1.0, 0.8, 0.4, 0.05]),
        torch.tensor([2.2, 0.06, 0.02, 0.005]),
    )

    def features(s: int, x: Tensor) -> Tensor:
        variances = torch.lerp(first, last, min(s / 400, 1.0))
        return x * variances.sqrt() @ rotation + 2

    ranks = [effective_rank(features(s, torch.randn(4000, DIM))) for s in (0, 400)]
    assert 3 < ranks[0] < 3.3 and 1.1 < ranks[1] < 1.3
    found = watch(features, 500, every=every)
    assert [(each.kind, each.sign) for each in found] == [("dimensional", "rank")]
    assert 200 < found[0].step < 480


def test_smaller_batches_span_fewer_directions() -> None:
    """Trap: the last batch of an epoch, or another batch size, read as a fall of the rank."""
    assert watch(lambda s, x: x if s < 20 else x[:8], 40, rank_ratio=0.5) == []


@pytest.mark.filterwarnings("ignore:CollapseMonitor. 10 batches")
@pytest.mark.parametrize("rows", [2, 16, 64])
def test_single_odd_batches_cause_no_report(rows: int) -> None:
    def odd(s: int, x: Tensor) -> Tensor:
        kinds = [features for features, _ in COLLAPSES.values()]
        return kinds[s // 7 % len(kinds)](s, x) if s % 7 < 3 else x

    assert watch(odd, 150, rows) == []


def healthy(name: str) -> Features:
    random = torch.Generator().manual_seed(5)
    rotation, _ = torch.linalg.qr(torch.randn(DIM, DIM, generator=random))
    if name == "low rank":  # 1.5 of 32 from the beginning on
        scale = torch.tensor([1.0, 0.25, 0.15, *[0.03] * (DIM - 3)])
        return lambda s, x: x * scale @ rotation + 2
    if name == "steep, in its own axes":
        return lambda s, x: x * 0.8 ** torch.arange(DIM)
    if name == "sparse":
        return lambda s, x: (x - 1.6).relu()
    if name == "large mean":
        return lambda s, x: x + 50
    if name == "uneven batches":  # scales and sizes vary from batch to batch
        return lambda s, x: (x * (0.3 * x[0, 0]).exp())[: len(x) - s % 5 * (len(x) // 6)]
    if name == "bfloat16":
        return lambda s, x: x.bfloat16() * 0.01
    if name == "few outlying dimensions":
        return lambda s, x: x * torch.where(torch.arange(DIM) < 3, 300.0, 1.0)
    if name == "rank rises and varies":
        return lambda s, x: x * torch.where(torch.arange(DIM) < 3 + s // 20, 1, 0.1 + 0.1 * (s % 2))
    return lambda s, x: x


HEALTHY = [
    "random", "low rank", "steep, in its own axes", "sparse", "large mean", "uneven batches",
    "bfloat16", "few outlying dimensions", "rank rises and varies",
]  # fmt: skip


@pytest.mark.parametrize("rows", [8, 24])
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_features_cause_no_report(name: str, rows: int) -> None:
    """Trap: a threshold on the rank. Small encoders learn at 1.5 of 64, from the beginning on."""
    assert watch(healthy(name), 130, rows) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_for_5000_steps(name: str) -> None:
    assert watch(healthy(name), 5000, 24) == []


@pytest.mark.slow
def test_training_for_5000_steps() -> None:
    """Features that do learn, with warm-up: scale, mean and rank move far, and nothing is dead."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, DIM))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    monitor = CollapseMonitor(action="raise")
    mixing = torch.randn(6, 16)
    for step in range(5000):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 500)
        x = torch.randn(24, 6) @ mixing
        first, second = (net(x + 0.3 * torch.randn(24, 16)) for _ in range(2))
        vicreg(first, second).backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.update(first)
    assert effective_rank(first) > 4


def test_a_broken_run_is_caught() -> None:
    """A learned projector on both sides and nothing against collapse; with vicreg it holds."""
    for weight, caught in ((0.0, True), (1.0, False)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, DIM))
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        monitor, found = CollapseMonitor(action="record"), []
        for _ in range(80):
            x = torch.randn(32, 16)
            first, second = (net(x + 0.5 * torch.randn(32, 16)) for _ in range(2))
            loss = F.mse_loss(first, second) + weight * vicreg(first, second)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found += [seen] if (seen := monitor.update(first)) else []
        assert bool(found) == caught


def test_text_of_a_report() -> None:
    monitor = CollapseMonitor(action="raise", dead_ratio=0.25)
    x = torch.randn(64, DIM, generator=torch.Generator().manual_seed(0))
    for step in range(100, 124):
        monitor.update(x if step < 120 else x * HALF, step=step)
    with pytest.raises(CollapseError) as error:
        monitor.update(x * HALF, step=124)
    assert re.fullmatch(
        r"Dimensional collapse at step 124 \(first sign at step 120\): many dimensions no longer "
        r"vary\.\n"
        r"  total std +[34]\.\d+ +\(reference 5\.\d+\)\n"
        r"  relative std +(1|0\.99) +\(reference (1|0\.99)\)\n"
        r"  effective rank +1\d\.\d of 32 +\(reference 2\d\.\d\)\n"
        r"  dead dimensions +16 of 32\n"
        r"Possible remedies: .*vicreg.*",
        str(error.value),
    )
    collapse = error.value.collapse
    assert (collapse.sign, collapse.observation.step, collapse.observation.num_rows) == (
        "dead",
        124,
        64,
    )
    assert collapse.reference == monitor.reference


@pytest.mark.no_hook
def test_it_warns_once_and_at_the_line_that_called() -> None:
    monitor = CollapseMonitor()
    for _ in range(4):
        monitor.update(torch.ones(8, 3))
    with pytest.warns(
        CollapseWarning, match=r"^Full collapse at step 4 \(first sign at step 0\)"
    ) as caught:
        monitor.update(torch.ones(8, 3))
    assert [each.filename for each in caught] == [__file__]
    for _ in range(25):
        monitor.update(torch.ones(8, 3))  # a warning would be an error here
    assert "full collapse at step 29" in str(monitor)


def test_not_finite() -> None:
    """Traps: comparisons with NaN are all False; five more steps of a run that has diverged."""
    monitor = CollapseMonitor(action="record")
    x = torch.randn(64, DIM)
    found = [monitor.update(x.where(torch.tensor(step % 4 != 3), torch.nan)) for step in range(20)]
    (report,) = filter(None, found)
    assert (report.kind, report.first_step, report.step) == ("not finite", 3, 3)
    assert all(seen.std > 0 for seen in monitor.history) and len(monitor.history) == 15
    assert not any(monitor.update(x) for _ in range(monitor.patience))
    report = monitor.update(x * torch.inf)
    assert report is not None, "it returned"
    assert (report.kind, report.first_step, report.step) == ("not finite", 25, 25)
    assert str(report).startswith(
        "Non-finite features at step 25 (first sign at step 25): features contain NaN or "
        "infinity.\nPossible remedies: "
    )


def test_only_every_nth_call_observes() -> None:
    """The others do not touch the features; on meta tensors a host synchronisation raises."""
    monitor = CollapseMonitor(every=5, action="record")
    for step in range(22):
        looks = step < 10 or step % 5 == 0  # the reference is the state before training
        monitor.update(torch.randn(16, 4, device="cpu" if looks else "meta"))
    assert [seen.step for seen in monitor.history] == [*range(10), 10, 15, 20]


@pytest.mark.parametrize("dim", [4, 64])
def test_padding(dim: int) -> None:
    """Law 6. Trap: padding that is left out of the covariance, not of the smaller Gram matrix."""
    x = torch.randn(6, 5, dim) + 3
    valid = torch.rand(6, 5) < 0.6
    monitor = CollapseMonitor()
    monitor.update(x.masked_fill(~valid[..., None], torch.nan), valid)
    (seen,) = monitor.history
    assert seen.num_rows == valid.sum()
    assert seen.rank == pytest.approx(float(effective_rank(x, valid)))
    rows = x[valid]
    assert (len(valid.flatten()) < dim) == (dim == 64)
    variances = torch.linalg.svdvals((rows - rows.mean(0)).double()).square()
    assert seen.off_axis_ratio == pytest.approx(float(1 - variances[0] / variances.sum()))
    assert seen.std == pytest.approx(rows.std(dim=0).norm().item(), rel=1e-6)
    spread = (rows - rows.mean(0)).norm() / rows.norm()
    assert seen.relative_std == pytest.approx(spread.item(), rel=1e-6)
    assert monitor.update(x, torch.zeros_like(valid)) is None and len(monitor.history) == 1


@pytest.mark.parametrize("name", [*COLLAPSES, *FALLS, "not finite"])
@pytest.mark.parametrize("cut", [3, 17])
def test_resumed_equals_uninterrupted(name: str, cut: int) -> None:
    """Law 9 for the monitor, through a file that holds tensors and numbers alone."""
    random = torch.Generator().manual_seed(0)
    features = (COLLAPSES | FALLS | {"not finite": (lambda s, x: x * torch.nan, "")})[name][0]
    data = [torch.randn(16, DIM, generator=random) for _ in range(48)]
    data = [features(step - 15, x) if step >= 15 else x for step, x in enumerate(data)]
    whole, other = CollapseMonitor(action="record"), CollapseMonitor(action="record")
    expected = [whole.update(x) for x in data]
    found = [other.update(x) for x in data[:cut]]
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = CollapseMonitor(action="record")
    resumed.load_state_dict(state)
    copied = copy.deepcopy(other)
    for each in (resumed, copied):
        assert found + [each.update(x) for x in data[cut:]] == expected
        assert each.history == whole.history and each.reference == whole.reference


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("cut", range(0, 30, 3))
def test_a_resumed_monitor_warns_when_an_uninterrupted_one_does(every: int, cut: int) -> None:
    """Law 9. Trap: batches that were too small are forgotten, so that no warning ever comes."""
    sizes = [16] * 2 + [4] * 12 + [16] + [1] * 45
    data = [torch.randn(size, DIM) for size in sizes]

    def warned(monitor: CollapseMonitor, first: int, last: int) -> list[int]:
        steps = []
        for step in range(first, last):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                monitor.update(data[step], step=step)
            steps += [step] * len(caught)
        return steps

    whole = CollapseMonitor(action="record", every=every)
    expected = warned(whole, 0, len(data))
    assert expected == ([11, 24] if every == 1 else [15])
    first, resumed = (CollapseMonitor(action="record", every=every) for _ in range(2))
    before = warned(first, 0, cut)
    resumed.load_state_dict(first.state_dict())
    assert before + warned(resumed, cut, len(data)) == expected
    assert resumed.history == whole.history


def test_a_dimension_is_dead_beside_the_largest_it_was() -> None:
    """The reference is the largest variance of the first 10 batches. Trap: that of the last one."""

    def features(level: float) -> Features:
        def scaled(s: int, x: Tensor) -> Tensor:
            small = 1.0 if s == 3 else 0.2 if s < 15 else level
            return x * torch.where(HALF > 0, 1.0, small)

        return scaled

    found = watch(features(0.03), 40)
    assert [(each.sign, each.first_step) for each in found] == [("dead", 15)]
    assert watch(features(0.1), 40) == []


def test_the_rows_of_the_reference_are_those_of_its_rank() -> None:
    """Trap: the largest rank beside the rows of other batches, which expects too much or little."""

    def held(num_rows: int, std: float, rank: float, count: int) -> list[Observation]:
        return [Observation(0, num_rows, std, std / 4, rank, 0.5, 0.0)] * count

    start = update_reference(held(64, 1.0, 20.0, 10), None)
    assert start == Reference(64, 1.0, 0.25, 20.0)
    lower = held(16, 2.0, 9.0, 100)
    assert update_reference(lower, start) == Reference(64, 2.0, 0.5, 20.0)
    higher = held(256, 0.5, 25.0, 100)
    assert update_reference(higher, start) == Reference(256, 1.0, 0.25, 25.0)
    few = held(16, 0.5, 25.0, 100)
    assert update_reference(few, start) == Reference(16, 1.0, 0.25, 25.0)


def test_repr_builds() -> None:
    """Law 13."""
    monitor = CollapseMonitor(action="raise", every=np.int64(7), rank_ratio=np.float64(0.1))
    built = eval(repr(monitor), {"CollapseMonitor": CollapseMonitor})
    assert repr(built) == repr(monitor)
    assert "every=7" in repr(monitor) and "rank_ratio=0.1" in repr(monitor)
    assert str(monitor).endswith("no observation yet")


def test_every_argument_matters() -> None:
    """Law 12."""
    part = torch.where(torch.arange(DIM) < 8, 0.0, 1.0)

    def later(features: Features) -> Features:
        return lambda s, x: features(s, x) if s >= 15 else x

    assert watch(later(lambda s, x: part * x), 40) == []
    assert watch(later(lambda s, x: part * x), 40, dead_ratio=0.2)
    assert watch(later(lambda s, x: 0.1 * x), 25) == []
    assert watch(later(lambda s, x: 0.1 * x), 25, std_ratio=0.2)
    some = torch.where(torch.arange(DIM) < 8, 1.0, 0.05)
    assert watch(later(lambda s, x: some * x), 25) == []
    assert watch(later(lambda s, x: some * x), 25, rank_ratio=0.4)
    assert watch(lambda s, x: 0.98**s * x, 35) == []
    assert watch(lambda s, x: 0.98**s * x, 35, slow_std_ratio=0.8)
    assert watch(COLLAPSES["constant"][0], 50, patience=9)[0].step == 8


@pytest.mark.parametrize(
    ("rows", "text"),
    [(1, "the last one 1: nothing is checked"), (7, "rank and dead dimensions are not checked")],
)
def test_too_few_rows_are_warned_about(rows: int, text: str) -> None:
    """Trap: a monitor that gets one row at a time and never reports anything."""
    monitor = CollapseMonitor(action="record")
    for _ in range(9):
        monitor.update(torch.randn(rows, 4))
    with pytest.warns(UserWarning, match=text):
        monitor.update(torch.randn(rows, 4))
    for _ in range(5):  # once: warnings are errors here
        monitor.update(torch.randn(rows, 4))


def test_too_few_rows_are_counted_across_a_checkpoint() -> None:
    """Law 9: 4 batches before a checkpoint and 6 after it are 10 in a row."""
    first, resumed = CollapseMonitor(action="record"), CollapseMonitor(action="record")
    for _ in range(4):
        first.update(torch.randn(2, 4))
    resumed.load_state_dict(first.state_dict())
    for _ in range(5):
        resumed.update(torch.randn(2, 4))
    with pytest.warns(UserWarning, match="10 batches in a row had fewer than 8 rows"):
        resumed.update(torch.randn(2, 4))


def test_table_of_signs() -> None:
    """Detection, reports and the page on diagnostics are made from one table."""
    assert [sign.name for sign in SIGNS] == list(get_args(SignName))
    assert {sign.kind for sign in SIGNS} == set(get_args(CollapseKind))
    assert [sign.severity for sign in SIGNS] == sorted((s.severity for s in SIGNS), reverse=True)
    page = (Path(__file__).parents[2] / "docs" / "parts" / "diagnostics.md").read_text()
    for sign in SIGNS:
        assert f"| `{sign.name}` | {sign.kind} | {sign.text} |" in page


def test_bad_arguments() -> None:
    for options in ({"every": 0}, {"patience": 0}, {"std_ratio": 0.0}, {"rank_ratio": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            CollapseMonitor(**options)
    monitor = CollapseMonitor()
    monitor.update(torch.randn(9, 4))
    with pytest.raises(ValueError, match=r"features \(9, 5\): must have the width of those before"):
        monitor.update(torch.randn(9, 5))


@pytest.mark.no_hook
def test_unknown_action() -> None:
    with pytest.raises(ValueError, match="action='shout': must be one of 'warn', 'raise', 'rec"):
        CollapseMonitor(action="shout")


def test_no_gradient_is_kept() -> None:
    x = torch.randn(9, 4, requires_grad=True)
    monitor = CollapseMonitor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.update(2 * x)
    assert not any(part.requires_grad for part in monitor.state_dict()["dead"].values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_host_synchronisation_on_a_gpu() -> None:
    """Calls between observations do not synchronise at all."""
    monitor = CollapseMonitor(every=2, action="record")
    x = torch.randn(32, DIM, device="cuda")
    for _ in range(11):
        monitor.update(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        monitor.update(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for _ in range(20):
        found = monitor.update(torch.ones_like(x))
    assert monitor.history[0].rank == pytest.approx(float(effective_rank(x)))
    assert found is None and "full collapse" in str(monitor)


def test_dimensions_that_others_outgrow_are_not_dead() -> None:
    """Trap: a branch that starts small (layer scale) and grows; the others then count as dead."""
    generator = torch.Generator().manual_seed(0)
    monitor = CollapseMonitor(action="raise")
    for step in range(200):
        features = torch.randn(64, 32, generator=generator)
        features[:, :10] *= min(1.0, 0.01 + max(0, step - 20) / 100)
        assert monitor.update(features) is None


def test_a_more_severe_sign_is_reported_after_a_slow_one():
    tracker = SignTracker()
    assert tracker.update({"slow": 0}, 1) and tracker.kind == "slow"
    sign, _ = tracker.update({"slow": 0, "rank": 1}, 1)
    assert sign.name == "rank" and tracker.kind == "dimensional"


@pytest.mark.parametrize(("without_sign", "reported_again"), [(2, False), (3, True)])
def test_a_sign_returns_after_patience_observations_without_one(without_sign, reported_again):
    tracker = SignTracker()
    assert tracker.update({"dead": 0}, 3)
    for _ in range(without_sign):
        tracker.update({}, 3)
    assert (tracker.update({"dead": 9}, 3) is not None) is reported_again


def test_a_large_common_mean_is_a_full_collapse():
    """The std stays, and vanishes beside the length of the features."""
    monitor, features = CollapseMonitor(action="record"), torch.randn(32, 16)
    reports = [monitor.update(features + 30 * (step >= 20)) for step in range(40)]
    assert [report.sign for report in reports if report] == ["full"]
