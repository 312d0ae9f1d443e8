"""Facts of the page on architecture, read from the code: rooms and imports, laws and tests."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "jepakit"
TESTS = ROOT / "tests"
NUM_LAWS = 16


def layers() -> list[set[str]]:
    """`LAYERS` of the policy test on imports, lowest first: the one place that holds the rule."""
    tree = ast.parse((TESTS / "policy" / "test_imports.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            return [set(layer) for layer in ast.literal_eval(node.value)]
    raise LookupError("tests/policy/test_imports.py has no LAYERS")


def floors() -> list[tuple[str, list[str]]]:
    """(label, rooms) from the lowest: `helpers` are private files, floors count from 0 above."""
    found: list[tuple[str, list[str]]] = []
    number = 0
    for layer in layers():
        rooms = sorted(room for room in layer if path_of(room).exists() and room != "__init__")
        if not rooms:
            continue
        if all(room.startswith("_") for room in rooms):
            found.append(("helpers", rooms))
        else:
            found.append((str(number), rooms))
            number += 1
    return found


def path_of(room: str) -> Path:
    folder = SRC / room
    return folder if folder.is_dir() else SRC / f"{room}.py"


def summary(room: str) -> str:
    """First line of a room's module docstring."""
    path = path_of(room)
    doc = ast.get_docstring(
        ast.parse((path / "__init__.py" if path.is_dir() else path).read_text())
    )
    return doc.splitlines()[0] if doc else ""


def imported_rooms(room: str) -> set[str]:
    """Rooms that the files of a room import, at any depth of the code."""
    path = path_of(room)
    found: set[str] = set()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "jepakit":
                names = [f"jepakit.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found |= {name.split(".")[1] for name in names if name.startswith("jepakit.")}
    return found - {room}


def room_table() -> str:
    """Every room, top floor first: what it holds, what it may import and what it imports."""
    lines = ["| floor | room | holds | may import | imports |", "|---|---|---|---|---|"]
    listed = floors()
    below = ["nothing of jepakit"]
    for (label, _), (following, _) in pairwise(listed):
        if label == "helpers":
            below.append("other helpers" if following == "helpers" else "helpers")
        else:
            below.append("helpers, floor 0" if label == "0" else f"helpers, floors 0 to {label}")
    for (label, rooms), allowed in reversed(list(zip(listed, below, strict=True))):
        for room in rooms:
            name = f"`{room}/`" if path_of(room).is_dir() else f"`{room}.py`"
            imports = ", ".join(f"`{other}`" for other in sorted(imported_rooms(room)))
            lines.append(f"| {label} | {name} | {summary(room)} | {allowed} | {imports or '-'} |")
    return "\n".join(lines)


CITATION = re.compile(r"\blaws?\s+(\d+(?:(?:,\s*|\s+)(?:(?:and|or|to)\s+)?\d+)*)", re.IGNORECASE)


def cited_laws(text: str) -> set[int]:
    """Numbers of the laws that a text names, as in "Laws 5 and 6", "(law 12)", "laws 1 to 3"."""
    found: set[int] = set()
    for match in CITATION.finditer(text):
        words = re.findall(r"\d+|to", match[1])
        found |= {int(word) for word in words if word != "to"}
        for k, word in enumerate(words):
            if word == "to":
                found |= set(range(int(words[k - 1]), int(words[k + 1])))
    return found


def citations(source: str) -> Iterator[str]:
    """Docstrings of a test file, and comments that begin with "Law"."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds):
            yield ast.get_docstring(node) or ""
    yield from re.findall(r"^\s*# (Laws? .*)$", source, re.MULTILINE)


def law_tests() -> dict[int, list[str]]:
    """For each law the test files that name it, relative to `tests/`."""
    found: dict[int, list[str]] = {law: [] for law in range(1, NUM_LAWS + 1)}
    for path in sorted(TESTS.rglob("test_*.py")):
        if path.parent.name != "policy":
            for law in sorted(set().union(*map(cited_laws, citations(path.read_text())))):
                found[law].append(path.relative_to(TESTS).as_posix())
    return found


def contract_laws() -> dict[int, list[str]]:
    """For each law the functions of `jepakit.testing` whose docstrings name it."""
    found: dict[int, list[str]] = {law: [] for law in range(1, NUM_LAWS + 1)}
    for path in sorted((SRC / "testing").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and re.fullmatch(
                r"assert_\w+_contract", node.name
            ):
                for law in cited_laws(ast.get_docstring(node) or ""):
                    found[law].append(node.name)
    return found


def law_table() -> str:
    """For each law the contract that checks it for a user's own part, and jepakit's own tests."""
    lines = ["| law | contract | tests |", "|---|---|---|"]
    tests, contracts = law_tests(), contract_laws()
    for law in range(1, NUM_LAWS + 1):
        contract = ", ".join(f"`{name}`" for name in contracts[law]) or "-"
        files = ", ".join(f"`{name}`" for name in tests[law]) or "no test names it yet"
        lines.append(f"| [{law}](#law-{law}) | {contract} | {files} |")
    return "\n".join(lines)


TABLES = {"rooms": room_table, "laws": law_table}

if __name__ == "__main__":
    for table in TABLES.values():
        print(table(), end="\n\n")
