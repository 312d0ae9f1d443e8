"""Imports the scripts of `benchmarks/` as they import each other: by name, from their folder."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A function `name -> module`."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module


@pytest.fixture
def run_script(script, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that runs a script with options, as from a shell."""

    def run(name: str, *options: object) -> None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        script(name).main()

    return run
