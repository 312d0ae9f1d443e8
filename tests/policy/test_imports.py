"""Imports: what `import jepakit` may load, and that the package is built in layers."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src" / "jepakit"

# A part may import parts of lower layers only, and nothing of its own layer but itself.
LAYERS = [
    {"_checks", "_distributed", "_precision", "_saved_file", "_typecheck", "_wrapped"},
    {"_rows", "_pairs"},
    {"checkpoints", "tokens"},
    {"masking", "losses", "schedules", "diagnostics", "data", "optim"},
    {"nn"},
    {"teacher"},
    {"evaluation"},
    {"interop", "plots", "testing"},
    {"__init__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

HEAVY = [
    "timm",
    "torchvision",
    "sklearn",
    "matplotlib",
    "PIL",
    "rich",
    "hypothesis",
    "pytest",
    "torch._dynamo",
    "sympy",
]


def module_name(path: Path) -> str:
    parts = ["jepakit", *path.relative_to(SRC).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


FILES = {module_name(path): path for path in sorted(SRC.rglob("*.py"))}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imported(path: Path) -> set[str]:
    """The modules that a file imports, at any depth, as absolute dotted names."""
    names: set[str] = set()
    package = list(path.parent.relative_to(SRC.parent).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                names.add(full if full in FILES else base)
    return names


def own_imports(path: Path) -> set[str]:
    return {
        "jepakit.__init__" if name == "jepakit" else name
        for name in imported(path)
        if name.split(".")[0] == "jepakit"
    }


@pytest.mark.parametrize("hook", ["0", "1"])
def test_import_is_light(hook):
    """Trap: a library that loads timm and torchvision on import costs seconds before any work."""
    code = (
        "import sys, json, jepakit, jepakit.testing\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "PYTHONPATH": str(SRC.parent), "JEPAKIT_TYPECHECK": hook},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(out.stdout) == []


def test_the_switch_is_0_or_1():
    """Trap: `JEPAKIT_TYPECHECK=true`, which checked nothing and did not say so."""
    run = subprocess.run(
        [sys.executable, "-c", "import jepakit"],
        env={"PATH": "", "PYTHONPATH": str(SRC.parent), "JEPAKIT_TYPECHECK": "true"},
        capture_output=True,
        text=True,
    )
    error = run.stderr.strip().splitlines()[-1]
    assert error == "ValueError: JEPAKIT_TYPECHECK='true': must be '0' or '1', or not be set"


@pytest.mark.parametrize("module", FILES)
def test_imports_go_downwards(module):
    part = part_of(module)
    assert part in LEVEL, f"{part} has no layer yet: add it to LAYERS"
    for name in own_imports(FILES[module]):
        other = part_of(name)
        assert other == part or LEVEL[other] < LEVEL[part], f"{module} imports {name}"


def test_no_import_cycles():
    graph = {name: own_imports(path) for name, path in FILES.items()}
    # Importing a submodule runs its package's __init__ too, but that alone is no dependency.
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert len(order) >= len(FILES)


@pytest.mark.parametrize("module", FILES)
def test_only_the_backbones_know_timm(module):
    roots = {name.split(".")[0] for name in imported(FILES[module])}
    if not module.startswith("jepakit.nn._backbones."):
        # torchvision reads image folders; its models and timm's are the backbones' business.
        known = {"torchvision"} if module == "jepakit.data.datasets" else set()
        assert not roots & {"timm", "torchvision"} - known


@pytest.mark.parametrize("module", FILES)
def test_nothing_heavy_at_module_level(module):
    tree = ast.parse(FILES[module].read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {
        name.split(".")[0]
        for node in top
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    allowed = {
        "jepakit.testing.strategies": {"hypothesis"},  # nothing of jepakit imports it
        "jepakit.nn._backbones.relative": {"timm"},  # imported when there is a backbone to adapt
        "jepakit.nn._backbones.plain": {"timm"},  # imported when there is a model to inflate
    }
    assert not roots & (set(HEAVY) - allowed.get(module, set()))


def test_every_submodule_is_reachable_as_an_attribute():
    """Trap: `import jepakit; jepakit.interop.load_ijepa` is an AttributeError; and a function that
    hides the module of its own name, so that an attribute is no module.
    """
    code = (
        "import importlib, json, pkgutil, types, jepakit\n"
        "names = [i.name for i in pkgutil.iter_modules(jepakit.__path__) if i.name[0] != '_']\n"
        "bad = [n for n in names if not isinstance(getattr(jepakit, n), types.ModuleType)]\n"
        "for info in pkgutil.walk_packages(jepakit.__path__, 'jepakit.'):\n"
        "    importlib.import_module(info.name)\n"
        "    found = jepakit\n"
        "    for part in info.name.split('.')[1:]:\n"
        "        found = getattr(found, part)\n"
        "    if not isinstance(found, types.ModuleType):\n"
        "        bad.append(info.name)\n"
        "print(json.dumps(bad))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "PYTHONPATH": str(SRC.parent), "JEPAKIT_TYPECHECK": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(out.stdout) == []


@pytest.mark.parametrize(
    "name",
    ["data", "evaluation", "interop", "optim", "plots", "testing", "testing.strategies"],
)
def test_a_module_is_imported_at_its_first_use(name):
    """In a fresh process: here all of them are imported already."""
    first = name.split(".")[0]
    code = f"import jepakit; assert {first!r} in dir(jepakit); jepakit.{name}.__all__"
    env = {"PATH": "", "PYTHONPATH": str(SRC.parent), "JEPAKIT_TYPECHECK": "0"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
