"""Recipes and ablations ask for what the scripts take. Trap: options that nobody reads any more."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

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
    load(script).parse_args()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_accepted(path, benchmarks, monkeypatch) -> None:
    recipes = load(benchmarks / "recipes.py")
    recipe = recipes.load(path.stem)
    assert set(recipe) == {"title", "tier", "data", "script", "options"}
    assert recipe["tier"] in ("cpu", "accelerator")
    accepted(ROOT / recipe["script"], recipes.words(recipe["options"]), monkeypatch)


def test_the_overview_is_made_of_the_results(benchmarks) -> None:
    """Trap: a number in the docs that no run gave."""
    recipes = load(benchmarks / "recipes.py")
    assert recipes.OVERVIEW.read_text() == recipes.overview()


def test_ablations_are_accepted(benchmarks, monkeypatch) -> None:
    ablations = load(benchmarks / "ablations.py")
    for group in ablations.GROUPS.values():
        variants = list(group.values())
        assert variants[0] == [] and len({tuple(options) for options in variants}) == len(variants)
        for options in variants:
            accepted(ROOT / "examples/ijepa.py", [*ablations.BASE, *options], monkeypatch)
