"""The reference is complete and reached: summary tables, pictures, links from prose, navigation."""

import importlib
import posixpath
import re
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from docutils import nodes
from docutils.utils import new_document
from sphinx import addnodes
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def references() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS), *sys.path])
        return importlib.import_module("references")


def summarised() -> list[str]:
    """Full names in the summary tables of `docs/api`."""
    found = []
    for page in sorted((DOCS / "api").glob("*.md")):
        for block in re.findall(r"```\{eval-rst\}\n(.*?)```", page.read_text(), re.DOTALL):
            module = re.search(r"currentmodule:: ([\w.]+)", block)
            if module:
                found += [f"{module[1]}.{name}" for name in re.findall(r"^   (\w+)$", block, re.M)]
    return found


def test_every_public_name_is_in_one_summary_table(references: ModuleType) -> None:
    """Trap: a new name that no page of the reference shows."""
    counts = Counter(summarised())
    assert set(counts) == {name for name in references.names().values() if is_object(name)}
    assert [name for name, count in counts.items() if count > 1] == []


def is_object(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return module in sys.modules and last in sys.modules[module].__all__


def test_pictures_of_the_reference_are_drawn_and_have_an_alt_text(references: ModuleType) -> None:
    assert set(references.PICTURES) <= set(summarised())
    assert set(references.PICTURES.values()) <= set(references.alts(DOCS))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("MultiBlockMask", "jepakit.masking.MultiBlockMask"),
        ("jepakit.MultiBlockMask", "jepakit.masking.MultiBlockMask"),
        ("jepakit.masking.vjepa_masks", "jepakit.masking.vjepa_masks"),
        ("masking.vjepa_masks", "jepakit.masking.vjepa_masks"),
        ("take_tokens()", "jepakit.tokens.take_tokens"),
        ("EMATeacher.update", "jepakit.teacher.EMATeacher.update"),
        ("TensorDataset", "torch.utils.data.TensorDataset"),
        ("timm.create_model", "timm.create_model"),
        ("masks.context", None),
        ("predictor", None),
        ("MaskedViT.extra_repr", None),
    ],
)
def test_names_lead_to_their_page(references: ModuleType, text: str, target: str | None) -> None:
    assert references.full_name(text) == target


def test_code_in_prose_becomes_a_link(references: ModuleType) -> None:
    """In text, but not in a title, nor inside a link that is there already."""
    document = new_document("page")
    document.settings.env = SimpleNamespace(current_document=None, docname="page")
    title = nodes.title("", "", nodes.literal(text="MaskedViT"))
    link = nodes.reference("", "", nodes.literal(text="MaskedViT"), refuri="x")
    prose = nodes.paragraph("", "", *(nodes.literal(text=t) for t in ("MaskedViT", "masks")), link)
    document += nodes.section("", title, prose)
    references.LinkNames(document).run()
    [made] = document.findall(addnodes.pending_xref)
    assert made.parent is prose and prose.index(made) == 0
    assert made["reftarget"] == "jepakit.nn.MaskedViT"
    assert made.astext() == "MaskedViT"


def test_short_names_of_other_libraries_are_in_an_inventory(references: ModuleType) -> None:
    """Trap: a link that is silently none, since links to other libraries warn of nothing."""
    listed = set()
    for path in sorted((DOCS / "_inventories").glob("*.inv")):
        inventory = InventoryFile.load(BytesIO(path.read_bytes()), "", posixpath.join)
        listed |= {name for kind in inventory.values() for name in kind}
    assert set(references.OTHERS.values()) <= listed


def test_the_navigation_has_at_most_seven_entries() -> None:
    text = (DOCS / "index.md").read_text()
    entries = [
        line
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
        for line in tree.splitlines()
        if line and not line.startswith(":")
    ]
    assert 1 < len(entries) <= 7
