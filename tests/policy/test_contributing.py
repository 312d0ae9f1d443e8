"""Pages for contributors agree with the code: paths, laws, floors, versions and CI."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from jepakit import MaskedPredictor, MultiBlockMask, RandomMask

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["CONTRIBUTING.md", "RELEASING.md", "docs/architecture.md"]
LAWS = range(1, 17)


def load(path: str) -> ModuleType:
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


source_tree = load("docs/source_tree.py")


# Pages


@pytest.mark.parametrize("page", PAGES)
def test_links_point_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([\w-]+))?\)", text)
    assert links
    for target, anchor in links:
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    """Trap: a guide that names files which were renamed long ago."""
    text = (ROOT / page).read_text()
    paths = re.findall(r"`((?:src|tests|docs|benchmarks|examples|\.ci)/[\w./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_tables_to_extend_exist():
    """A table of tests that the guide names ("`CASES` of `tests/...`") is a variable there."""
    text = (ROOT / "CONTRIBUTING.md").read_text().replace("\n", " ")
    named = re.findall(r"`([A-Z_]+)` (?:of|in)\s+`(tests/[\w/]+\.py)`", text)
    assert len(named) >= 5
    for name, path in named:
        tree = ast.parse((ROOT / path).read_text())
        targets = {
            ast.unparse(target)
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        }
        assert name in targets, f"{path} has no {name}"


def test_every_folder_of_tests_is_in_the_table():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = set(re.findall(r"\| `tests/(\w+)` \| \d+ ", text))
    assert listed == {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}


def test_commands_of_the_conformance_tables_are_those_of_their_page():
    """Trap: without `--which`, rows of the second table are written into the first."""
    command = r"python benchmarks/timm_conformance\.py.*--write.*"
    here = re.findall(command, (ROOT / "CONTRIBUTING.md").read_text())
    assert len(here) == 2
    assert here == re.findall(command, (ROOT / "docs" / "timm_models.md").read_text())


@pytest.mark.no_hook
def test_errors_of_the_style_table_are_real():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.split("the argument, the value and the rule")[1].split("| good name")[0]
    listed = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    predictor = MaskedPredictor((4, 4), 8, predictor_embed_dim=8, depth=1, num_heads=1)
    masks = RandomMask((4, 4))(2)
    raised = []
    for call in (
        lambda: MultiBlockMask((14, 14), num_targets=0),
        lambda: MultiBlockMask((14, 14), target_scale=(0.2, 0.1)),
        lambda: MultiBlockMask((14, 14), allow_target_overlap=1),
        lambda: predictor(torch.zeros(2, 4, 8), masks.context.idx, masks.targets),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        raised.append(str(error.value))
    assert listed == raised


# Laws


def test_every_law_has_its_text_and_anchor():
    text = (ROOT / "docs" / "architecture.md").read_text()
    headings = re.findall(r"^\(law-(\d+)\)=\n### Law (\d+): \w", text, re.MULTILINE)
    assert headings == [(str(law), str(law)) for law in LAWS]


def test_every_law_has_a_test():
    tests = source_tree.law_tests()
    assert list(tests) == list(LAWS)
    assert not {law for law in LAWS if not tests[law]}


def test_no_other_law_is_cited():
    """Trap: a number that was right before the laws were renumbered."""
    for folder in ("src", "tests", "docs", "benchmarks", "examples"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".md"} and not {"_build", "_pictures"} & set(path.parts):
                assert source_tree.cited_laws(path.read_text()) <= set(LAWS), path


@pytest.mark.parametrize(
    ("text", "laws"),
    [
        ("Law 6: padding", {6}),
        ("Laws 5 and 6 of `MaskedViT`", {5, 6}),
        ("every argument matters (law 12); copies (law 13)", {12, 13}),
        ("Laws 1, 2, 5 for masks", {1, 2, 5}),
        ("laws 1 to 4 and 7", {1, 2, 3, 4, 7}),
        ("laws that hold for 2 samples", set()),
        ("flaws 3", set()),
    ],
)
def test_citations_are_understood(text, laws):
    assert source_tree.cited_laws(text) == laws


# Floors


def test_every_room_is_on_a_floor():
    listed = {room for _, rooms in source_tree.floors() for room in rooms}
    present = {
        path.stem
        for path in (ROOT / "src" / "jepakit").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file())
    }
    assert listed == present - {"__init__"}
    assert all(source_tree.summary(room) for room in listed)


def test_the_table_of_rooms_shows_downward_imports():
    level = {}
    for number, (_, rooms) in enumerate(source_tree.floors()):
        level |= dict.fromkeys(rooms, number)
    for room, number in level.items():
        for other in source_tree.imported_rooms(room) & set(level):
            assert level[other] < number, f"{room} imports {other}"


def test_nothing_overlaps_in_the_picture(monkeypatch):
    """Boxes stay apart and within the frame; hardly a line passes behind one."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    pictures = load("docs/architecture_pictures.py")
    layout = pictures.layout()
    assert sum(pictures.passes_behind(edge, layout) for edge in pictures.edges()) <= 2
    for floor in range(len(layout)):
        row = sorted(
            (x - pictures.half_width(room), x + pictures.half_width(room))
            for room, (x, number) in layout.items()
            if number == floor
        )
        assert not row or (
            row[0][0] >= pictures.LEFT - 1e-6 and row[-1][1] <= pictures.WIDTH + 1e-6
        )
        assert all(left[1] < right[0] for left, right in pairwise(row))


# Versions and CI


def test_the_lowest_versions_are_the_lower_bounds():
    script = load(".ci/lowest.py")
    assert script.FILE.read_text() == script.lowest(), "python .ci/lowest.py writes it anew"


def test_every_requirement_has_a_lower_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    every = [requirement for group in groups for requirement in group]
    assert [name for name in every if not re.search(r">=\d|^jepakit\[", name)] == []


def test_the_workflow_runs_every_check():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if ".ci/run" in step.get("run", "")]
    newest, lowest = job["strategy"]["matrix"]["include"]
    assert not newest["stages"] and not newest["constraints"], "every stage, newest versions"
    assert (ROOT / lowest["constraints"]).is_file()
    assert project["requires-python"] == f">={lowest['python']}"
    assert f"Programming Language :: Python :: {newest['python']}" in project["classifiers"]


def test_stages_are_chosen_by_name():
    """Trap: a stage that is misspelt in a workflow runs nothing and passes."""
    run = subprocess.run([ROOT / ".ci" / "run", "test"], capture_output=True, text=True)
    assert run.returncode == 2 and "no stage 'test'" in run.stderr


def test_hooks_download_nothing():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "mypy"}
    assert {hook["language"] for hook in hooks} == {"system"}


def test_coverage_names_the_least_covered_files(tmp_path):
    pytest.importorskip("coverage")
    (tmp_path / "half.py").write_text("def f():\n    return 1\n\n\ndef g():\n    return f()\n")
    (tmp_path / "all.py").write_text("import half\n\nhalf.f()\n")
    for command in (
        ["-m", "coverage", "run", "--source=.", "all.py"],
        [str(ROOT / ".ci" / "coverage_report.py")],
    ):
        run = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
        )
    lines = run.stdout.split("\n")
    assert lines[1] == "lines of jepakit that the tests run: 83.3 %"
    assert lines[2].endswith("half.py  lines 6") and lines[3].endswith("all.py")
