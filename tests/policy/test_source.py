"""House rules that can be read off the source."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import jepakit

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "jepakit"
FILES = [path.relative_to(SRC).as_posix() for path in sorted(SRC.rglob("*.py"))]

# (file, function): why it may take **kwargs.
KWARGS = {
    ("teacher.py", "EMATeacher.forward"): "it is called like the student, whatever that is",
    ("nn/_backbones/stand_in.py", "FollowedBy.__call__"): "it is called like any module",
    ("nn/_backbones/stand_in.py", "stand_in"): "attributes of any module",
}

# Written so that this file does not hold what it looks for.
HOSTS = ["pypi" + ".org", "python" + "hosted.org", "anaconda" + ".org", "download." + "pytorch.org"]
MACHINE_PATHS = [rf"(?<![\w.~-])/{top}/\w" for top in ("work", "home", "root", "Users", "tmp/bash")]


def tree_of(file: str) -> ast.Module:
    return ast.parse((SRC / file).read_text())


def functions(node: ast.AST, prefix: str = "") -> list[tuple[str, ast.FunctionDef]]:
    """Functions of a module and methods of its classes; not those within functions."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((prefix + child.name, child))
        elif isinstance(child, ast.ClassDef):
            found += functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.If):
            found += functions(child, prefix)
    return found


def is_public(qualname: str) -> bool:
    return all(
        not name.startswith("_") or (name.startswith("__") and name.endswith("__"))
        for name in qualname.split(".")
    )


@pytest.mark.parametrize("file", FILES)
def test_no_assert(file):
    """Trap: `python -O` removes asserts, and what they guarded passes silently."""
    lines = [node.lineno for node in ast.walk(tree_of(file)) if isinstance(node, ast.Assert)]
    assert not lines, f"assert in lines {lines}: raise an error that names argument, value, rule"


@pytest.mark.parametrize("file", FILES)
def test_no_future_annotations(file):
    """Annotations as strings are not what jaxtyping's hook can check."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            assert "annotations" not in {alias.name for alias in node.names}


# Names that say nothing of what is inside, or that shadow the standard library.
BANNED = {"utils", "util", "helpers", "common", "misc", "queue", "random", "statistics"}


@pytest.mark.parametrize("file", FILES)
def test_file_names_say_what_is_inside(file):
    assert Path(file).stem not in BANNED


@pytest.mark.parametrize("file", FILES)
def test_what_is_not_exported_has_an_underscore(file):
    """A listing shows what is public: what has no underscore is re-exported."""
    parts = Path(file).with_suffix("").parts
    if parts[-1] == "__init__" or any(part.startswith("_") for part in parts):
        return
    assert file in exporting(), f"{file}: no __init__ re-exports from it; give it an underscore"


@pytest.mark.parametrize("file", FILES)
def test_no_kwargs_in_public_signatures(file):
    """Trap: options accepted and ignored, because a misspelt name vanishes in **kwargs."""
    if Path(file).name.startswith("_") and file != "__init__.py":
        return
    taking = {
        name for name, node in functions(tree_of(file)) if is_public(name) and node.args.kwarg
    }
    assert taking == {name for where, name in KWARGS if where == file}


def exporting() -> set[str]:
    """The packages' faces and the modules that they re-export, or re-export from."""
    found = set()
    for file in FILES:
        if Path(file).name != "__init__.py":
            continue
        paths = [(Path(file).parent / name).as_posix() for name in lazy_modules(file)]
        for node in tree_of(file).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jepakit."):
                paths.append(node.module.removeprefix("jepakit.").replace(".", "/"))
        if paths:
            found.add(file)
        for path in paths:
            found |= {f"{path}.py", f"{path}/__init__.py"} & set(FILES)
    return found


def lazy_modules(file: str) -> set[str]:
    """`_LAZY` of a package: the modules that it imports when they are asked for."""
    for node in tree_of(file).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_LAZY":
            return ast.literal_eval(node.value.args[0])
    return set()


@pytest.mark.parametrize("file", FILES)
def test_modules_say_what_they_are_and_export(file):
    tree = tree_of(file)
    assert ast.get_docstring(tree), "a module docstring"
    assigned = {
        ast.unparse(target)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    private = any(part.startswith("_") and part != "__init__.py" for part in Path(file).parts)
    assert "__all__" in assigned or private or file not in exporting()


@pytest.mark.parametrize("file", FILES)
def test_suppressions_say_which_and_are_few(file):
    text = (SRC / file).read_text()
    assert not re.search(r"#\s*noqa(?!: [A-Z]+\d)", text), "noqa without a code"
    assert not re.search(r"#\s*type: ignore(?!\[)", text), "type: ignore without a code"
    assert len(re.findall(r"#\s*(?:noqa|type: ignore)", text)) <= 3


def tracked_texts() -> list[tuple[str, str]]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file():
            try:
                texts.append((name, path.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue
    return texts


def test_no_registry_host_and_no_machine_path():
    """The project installs from whatever index pip is set to, on any machine."""
    pattern = re.compile("|".join([*map(re.escape, HOSTS), *MACHINE_PATHS]))
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_one_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == jepakit.__version__
    assert f"## [{jepakit.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
