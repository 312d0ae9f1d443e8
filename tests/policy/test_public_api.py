"""The public surface: a snapshot with signatures, and documentation that matches the signatures.

Signatures are read from the source, so that they do not depend on the type-checking hook.
After a change that is meant: `JEPAKIT_UPDATE_API=1 pytest tests/policy`, and read the diff.
"""

import ast
import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest

import jepakit

SNAPSHOT = Path(__file__).with_name("api.txt")
Def = ast.FunctionDef | ast.AsyncFunctionDef

# Tensor arguments and results that may stay without a shape: (qualified name): why.
UNSHAPED = {
    "EMATeacher.forward": "it is called like the student, whatever that is",
}


def public_modules() -> list[ModuleType]:
    found = [jepakit]
    for info in pkgutil.iter_modules(jepakit.__path__, "jepakit."):
        if not info.name.rpartition(".")[2].startswith("_"):
            found.append(importlib.import_module(info.name))
    # Its package imports it when it is asked for: it needs hypothesis.
    found.append(importlib.import_module("jepakit.testing.strategies"))
    return found


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(Path(importlib.import_module(module).__file__).read_text())


def node_of(obj: Any) -> ast.AST | None:
    """The definition of a class or function of jepakit."""
    body: Any = parsed(obj.__module__)
    for name in obj.__qualname__.split("."):
        matches = [n for n in body.body if getattr(n, "name", None) == name]
        if not matches:
            return None
        body = matches[-1]
    return body


def is_ours(obj: Any) -> bool:
    return getattr(obj, "__module__", "").split(".")[0] == "jepakit" and (
        inspect.isclass(obj) or inspect.isroutine(obj)
    )


def decorators(node: Def) -> set[str]:
    return {ast.unparse(d).split("(")[0].rpartition(".")[2] for d in node.decorator_list}


def signature(node: Def, *, method: bool) -> str:
    args = ast.unparse(node.args)
    if method and "staticmethod" not in decorators(node):
        args = re.sub(r"^(self|cls)(, (/, )?)?", "", args)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({args}){returns}"


def lineage(cls: type) -> list[ast.ClassDef]:
    """A class and its bases within jepakit, the class itself first."""
    nodes = [node_of(base) for base in cls.__mro__ if is_ours(base)]
    return [node for node in nodes if isinstance(node, ast.ClassDef)]


def members(cls: type) -> dict[str, Def]:
    """Public methods and properties, and `__init__` and `__call__` where jepakit has them."""
    found: dict[str, Def] = {}
    for node in lineage(cls):
        for child in node.body:
            if isinstance(child, Def) and (
                not child.name.startswith("_") or child.name in {"__init__", "__call__"}
            ):
                found.setdefault(child.name, child)
    return found


def fields(cls: type) -> dict[str, ast.AnnAssign]:
    """Fields of a dataclass, bases first, or of a named tuple."""
    if not dataclasses.is_dataclass(cls) and not issubclass(cls, tuple):
        return {}  # a module declares its buffers like this, for the type checker
    found: dict[str, ast.AnnAssign] = {}
    for node in reversed(lineage(cls)):
        for child in node.body:
            if isinstance(child, ast.AnnAssign):
                name = ast.unparse(child.target)
                if not name.startswith("_"):
                    found[name] = child
    own = getattr(cls, "_fields", None) or {field.name for field in dataclasses.fields(cls)}
    return {name: node for name, node in found.items() if name in own}


def describe(name: str, obj: Any) -> list[str]:
    if isinstance(obj, ModuleType):
        return [f"{name}: module"]
    if not is_ours(obj):
        return [f"{name} = {obj!r}"]
    if not inspect.isclass(obj):
        node = node_of(obj)
        return [f"{name}{signature(node, method=False)}"]
    bases = [base.__name__ for base in obj.__bases__ if base is not object]
    lines = [f"class {name}" + (f"({', '.join(bases)})" if bases else "")]
    for key, field in fields(obj).items():
        keyword = dataclasses.is_dataclass(obj) and obj.__dataclass_fields__[key].kw_only
        lines.append(f"    {'* ' if keyword else ''}{ast.unparse(field)}")
    for method, node in members(obj).items():
        kind = decorators(node) & {"property", "classmethod", "staticmethod", "cached_property"}
        mark = "".join(f"@{k} " for k in sorted(kind))
        lines.append(f"    {mark}{method}{signature(node, method=True)}")
    return lines


def surface() -> str:
    lines: list[str] = []
    for module in public_modules():
        lines.append(f"[{module.__name__}]")
        for name in sorted(module.__all__):
            obj = getattr(module, name)
            home = getattr(obj, "__module__", "")
            if module is jepakit and is_ours(obj):
                # Described in full where it is defined; the package only re-exports.
                lines.append(f"{name} <- {'.'.join(home.split('.')[:2])}")
            else:
                lines += describe(name, obj)
        lines.append("")
    return "\n".join(lines)


def public_objects() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in public_modules():
        for name in module.__all__:
            obj = getattr(module, name)
            if is_ours(obj):
                found[name] = obj
    return found


OBJECTS = public_objects()
# An error, a protocol and a named tuple have no call of their own to show.
DOCUMENTED = [
    name
    for name, obj in OBJECTS.items()
    if not (
        inspect.isclass(obj) and (issubclass(obj, Exception | tuple) or Protocol in obj.__bases__)
    )
]


def section(doc: str, title: str) -> str:
    """The body of a Google-style section, dedented; empty where there is none."""
    match = re.search(rf"^{title}:\n((?:(?:[ \t].*)?(?:\n|$))*)", inspect.cleandoc(doc), re.M)
    return inspect.cleandoc("x\n" + match[1])[2:] if match else ""


def parameters(node: Def) -> list[str]:
    args = node.args
    names = [a.arg for a in [*args.posonlyargs, *args.args, *args.kwonlyargs]]
    names += [a.arg for a in (args.vararg, args.kwarg) if a]
    return [name for name in names if name not in {"self", "cls"} and not name.startswith("_")]


def documented(doc: str) -> list[str]:
    names: list[str] = []
    for line in section(doc, "Args").splitlines():
        match = re.match(r"((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*)(?: \(.*?\))?:", line)
        if match:
            names += [name.strip().lstrip("*") for name in match[1].split(",")]
    return names


def doc_of(obj: Any) -> str:
    doc = ast.get_docstring(node_of(obj)) if node_of(obj) else ""
    return doc or ""


def test_snapshot():
    """A change of the public surface is made on purpose and seen in review."""
    now = surface()
    if os.environ.get("JEPAKIT_UPDATE_API") == "1":
        SNAPSHOT.write_text(now)
    then = SNAPSHOT.read_text() if SNAPSHOT.exists() else ""
    assert now.splitlines() == then.splitlines(), "meant? JEPAKIT_UPDATE_API=1 pytest tests/policy"


def test_everything_exported_exists():
    for module in public_modules():
        assert list(module.__all__) == sorted(module.__all__)
        assert not [name for name in module.__all__ if not hasattr(module, name)]


@pytest.mark.parametrize("name", OBJECTS)
def test_docstring_starts_with_one_line(name):
    first, *rest = doc_of(OBJECTS[name]).splitlines() or [""]
    assert first.endswith((".", "?")), f"{name}: one line, a sentence"
    assert not rest or rest[0] == ""


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_has_an_example(name):
    assert ">>>" in section(doc_of(OBJECTS[name]), "Example"), f"{name}: an Example that runs"


@pytest.mark.parametrize("name", OBJECTS)
def test_a_source_is_a_paper_or_a_published_code(name):
    """The section is left out if there is no source."""
    doc = doc_of(OBJECTS[name])
    assert "Source:" not in doc or re.search("paper|code|arXiv|[0-9]{4}", section(doc, "Source"))
    assert "jepakit's own." not in doc


def may_raise(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(node, ast.Raise) or (
        isinstance(called, ast.Name) and called.id.startswith("check_")
    )


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_raises_says_so(name):
    """Trap: a rule that a user meets for the first time when it is broken."""
    node = node_of(OBJECTS[name])
    raises = any(map(may_raise, ast.walk(node))) if node else False
    assert not raises or section(doc_of(OBJECTS[name]), "Raises"), f"{name}: what it raises"


@pytest.mark.parametrize("name", OBJECTS)
def test_args_match_the_signature(name):
    """Trap: an argument that is documented and does not exist, or exists and is not documented."""
    obj = OBJECTS[name]
    if not inspect.isclass(obj):
        node = node_of(obj)
        assert sorted(documented(doc_of(obj))) == sorted(parameters(node))
        return
    methods = members(obj)
    own = methods.pop("__init__", None)
    expected = parameters(own) if own else list(fields(obj))
    if own and ast.get_docstring(own) and not documented(doc_of(obj)):
        assert sorted(documented(ast.get_docstring(own))) == sorted(expected)
    elif own or hasattr(obj, "__dataclass_fields__"):
        assert sorted(documented(doc_of(obj))) == sorted(expected)
    for method, node in methods.items():
        doc = ast.get_docstring(node) or ""
        assert doc, f"{name}.{method}: a docstring"
        # The first line alone will do where it names the arguments.
        named = re.findall(r"`(\w+)`", doc.splitlines()[0])
        unknown = set(documented(doc)) - set(parameters(node))
        missing = set(parameters(node)) - set(documented(doc)) - set(named)
        assert not unknown and not missing, f"{name}.{method}: {unknown=} {missing=}"


def annotations(node: Def) -> dict[str, str]:
    args = node.args
    every = [
        *args.posonlyargs,
        *args.args,
        *args.kwonlyargs,
        *filter(None, [args.vararg, args.kwarg]),
    ]
    found = {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in every}
    found["return"] = ast.unparse(node.returns) if node.returns else ""
    return found


SHAPED = {"UInt8", "Bool", "Complex", "Float", "Inexact", "Int", "Integer", "Num", "Shaped"}


def bare_tensor(annotation: str) -> bool:
    """True if `Tensor` has no jaxtyping shape, where one could be checked."""

    def bare(node: ast.AST) -> bool:
        # What a callable will be given cannot be checked when it is handed over.
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in {*SHAPED, "Callable"}:
            return False
        if isinstance(node, ast.Name | ast.Attribute):
            return ast.unparse(node).rpartition(".")[2] == "Tensor"
        return any(map(bare, ast.iter_child_nodes(node)))

    return bare(ast.parse(annotation or "None"))


@pytest.mark.parametrize("name", OBJECTS)
def test_tensors_have_shapes(name):
    obj = OBJECTS[name]
    if inspect.isclass(obj):
        nodes = {f"{name}.{key}": node for key, node in members(obj).items()}
        for key, field in fields(obj).items():
            assert not bare_tensor(ast.unparse(field.annotation)), f"{name}.{key}"
    else:
        nodes = {name: node_of(obj)}
    for where, node in nodes.items():
        for argument, annotation in annotations(node).items():
            if argument in {"self", "cls"}:
                continue
            assert annotation or argument == "return", f"{where}: {argument} has no annotation"
            if where not in UNSHAPED:
                assert not bare_tensor(annotation), f"{where}: {argument}: {annotation}"


def test_bare_tensor_is_seen():
    for annotation in ("Tensor", "list[Tensor]", "torch.Tensor | None"):
        assert bare_tensor(annotation)
    assert not bare_tensor("Float[Tensor, 'b n d'] | None")
