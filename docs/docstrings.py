"""From source to reference page: signatures as they are written, `$math$`, and MathML."""

import ast
import dataclasses
import html
import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

# Commands that docutils' translator does not know, by ones that it does.
SYNONYMS = {
    r"\\dots(?![a-z])": r"\\ldots",
    r"\\(big|Big|bigg|Bigg)(?=[(\[])": r"\\\1l",
    r"\\(big|Big|bigg|Bigg)(?=[)\]])": r"\\\1r",
    r"\\(big|Big|bigg|Bigg)(?![a-z])": r"",
}
# Characters that docutils writes and few fonts have, by ones that most have.
GLYPHS = str.maketrans({"\N{REVERSE SOLIDUS OPERATOR}": "\N{SET MINUS}"})
LOGGER = logging.getLogger(__name__)
Def = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def _parsed(module: str) -> ast.Module:
    return ast.parse(Path(importlib.import_module(module).__file__).read_text())


def _node(obj: Any) -> Any:
    body: Any = _parsed(obj.__module__)
    for name in obj.__qualname__.split("."):
        found = [node for node in body.body if getattr(node, "name", None) == name]
        if not found:
            return None
        body = found[-1]
    return body


def _shown(node: ast.AST) -> str:
    # A class that stands in its own annotations is quoted there; shapes after `Tensor` stay so.
    return re.sub(r"(?<!Tensor, )'([A-Z]\w*)'", r"\1", ast.unparse(node))


def _signature(node: Def, *, method: bool) -> tuple[str, str | None]:
    args = _shown(node.args)
    if method:
        args = re.sub(r"^(self|cls)(, (/, )?)?", "", args)
    return f"({args})", _shown(node.returns) if node.returns else None


def _init(cls: type) -> str | None:
    for base in cls.__mro__:
        if base.__module__.split(".")[0] != "jepakit":
            return None
        if "__init__" in vars(base) and not dataclasses.is_dataclass(base):
            node = _node(base.__init__)
            return _signature(node, method=True)[0] if node else None
        if dataclasses.is_dataclass(base):
            # Fields may be written in a base class.
            bases = [each for each in reversed(base.__mro__) if dataclasses.is_dataclass(each)]
            written = [n for each in bases for n in _node(each).body]
            shown = {n.target.id: n for n in written if isinstance(n, ast.AnnAssign)}
            fields = [f for f in dataclasses.fields(base) if f.init]
            parts = [_shown(shown[f.name]) for f in fields if not f.kw_only]
            keywords = [_shown(shown[f.name]) for f in fields if f.kw_only]
            return f"({', '.join([*parts, *(['*', *keywords] if keywords else [])])})"
    return None


def signature(
    app: Any, what: str, name: str, obj: Any, options: Any, args: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    if what == "class":
        shown = _init(obj)
        return (shown, None) if shown else None
    if what in {"function", "method"}:
        function = inspect.unwrap(getattr(obj, "__func__", obj))
        if getattr(function, "__module__", "").split(".")[0] == "jepakit":
            node = _node(function)
            if isinstance(node, Def):
                method = what == "method" and "staticmethod" not in map(
                    ast.unparse, node.decorator_list
                )
                return _signature(node, method=method)
    return None


def math(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn `$$ ... $$` into math blocks and `$...$` into inline math, in place."""
    text = "\n".join(lines)
    text = re.sub(r"^([ ]*)\$\$(.+?)\$\$[ ]*$", _block, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(?<![\\$])\$([^$\n]+(?:\n[^$\n]+)?)\$(?!\$)", _inline, text)
    lines[:] = text.splitlines()


def _block(match: re.Match[str]) -> str:
    indent = match[1]
    body = "\n".join(f"{indent}   {line.strip()}" for line in match[2].strip().splitlines())
    return f"{indent}.. math::\n\n{body}\n"


def _inline(match: re.Match[str]) -> str:
    return f":math:`{match[1]}`"


def inline_mathml(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def block_mathml(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, *, as_block: bool) -> str:
    """Browsers render MathML themselves, so the pages need no script from elsewhere."""
    tex = node.astext()
    for name, known in SYNONYMS.items():
        tex = re.sub(name, known, tex)
    try:
        return tex2mathml(tex, as_block=as_block).translate(GLYPHS)
    except MathError as error:
        LOGGER.warning("%s in %s", error, node.astext(), location=node)
        return f"<code>{html.escape(node.astext())}</code>"
