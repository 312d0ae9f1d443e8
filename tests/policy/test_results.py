"""Every number of the docs comes from a result file that says how to get it again."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_can_be_traced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads(path.read_text())
    for key in ("command", "commit", "seeds", "versions", "dataset", "machine", "rows"):
        assert record[key], f"{path.name} does not say its {key}"
    assert re.fullmatch("[0-9a-f]{40}", record["commit"]), "measured on what was never committed"
    script = ROOT / record["command"].split()[1]
    assert script.is_file(), f"{path.name} was made by a script that is gone"
    # The table in the docs is made from the file, not by hand.
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    page = importlib.import_module("runs").page
    table = importlib.import_module(script.stem).table
    assert path.with_suffix(".md").read_text() == page(record, table)
