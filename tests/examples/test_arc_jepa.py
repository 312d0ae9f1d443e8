"""examples/arc_jepa.py does what its docstring says; each run is a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jepakit.testing import assert_order_contract

ROOT = Path(__file__).parents[2]
TINY = ["--puzzles", "48", "--candidates", "48", "--batch-size", "8", "--steps", "12"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("arc_jepa", ROOT / "examples/arc_jepa.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(out: Path, *options: str) -> str:
    command = [sys.executable, str(ROOT / "examples/arc_jepa.py"), "--out", str(out)]
    settings = {"JEPAKIT_TYPECHECK": "0", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [*command, "--device", "cpu", *TINY, *options],
        env={**os.environ, **settings}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def puzzles(example: ModuleType) -> Any:
    return example.as_objects(example.generated_puzzles(6, seed=0), 8, torch.device("cpu"))


def as_set(rows: Tensor) -> list[list[float]]:
    """Objects in an order of their own: equal areas come in any order."""
    return sorted([round(value, 4) for value in row] for row in rows.tolist())


def test_turned_objects_are_the_objects_of_the_turned_grid(example: ModuleType) -> None:
    """Trap: places that are mirrored while shapes are not, or within the wrong width."""
    grid = np.random.default_rng(0).integers(0, 4, (7, 12)).astype(np.uint8)
    objects = torch.from_numpy(example.objects_of(grid, 100)).unsqueeze(0)
    expected = set()
    for turned in (grid, grid.T):
        for flipped in (turned, turned[::-1], turned[:, ::-1], turned[::-1, ::-1]):
            rows = example.objects_of(np.ascontiguousarray(flipped), 100)
            expected.add(str(as_set(torch.from_numpy(rows))))
    found = set()
    for seed in range(100):
        torch.manual_seed(seed)
        valid = torch.ones(objects.shape[:2], dtype=torch.bool)
        number = torch.zeros(1, dtype=torch.long)
        present = torch.ones(1, 1, dtype=torch.bool)
        batch = example.augmented(example.Batch(objects, valid, number, number, number, present))
        # Colours are permuted: undo it, by the largest region of each.
        colours = dict(zip(batch.objects[0, :, 0].tolist(), objects[0, :, 0].tolist(), strict=True))
        assert colours.pop(0.0) == 0 and len(set(colours.values())) == len(colours) == 3
        rows = batch.objects[0].clone()
        rows[:, 0] = torch.tensor([{0.0: 0.0, **colours}[c] for c in rows[:, 0].tolist()])
        found.add(str(as_set(rows)))
    assert len(expected) == 8 and found == expected


def test_the_largest_objects_are_kept(example: ModuleType) -> None:
    grid = np.zeros((5, 6), dtype=np.uint8)
    grid[0, 0], grid[4, 4:], grid[2, 1:4] = 1, 2, 3
    rows = example.objects_of(grid, 3)
    assert rows[:, :8].tolist() == [
        [0, 0, 0, 5, 6, 24, 5, 6],  # the canvas
        [3, 2, 1, 1, 3, 3, 5, 6],
        [2, 4, 4, 1, 2, 2, 5, 6],
    ]


def test_steps_are_in_order_whatever_that_of_the_file(example: ModuleType) -> None:
    """Trap: input and output exchanged, or the asked pair among those that are shown."""
    arrays = example.generated_puzzles(5, seed=1)
    order = np.random.default_rng(0).permutation(len(arrays["x"]))
    arrays = {name: values[order] for name, values in arrays.items()}
    puzzles = example.as_objects(arrays, 8, torch.device("cpu"))
    for number, steps in enumerate(puzzles.steps.tolist()):
        for name, expected in (
            ("y", [number] * 8),
            ("io", [0, 1] * 4),
            ("pair", [0, 0, 1, 1, 2, 2, 3, 3]),
            ("role", [0] * 6 + [1] * 2),
        ):
            assert arrays[name][steps].tolist() == expected
    assert puzzles.num_shown.tolist() == [6] * 5


def test_no_question_shows_its_answer(example: ModuleType, puzzles: Any) -> None:
    """Trap: an output among the steps that predict it. The loss falls, and nothing is learned."""
    batch = example.batch_of(puzzles, torch.arange(6))
    task, asked, shown = example.every_pair(batch)
    assert len(task) == 6 * 4 and (asked % 2 == 0).all()
    rows = torch.arange(len(task))
    assert not shown[rows, asked].any() and not shown[rows, asked + 1].any()
    assert (shown.sum(dim=1) == 6).all(), "and shows all others"
    _, row, asked, shown = example.asked_pairs(puzzles, torch.arange(6))
    assert (asked == 6).all() and not shown[row, 6:].any() and shown[row, :6].all()


def test_backwards_reverses_what_is_shown(example: ModuleType) -> None:
    steps = torch.arange(5.0).view(1, 5, 1).repeat(2, 1, 1)
    shown = torch.tensor([[True, True, True, False, False], [True, True, False, False, False]])
    reversed_steps = example.backwards(steps, shown).squeeze(2)
    assert reversed_steps[0, :3].tolist() == [2, 1, 0]
    assert reversed_steps[1, :2].tolist() == [1, 0]


def test_the_mean_knows_no_order_and_the_pool_does(example: ModuleType) -> None:
    torch.manual_seed(0)
    model = example.GridSequences(16, 1, 8, "attention")
    assert_order_contract(model.pool, 16)
    with pytest.raises(AssertionError, match="law 16, order"):
        assert_order_contract(example.MeanPool(), 16)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("finished")
    return out, run(out)


@pytest.mark.slow
def test_prints_the_table_and_saves_pictures(finished: tuple[Path, str]) -> None:
    out, printed = finished
    for word in ("untrained", "trained", "copy of the input", "codes used", "epoch 2: "):
        assert word in printed
    for picture in ("curves", "answers"):
        assert (out / f"{picture}.png").stat().st_size > 5_000
    saved = json.loads((out / "result.json").read_text())
    assert saved["settings"]["commitment_weight"] == 0.15 and saved["versions"]["torch"]
    assert saved["settings"]["codebook_momentum"] == 0.95
    assert saved["settings"]["relational_weight"] == 0.02
    assert [step for step, _ in saved["curves"]["loss"]] == [6, 12], "every epoch"


@pytest.mark.slow
def test_the_attention_over_steps_trains_and_is_averaged_and_saved(
    finished: tuple[Path, str], example: ModuleType
) -> None:
    """Trap: a pool outside of the optimiser or of the teacher, so that it stays as it began."""
    out, _ = finished
    settings = json.loads((out / "result.json").read_text())["settings"]
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    saved = torch.load(out / "teacher.pth", weights_only=True)
    torch.manual_seed(settings["seed"])
    begun = example.GridSequences(settings["width"], settings["depth"], 8, "attention")
    for name, value in begun.pool.state_dict().items():
        if name == "attention.key_value.bias":
            continue  # that of the keys changes no weight
        trained = state["student"][f"model.pool.{name}"]
        averaged = state["teacher"][f"module.pool.{name}"]
        assert not torch.equal(trained, value), f"{name} trains"
        assert not torch.equal(averaged, value) and not torch.equal(averaged, trained), name
        assert torch.equal(saved[f"pool.{name}"], averaged)


@pytest.mark.slow
def test_without_momentum_the_teacher_is_the_student(tmp_path: Path) -> None:
    """Traps: an update before the optimiser's step; parts that are not averaged."""
    run(tmp_path, "--momentum", "0", "0", "--steps", "3")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for name, value in state["teacher"].items():
        if name.startswith("module."):
            assert torch.equal(value, state["student"][name.replace("module.", "model.", 1)]), name


@pytest.mark.slow
def test_balanced_loss_weights_temperature_and_codebook_throughout(finished: tuple[Path, str]) -> None:
    """Traps: a relational term that outweighs the loss, a temperature that runs away, and a
    codebook that a few codes of hold everything."""
    saved = json.loads((finished[0] / "result.json").read_text())
    curves = {name: [y for _, y in points] for name, points in saved["curves"].items()}
    for contrastive, relational in zip(curves["contrastive"], curves["relational"], strict=True):
        assert relational < contrastive
    assert all(0.05 < value < 0.2 for value in curves["temperature"])
    assert all(value > 0.1 for value in curves["usage"])


@pytest.mark.slow
def test_the_order_of_the_steps_matters_only_to_the_pool(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    """Trap: a reversal that reverses nothing; the mean must not notice it."""
    run(tmp_path, "--pool", "mean", "--codes", "0")
    rows = {
        "attention": json.loads((finished[0] / "result.json").read_text())["rows"]["trained"],
        "mean": json.loads((tmp_path / "result.json").read_text())["rows"]["trained"],
    }
    change = {name: abs(row["loss, reversed"] - row["loss"]) for name, row in rows.items()}
    assert change["mean"] < 1e-5 < 1e-4 < change["attention"]
    assert "usage" not in rows["mean"] and "usage" in rows["attention"]


@pytest.mark.slow
def test_reads_a_file(tmp_path: Path, example: ModuleType) -> None:
    arrays = {}
    for part, seed in (("train", 0), ("test", 1)):
        for name, values in example.generated_puzzles(20, seed).items():
            arrays[f"{name}_{part}"] = values
    np.savez(tmp_path / "grids.npz", **arrays)
    printed = run(tmp_path, "--data", str(tmp_path / "grids.npz"), "--steps", "2")
    assert "20 puzzles, 160 grids, 2 steps" in printed
    del arrays["io_test"]
    np.savez(tmp_path / "grids.npz", **arrays)
    with pytest.raises(AssertionError, match="has no io_test"):
        run(tmp_path, "--data", str(tmp_path / "grids.npz"))
