"""Every number of the docs comes from a result file that says how to get it again."""

import importlib
import json
import re
import shlex
import statistics
import subprocess
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


def test_a_command_with_quotes_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows have names of several words, and a long command is broken into lines."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    page = importlib.import_module("runs").page
    words = ["python", "benchmarks/hierarchy.py", "--only", *["2 levels, fine one heavier"] * 7]
    record = json.loads(RESULTS[0].read_text()) | {"command": shlex.join(words)}
    command = page(record, lambda rows: "").partition("```sh\n")[2].partition("\n```")[0]
    assert max(map(len, command.splitlines())) < 100
    said = subprocess.check_output(["sh", "-c", f"printf '%s\\n' {command}"], text=True)
    assert said.splitlines() == words


def test_the_numbers_of_the_readme_are_those_of_a_run() -> None:
    """Trap: a table that was typed by hand, and stays when the code has changed."""
    row = json.loads((ROOT / "benchmarks/results/textures-ijepa.json").read_text())["rows"][0]
    readme = (ROOT / "README.md").read_text()
    for name, key in (
        ("raw pixels", "raw"),
        ("untrained encoder", "untrained"),
        ("trained teacher", "trained"),
    ):
        knn, linear, rank, std = (statistics.mean(each) for each in zip(*row[key], strict=True))
        cells = f"{100 * knn:.1f} % | {100 * linear:.1f} % | {rank:.1f} | {std:.2f}"
        assert f"| {name} | {cells} |" in readme, f"README.md does not hold {cells!r}"
    pixels, before, after = (
        statistics.mean(run[0] for run in row[key]) for key in ("raw", "untrained", "trained")
    )
    front = " ".join((ROOT / "docs/index.md").read_text().split())
    assert f"in {100 * pixels:.0f} % of all cases by raw pixels, in {100 * before:.0f} %" in front
    assert f"in {100 * after:.0f} % by the trained teacher" in front
    found = [f"{100 * run['trained']:.0f}" for run in row["retrieval"]]
    first, second, third = found
    assert f"{first}, {second} and {third} % of all cases" in " ".join(readme.split())


def test_the_demo_shows_that_something_was_learned() -> None:
    """Trap: a demo that looks like a collapse. Each seed is far above its start and pixels."""
    row = json.loads((ROOT / "benchmarks/results/textures-ijepa.json").read_text())["rows"][0]
    assert len(row["trained"]) >= 3
    for pixels, before, after in zip(row["raw"], row["untrained"], row["trained"], strict=True):
        assert max(pixels[:2]) < 0.25
        assert min(after[kind] - before[kind] for kind in (0, 1)) > 0.2
        assert after[2] > before[2] and after[3] > before[3], "rank and std of the features"
    assert all(run["trained"] > 30 * run["chance"] for run in row["retrieval"])
