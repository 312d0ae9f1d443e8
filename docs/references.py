"""Links to the reference: from names in prose and in signatures to the pages of the objects."""

import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

import jepakit

# The picture on the page of an object, drawn by pictures.py; its alt text is that of the guides.
PICTURES = {
    "jepakit.tokens.TokenSet": "token-set",
    "jepakit.masking.MultiBlockMask": "gallery-multi-block",
    "jepakit.masking.RandomMask": "gallery-random",
    "jepakit.masking.BlockMask": "gallery-block",
    "jepakit.masking.InverseBlockMask": "gallery-inverse-block",
    "jepakit.masking.TubeMask": "gallery-tube",
    "jepakit.masking.CausalMask": "gallery-causal",
    "jepakit.masking.vjepa_masks": "gallery-vjepa",
    "jepakit.masking.UnionMask": "gallery-union",
    "jepakit.masking.ComplementMask": "gallery-complement",
    "jepakit.masking.NestedMask": "gallery-nested",
    "jepakit.masking.ReferenceMultiBlockMask": "gallery-reference",
    "jepakit.masking.audit_masks": "audits",
    "jepakit.nn.HierarchicalPyramid": "pyramid-pools",
    "jepakit.schedules.linear": "schedules",
    "jepakit.schedules.cosine": "schedules",
    "jepakit.schedules.warmup_cosine": "schedules",
    "jepakit.diagnostics.CollapseMonitor": "collapses",
    "jepakit.diagnostics.effective_rank": "ranks",
    "jepakit.data.textured_shapes": "textures",
    "jepakit.plots.plot_masks": "photographs",
}
# Short names of other libraries, as signatures and prose write them.
OTHERS = {
    "Tensor": "torch.Tensor",
    "nn.Module": "torch.nn.Module",
    "DataLoader": "torch.utils.data.DataLoader",
    "Dataset": "torch.utils.data.Dataset",
    "TensorDataset": "torch.utils.data.TensorDataset",
    "BatchSampler": "torch.utils.data.BatchSampler",
    "Generator": "torch.Generator",
    "DistributedDataParallel": "torch.nn.parallel.DistributedDataParallel",
    "AdamW": "torch.optim.AdamW",
    "Any": "typing.Any",
    "Literal": "typing.Literal",
    "NamedTuple": "typing.NamedTuple",
    "Callable": "collections.abc.Callable",
    "Iterable": "collections.abc.Iterable",
    "Collection": "collections.abc.Collection",
    "Mapping": "collections.abc.Mapping",
    "Sequence": "collections.abc.Sequence",
    "Path": "pathlib.Path",
    "Figure": "matplotlib.figure.Figure",
}
# Types without a docstring of their own.
ALIASES = {"jepakit.diagnostics.CollapseKind": ["Kind of a `Collapse`, its field `kind`.", ""]}
# Methods that torch calls, and fields without a text of their own.
NOISE = {"extra_repr", "get_extra_state", "set_extra_state"}


def public_modules() -> list[str]:
    """Every public module with an `__all__`, and `jepakit` last: its names live in the others."""
    found = [info.name for info in pkgutil.iter_modules(jepakit.__path__, "jepakit.")]
    found = [name for name in found if not name.rpartition(".")[2].startswith("_")]
    return [*found, "jepakit.testing.strategies", "jepakit"]


@cache
def names() -> dict[str, str]:
    """Each way to write a public name, and the full name that has a page.

    `MaskedViT`, `nn.MaskedViT`, `jepakit.MaskedViT` and `jepakit.nn.MaskedViT` are one object;
    methods and properties are written `EMATeacher.update`.
    """
    found: dict[str, str] = {}
    for module in public_modules():
        for name in importlib.import_module(module).__all__:
            full = found[name] if module == "jepakit" else f"{module}.{name}"
            if found.setdefault(name, full) != full:
                raise ValueError(f"{name} is public in two modules: {found[name]} and {full}")
            found[f"{module}.{name}"] = full
            found[f"{module.removeprefix('jepakit.')}.{name}"] = full
    for name, full in list(found.items()):
        module, _, last = full.rpartition(".")
        obj = getattr(importlib.import_module(module), last)
        if isinstance(obj, type):
            members = [each for base in obj.__mro__ for each in _members(base)]
            found |= {f"{name}.{each}": f"{full}.{each}" for each in members}
    return found


def _members(cls: type) -> list[str]:
    if cls.__module__.split(".")[0] != "jepakit":
        return []
    return [name for name in vars(cls) if not name.startswith("_") and name not in NOISE]


@cache
def listed() -> set[str]:
    """Full names of other libraries that the inventories hold, such as `torch.compile`."""
    files = sorted((Path(__file__).parent / "_inventories").glob("*.inv"))
    lines = [line.split()[0] for file in files for line in file.read_text().splitlines()]
    return {name for name in lines if "." in name}


def full_name(text: str) -> str | None:
    """The page's name for a code literal such as `MaskedViT` or `take_tokens()`."""
    text = text.removesuffix("()")
    return names().get(text) or OTHERS.get(text) or (text if text in listed() else None)


class LinkNames(SphinxPostTransform):
    """Code literals that are a public name become links, in prose: not in titles or other links."""

    default_priority = 5  # before references are resolved

    def run(self, **_: Any) -> None:
        kept = (nodes.reference, nodes.title, addnodes.pending_xref, addnodes.desc_signature)
        for literal in list(self.document.findall(nodes.literal)):
            target = full_name(literal.astext())
            if target is None or _inside(literal, kept):
                continue
            link = addnodes.pending_xref(
                "",
                refdomain="py",
                reftype="obj",
                reftarget=target,
                refdoc=self.env.docname,
                refexplicit=True,
                refwarn=False,
            )
            literal.replace_self(link)
            link += literal


def _inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def resolve(app: Any, env: Any, node: addnodes.pending_xref, content: Any) -> Any:
    """Resolve a short name that autodoc or a docstring wrote; intersphinx sees the full one."""
    if node.get("refdomain") != "py":
        return None
    target = full_name(node["reftarget"])
    if target is None or target == node["reftarget"]:
        return None
    node["reftarget"] = target
    domain = env.get_domain("py")
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, content
    ) or domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    doc = getattr(obj, "__doc__", None) or ""
    return True if name in NOISE or doc.startswith("Alias for field number") else None


def describe(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:0] = ALIASES.get(name, [])


def alts(folder: Path) -> dict[str, str]:
    """The alt text of each picture, from the pages that show it."""
    pattern = re.compile(r"```\{picture\} ([\w-]+)\n:alt: (.+)")
    return dict(
        m for page in sorted(folder.rglob("*.md")) for m in pattern.findall(page.read_text())
    )
