"""examples/world_model.py does what its docstring says; its world and its planner are right."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
TINY = [
    "--steps", "30", "--batch-size", "8", "--trajectories", "600", "--decoder-steps", "20",
    "--tasks", "8", "--max-steps", "12", "--candidates", "12", "--elites", "4", "--iterations", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("world_model", ROOT / "examples/world_model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(out: Path, *options: str) -> str:
    command = [sys.executable, str(ROOT / "examples/world_model.py"), "--out", str(out), *TINY]
    # The example runs as a user runs it, and on one thread, so that sums have one order.
    settings = {"JEPAKIT_TYPECHECK": "0", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [*command, "--device", "cpu", *options],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_walls_stop_the_dot(example: ModuleType) -> None:
    """Trap: a wall that a large step jumps over, so that the straight line is a plan."""
    torch.manual_seed(0)
    position = example.free_positions(500, torch.Generator().manual_seed(0))
    assert len(position) == 500
    for _ in range(30):
        before = position
        position = example.move(position, 2 * torch.rand(500, 2) - 1)
        assert example.is_free(position).all()
        assert ((position >= example.RADIUS) & (position <= 1 - example.RADIUS)).all()
        crossed = (before[:, 0] < 0.5) != (position[:, 0] < 0.5)
        heights = torch.stack([before[crossed, 1], position[crossed, 1]])
        low, high = example.DOOR
        assert ((heights > low - example.STRIDE) & (heights < high + example.STRIDE)).all()
    left = torch.tensor([[0.3, 0.3]])
    for _ in range(10):
        left = example.move(left, torch.tensor([[1.0, 0.0]]))
    assert left[0, 0] < example.WALL[0], "the wall holds"
    door = torch.tensor([[0.3, sum(example.DOOR) / 2]])
    for _ in range(4):
        door = example.move(door, torch.tensor([[1.0, 0.0]]))
    assert door[0, 0] > example.WALL[1], "the door is open"


def test_a_free_step_has_the_length_of_its_action(example: ModuleType) -> None:
    start, action = torch.tensor([[0.2, 0.3]]), torch.tensor([[0.5, -1.0]])
    end = example.move(start, action)
    torch.testing.assert_close(end, start + example.STRIDE * action)


def test_images_show_where_the_dot_is(example: ModuleType) -> None:
    """Trap: x and y exchanged, or a walls' door that is drawn elsewhere than it is."""
    position = torch.tensor([[0.2, 0.3], [0.8, 0.6]])
    images = example.render(position, 64)
    assert images.shape == (2, 1, 64, 64)
    empty = example.render(torch.full((2,), -1.0), 64)[0]
    for (x, y), image in zip(position.tolist(), images[:, 0], strict=True):
        dot = (image > 0.9).nonzero().float().mean(dim=0) / 64
        torch.testing.assert_close(dot, torch.tensor([y, x]), atol=0.02, rtol=0)
    rows = (torch.arange(64) + 0.5) / 64
    in_door = (rows > example.DOOR[0]) & (rows < example.DOOR[1])
    assert ((empty[:, 32] == 0) == in_door).all()


def test_trajectories_are_those_of_their_actions_and_seed(example: ModuleType) -> None:
    """Traps: actions off by a step; the held-out trajectories among the trained ones."""
    first = example.random_trajectories(50, 6, seed=0)
    for step in range(5):
        moved = example.move(first.positions[:, step], first.actions[:, step])
        assert torch.equal(moved, first.positions[:, step + 1])
    again, other = (example.random_trajectories(50, 6, seed=seed) for seed in (0, 1))
    assert torch.equal(again.positions, first.positions)
    assert not torch.equal(other.positions, first.positions)


def test_most_tasks_need_the_door(example: ModuleType) -> None:
    start, goal = example.tasks(40, seed=0)
    assert len(start) == len(goal) == 40
    assert ((start[:, 0] < 0.5) != (goal[:, 0] < 0.5)).sum() == 30
    assert ((start - goal).norm(dim=-1) > 0.3).all()

    def policy(position, goal, _):
        return example.straight_line(position, goal, 4)

    path = example.follow(policy, start, goal, 30, 16)
    reached = example.at_goal(path[:, -1], goal)
    assert reached.tolist() == [False] * 30 + [True] * 10, "along the wall is no way"


def test_the_planner_finds_the_way_in_a_known_world(example: ModuleType) -> None:
    """Trap: a search that prefers the worst plans, or that returns actions of another task."""

    class Known(nn.Module):
        def rollout(self, features, actions):
            steps = features[:, :, None] + example.STRIDE * actions[..., None, :].cumsum(dim=2)
            return steps  # [b k s 1 d]: features are positions

    torch.manual_seed(0)
    start, goal = torch.tensor([[0.2, 0.2], [0.8, 0.3]]), torch.tensor([[0.7, 0.6], [0.4, 0.4]])
    args = SimpleNamespace(candidates=100, plan_steps=8, hold=2, iterations=6, elites=10, replan=8)
    actions = example.plan(Known(), start, goal, args)
    assert actions.shape == (2, 8, 2) and actions.abs().max() <= 1
    ways = start[:, None] + example.STRIDE * actions.cumsum(dim=1)
    assert ((ways - goal[:, None]).norm(dim=-1).amin(dim=1) < 0.05).all()


def test_a_dot_stays_where_it_has_arrived(example: ModuleType) -> None:
    """Traps: a goal that is passed by counts as missed; a policy asked with another task's goal."""
    start, goal = torch.tensor([[0.1, 0.1], [0.1, 0.5]]), torch.tensor([[0.9, 0.9], [0.22, 0.5]])
    asked = []

    def right(position, goal, goal_images):
        assert torch.equal(goal_images, example.render(goal, 16))
        asked.append(len(position))
        return torch.tensor([1.0, 0.0]).expand(len(position), 3, 2)

    path = example.follow(right, start, goal, 6, 16)
    assert asked == [2, 1]
    assert path.shape == (2, 7, 2)
    torch.testing.assert_close(path[1, 1:, 0], torch.full((6,), 0.1 + example.STRIDE))
    assert example.at_goal(path[:, -1], goal).tolist() == [False, True]


def test_the_straight_line_arrives_where_nothing_is_in_the_way(example: ModuleType) -> None:
    start, goal = torch.tensor([[0.1, 0.1], [0.1, 0.4]]), torch.tensor([[0.4, 0.5], [0.9, 0.4]])

    def policy(position, goal, _):
        return example.straight_line(position, goal, 4)

    path = example.follow(policy, start, goal, 12, 32)
    assert path.shape == (2, 13, 2)
    assert example.at_goal(path[:, -1], goal).tolist() == [True, False], "a wall is"


def test_r2_of_a_linear_map_is_one(example: ModuleType) -> None:
    """Trap: a probe that is fitted on what it is scored on."""
    x = torch.randn(2, 400, 5, 3, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.0, 3.0]]) + 4
    assert example.linear_r2(x[0], y[0], x[1], y[1]) > 0.999
    assert example.linear_r2(x[0], y[0], x[1], y[1].flip(0)) < 0.1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("finished")
    return out, run(out)


@pytest.mark.slow
def test_prints_the_tables_and_saves_pictures(finished: tuple[Path, str]) -> None:
    out, printed = finished
    for row in ("raw pixels", "untrained encoder", "trained encoder", "position R2"):
        assert row in printed
    for row in ("nothing changes", "mean", "planner", "straight line", "random"):
        assert row in printed
    for picture in ("curves", "rollout", "plans"):
        assert (out / f"{picture}.png").stat().st_size > 5_000
    assert (out / "plan.gif").read_bytes()[:6] == b"GIF89a"


@pytest.mark.slow
def test_the_result_can_be_traced(finished: tuple[Path, str]) -> None:
    saved = json.loads((finished[0] / "result.json").read_text())
    assert saved["settings"]["seed"] == 0 and saved["versions"]["torch"]
    assert set(saved["rows"]) == {"raw pixels", "untrained encoder", "trained encoder"}
    assert all(len(errors) == 8 for errors in saved["rollout"].values())
    assert set(saved["planning"]) == {"planner", "straight line", "random"}
    # In units of the variance over all times, the mean errs by about 1.
    assert sum(saved["rollout"]["mean"]) / 8 == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_sigreg_is_a_part_of_the_loss(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Trap: a weight that is read nowhere."""
    run(tmp_path, "--sigreg-weight", "0", "--steps", "10")
    curves = [
        json.loads((out / "result.json").read_text())["curves"] for out in (tmp_path, finished[0])
    ]
    assert curves[0]["loss"] == curves[0]["prediction"]
    for (_, loss), (_, prediction) in zip(curves[1]["loss"], curves[1]["prediction"], strict=True):
        assert loss > prediction + 0.1
