"""Recipes and ablations use options that the scripts take. Trap: options that were removed."""

import ast
import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "benchmarks" / "recipes").glob("*.toml"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = ROOT / "benchmarks"
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder


def accepted(script: Path, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    module = load(script)
    args = module.parse_args()
    if hasattr(module, "make_sampler") and args.image_size:  # masks that are possible at all
        side = args.image_size // args.patch_size
        module.make_sampler((side, side), args)(args.batch_size)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_accepted(path, benchmarks, monkeypatch) -> None:
    recipes = load(benchmarks / "recipes.py")
    recipe = recipes.load(path.stem)
    assert set(recipe) - {"pictures"} == {"title", "tier", "data", "script", "options"}
    assert recipe["tier"] in ("cpu", "accelerator")
    accepted(ROOT / recipe["script"], recipes.words(recipe["options"]), monkeypatch)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_result_is_of_the_recipe_as_it_is(path, benchmarks) -> None:
    """Trap: a recipe that was changed after its run, whose command no longer gives the number."""
    recipes = load(benchmarks / "recipes.py")
    result = recipes.RESULTS / f"{path.stem}.json"
    if not result.is_file():
        pytest.skip("not run")
    row = json.loads(result.read_text())["rows"][0]
    recipe = recipes.load(path.stem)
    assert row["options"] == recipes.words(recipe["options"])
    assert row["data"] == recipe["data"]
    assert row["image_size"] and f"{row['image_size']} px" in row["architecture"]


def test_a_trained_encoder_is_ahead_of_an_untrained_one() -> None:
    """Trap: a loss that falls while the features get no better. Those on the CPU gain 8 points."""
    found = []
    for path in RECIPES:
        result = ROOT / "benchmarks" / "results" / f"{path.stem}.json"
        if tomllib.loads(path.read_text())["tier"] == "cpu" and result.is_file():
            row = json.loads(result.read_text())["rows"][0]
            before, after = (
                sum(knn for knn, *_ in row[key]) / len(row[key]) for key in ("untrained", "trained")
            )
            assert after - before >= 0.08, f"{path.stem}: {before:.3f} to {after:.3f}"
            found.append(path.stem)
    assert "cifar10-lejepa" in found


def test_why_a_run_failed_is_said(benchmarks, monkeypatch, tmp_path) -> None:
    """Trap: the reason stands in a log that no message names."""
    recipes = load(benchmarks / "recipes.py")
    options = ["--smoke", "--data-folder", str(tmp_path / "none"), "--runs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["recipes.py", "fashion-supervised", *options])
    with pytest.raises(SystemExit, match=r"(?s)log.txt ends with.*there is no such file"):
        recipes.main()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [path.stem for path in RECIPES if tomllib.loads(path.read_text())["tier"] == "accelerator"],
)
def test_a_recipe_runs_at_a_tiny_scale(name, benchmarks, monkeypatch, tmp_path, capsys) -> None:
    """Also what is for an accelerator, where there is none."""
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 80), ("test", 40)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 4
    np.savez(tmp_path / "images.npz", **arrays)
    options = ["--smoke", "--data", str(tmp_path / "images.npz"), "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["recipes.py", name, *options])
    recipes = load(benchmarks / "recipes.py")
    before = {path: path.read_bytes() for path in recipes.RESULTS.iterdir()}
    recipes.main()
    recipe = tomllib.loads((benchmarks / "recipes" / f"{name}.toml").read_text())
    patch = recipe["options"]["patch-size"]
    encoder = f"ViT 32/{patch}, 1 blocks, 2 heads, {8 * patch} px"
    assert f"| {recipe['title']} | {encoder} |" in capsys.readouterr().out
    # A run of four steps is no result.
    assert {path: path.read_bytes() for path in recipes.RESULTS.iterdir()} == before


def test_the_overview_is_made_of_the_results(benchmarks) -> None:
    """Trap: a number in the docs that no run gave."""
    recipes = load(benchmarks / "recipes.py")
    assert recipes.OVERVIEW.read_text() == recipes.overview()


def test_ablations_are_accepted(benchmarks, monkeypatch) -> None:
    ablations = load(benchmarks / "ablations.py")
    for group in ablations.GROUPS.values():
        variants = list(group.values())
        first = variants[0]
        assert len({tuple(options) for options in variants}) == len(variants)
        for options in variants:
            assert options[: len(first)] == first  # nothing else than what is asked about
            accepted(ROOT / "examples/ijepa.py", [*ablations.BASE, *options], monkeypatch)


def test_rows_of_the_grid_puzzles_are_accepted(benchmarks, monkeypatch) -> None:
    arc = load(benchmarks / "arc.py")
    assert len({tuple(options) for options in arc.ROWS.values()}) == len(arc.ROWS)
    for options in arc.ROWS.values():
        accepted(ROOT / "examples/arc_jepa.py", options, monkeypatch)


SCRIPTS = [*sorted((ROOT / "examples").rglob("*.py")), ROOT / "benchmarks" / "supervised.py"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_option_is_read(path: Path) -> None:
    """Trap: a config key that is accepted and changes nothing."""
    tree = ast.parse(path.read_text())
    options = {
        node.args[0].value.removeprefix("--").replace("-", "_")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("add", "add_argument")
        and isinstance(node.args[0], ast.Constant)
    }
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and getattr(node.value, "id", None) == "args"
    }
    assert len(options) > 7
    assert options <= read, f"never read: {sorted(options - read)}"
