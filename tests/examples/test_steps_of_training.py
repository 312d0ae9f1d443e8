"""What each step of an example computes on, read at the calls of the parts while it runs."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jepakit
import jepakit.losses

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 4
TINY = [
    "--steps", str(STEPS), "--batch-size", "8", "--width", "32", "--depth", "1", "--device", "cpu",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Run an example in this process, where its calls can be seen."""

    def run(name: str, *options: str) -> None:
        path = EXAMPLES / name
        monkeypatch.setattr(sys, "argv", [str(path), "--out", str(tmp_path), *TINY, *options])
        monkeypatch.setenv("MPLBACKEND", "agg")
        runpy.run_path(str(path), run_name="__main__")
        plt.close("all")  # matplotlib keeps figures, and warns of too many

    return run


@pytest.fixture
def predictions() -> Iterator[list[tuple[nn.Module, Any, Any]]]:
    """Predictor, context set and target sets of every prediction with gradients."""
    calls: list[tuple[nn.Module, Any, Any]] = []

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, jepakit.MaskedPredictor) and torch.is_grad_enabled():
            calls.append((module, *args[1:3]))

    handle = nn.modules.module.register_module_forward_pre_hook(record)
    yield calls
    handle.remove()


def sets_of(tokens: Any, sample: int) -> list[set[int]]:
    """Positions of one sample's set, or of each of its sets."""
    idx, valid = tokens.idx[sample], tokens.valid[sample]
    if idx.dim() == 1:
        idx, valid = idx[None], valid[None]
    return [set(row[kept].tolist()) for row, kept in zip(idx, valid, strict=True)]


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function `name of the example -> arrays of random images or clips`."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data")
    for name, shape in (("images", (80, 32, 32, 3)), ("clips", (80, 8, 32, 32))):
        arrays = {f"x_{part}": rng.integers(0, 256, shape, np.uint8) for part in ("train", "test")}
        arrays |= {f"y_{part}": np.arange(80) % 4 for part in ("train", "test")}
        np.savez(folder / f"{name}.npz", **arrays)
    return lambda name: str(folder / ("clips.npz" if name == "vjepa.py" else "images.npz"))


@pytest.mark.parametrize(
    ("name", "options", "calls_per_step"),
    [
        ("ijepa.py", ["--eval-images", "60", "--patch-size", "4"], 1),
        ("hjepa.py", ["--eval-images", "60", "--levels", "2", "--patch-size", "4"], 2),
        ("vjepa.py", ["--eval-clips", "60"], 1),
    ],
)
def test_masks_differ_from_step_to_step_and_never_hide_the_wrong_side(
    run: Any,
    noise: Any,
    predictions: list[Any],
    name: str,
    options: list[str],
    calls_per_step: int,
) -> None:
    """Traps: a seed that is set once per step to the same value; a context given as target."""
    run(name, "--data", noise(name), *options)
    assert len(predictions) == calls_per_step * STEPS
    contexts = [tuple(map(tuple, call[1].idx.tolist())) for call in predictions]
    assert len(set(contexts)) == len(contexts)
    for _, context, targets in predictions:
        for sample in range(len(context)):
            (visible,) = sets_of(context, sample)
            for hidden in sets_of(targets, sample):
                assert hidden
                assert not hidden & visible


def test_each_level_is_predicted_at_its_targets(
    run: Any, noise: Any, predictions: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap: targets of one level taken at the positions of another, or of the context."""
    losses: list[tuple[Any, ...]] = []
    original = jepakit.hierarchical_loss

    def recorded(preds: Any, targets: Any, valids: Any, **options: Any) -> Any:
        losses.append((preds, targets, valids))
        return original(preds, targets, valids, **options)

    teachers: list[Any] = []

    def record(module: nn.Module, _: Any, levels: Any) -> None:
        if isinstance(module, jepakit.EMATeacher) and isinstance(levels, list):
            teachers.append([level.features for level in levels])

    monkeypatch.setattr(jepakit, "hierarchical_loss", recorded)
    handle = nn.modules.module.register_module_forward_hook(record)
    try:
        run("hjepa.py", "--data", noise("hjepa.py"), "--eval-images", "60", "--levels", "2",
            "--patch-size", "4", "--target-norm", "none")  # fmt: skip
    finally:
        handle.remove()
    assert len(losses) == STEPS
    for step, (_, targets, valids) in enumerate(losses):
        for level in range(2):
            _, _, tokens = predictions[2 * step + level]
            assert torch.equal(valids[level], tokens.valid)
            matches = [
                torch.equal(targets[level], jepakit.take_tokens(levels[level], tokens))
                for levels in teachers
                if levels[level].shape[0] == len(tokens)
            ]
            assert any(matches), f"step {step}, level {level}"


def test_views_of_a_row_belong_to_one_image(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap: rows ordered by image and split by view, which pairs views of different images."""
    grey = np.linspace(0, 255, 64, dtype=np.uint8)
    images = np.broadcast_to(grey[:, None, None, None], (64, 32, 32, 3)).copy()
    labels = np.arange(64) % 4
    path = tmp_path / "grey.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    seen: list[Tensor] = []
    original = jepakit.losses.invariance_loss

    def recorded(views: Tensor, **options: Any) -> Tensor:
        seen.append(views.detach())
        return original(views, **options)

    monkeypatch.setattr(jepakit.losses, "invariance_loss", recorded)
    run("lejepa.py", "--data", str(path), "--eval-images", "60", "--objective", "none",
        "--patch-size", "4", "--global-views", "2", "--local-views", "3", "--hidden", "32",
        "--projection", "16", "--contrast", "0", "--brightness", "0", "--colour", "0",
        "--grey", "0", "--noise", "0")  # fmt: skip
    assert len(seen) == STEPS
    for views in seen:
        assert views.shape[:2] == (5, 8)
        # Images of one grey each: their global views are the same image.
        torch.testing.assert_close(views[0], views[1])
        # Standardised within each size, a local view is near its own image.
        large, small = (
            (part - part.mean(dim=0)) / part.std(dim=0).clamp_min(1e-6)
            for part in (views[0], views[2:].mean(dim=0))
        )
        distances = torch.cdist(large, small)
        assert distances.diagonal().mean() < 0.5 * distances.mean()
        for view in views[3:]:
            torch.testing.assert_close(view, views[2])
