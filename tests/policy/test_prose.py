"""Words: the field's terms in names, plain technical English in docstrings, comments and pages."""

import ast
import re
from pathlib import Path

import pytest
from tests.policy.test_public_api import OBJECTS, fields, members, node_of, parameters

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "jepakit").rglob("*.py"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs").glob("*.py")),
    *sorted((ROOT / "docs" / "tutorials" / "source").glob("*")),
    *sorted((ROOT / "examples").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXTS = [
    path for path in [*SOURCES, *PAGES, *TESTS] if "_build" not in path.parts and path.is_file()
]

# What it says instead: reported, warned; no one; half precision; host synchronisation; codebook.
AVOIDED = re.compile(
    r"\b(told|tells|nobody|nobody's|half[- ]types?|reads? (it |them |this )?back|book"
    r"|what stands at|no vote|grown-up|has a say)\b",
    re.IGNORECASE,
)
RIDDLES = ("What ", "How ", "Whether ", "Which ", "Where ")
# Parts of public names that other words have replaced: fractions are *_ratio, counts num_*.
NAMES = re.compile(r"(_fall|_share|_below|^block_size|^need|mixture.*|^num_draws)$", re.IGNORECASE)
# Names that say nothing of what is meant.
RIDDLE_NAMES = re.compile(r"^(anywhere|among|figures|lacks|show|sums|told|tally|places|breach)$")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_words_to_avoid(path: Path) -> None:
    if path in (ROOT / "CONTRIBUTING.md", Path(__file__).resolve()):
        pytest.skip("lists the words to avoid")
    found = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if AVOIDED.search(line)
    ]
    assert not found, "\n".join(found)


def docstrings(path: Path) -> list[tuple[int, str]]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, kinds):
            doc = ast.get_docstring(node)
            if doc:
                found.append((getattr(node, "lineno", 1), doc.splitlines()[0]))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_first_lines_say_what_a_thing_is_or_does(path: Path) -> None:
    """Trap: "What stands at the targets, told from the context" for a predictor."""
    found = [f"{number}: {line}" for number, line in docstrings(path) if line.startswith(RIDDLES)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", OBJECTS)
def test_public_names_are_terms(name: str) -> None:
    obj = OBJECTS[name]
    names = [name]
    if isinstance(obj, type):
        names += [*fields(obj), *getattr(obj, "_fields", ())]
        for method, node in members(obj).items():
            names += [method, *parameters(node)]
    else:
        names += parameters(node_of(obj))
    assert not [each for each in names if NAMES.search(each)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_and_files_have_telling_names(path: Path) -> None:
    names = [path.stem] + [
        node.name.lstrip("_")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    assert not [each for each in names if RIDDLE_NAMES.search(each)]
