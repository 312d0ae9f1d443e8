"""Sphinx configuration. Pictures are drawn and signatures read from the source in the build."""

import os
import sys
from pathlib import Path
from typing import ClassVar

os.environ["JEPAKIT_TYPECHECK"] = "0"  # autodoc is to see the functions, not beartype's wrappers
sys.path.insert(0, str(Path(__file__).parent))

import docstrings
import pictures
import references
import source_tree
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import jepakit

project = "jepakit"
author = "The jepakit authors"
project_copyright = author
version = release = jepakit.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
# The tables are included by the page on timm's models.
exclude_patterns = [
    "_build",
    "_pictures",
    "tutorials/source",
    "timm_models_table.md",
    "timm_others_table.md",
]
nitpicky = True
# Words in single backticks of a docstring are links where they can be.
nitpick_ignore_regex = [
    ("py:obj", "(?s).*"),
    # Shapes of jaxtyping, and aliases and type variables in annotations.
    ("py:class", "Float|Bool|Int|Integer|UInt8|Shaped|ProcessGroup|st.SearchStrategy"),
    ("py:class", "_Path|SignName|Reduction|Device|RotaryPairs|KeyMask|Rotary|M|M_co"),
    ("py:class", "UniformSampler"),
]
default_role = "py:obj"  # `name` in a docstring links where it can and is code where it cannot

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

templates_path = ["_templates"]
# One page for each name in the tables of docs/api, written to docs/api/generated.
autosummary_context = {
    "pictures": references.PICTURES,
    "alts": references.alts(Path(__file__).parent),
}
# The names that these pages link to, in files: the build needs no network.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", "_inventories/python.inv"),
    "torch": ("https://docs.pytorch.org/docs/stable/", "_inventories/torch.inv"),
    "matplotlib": ("https://matplotlib.org/stable/", "_inventories/matplotlib.inv"),
    "timm": ("https://huggingface.co/docs/timm/main/", "_inventories/timm.inv"),
}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures carry them; docstrings.py writes those
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

# Scripts in tutorials/source run in the build if they changed; pages are written beside them.
sphinx_gallery_conf = {
    "examples_dirs": "tutorials/source",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"/\d_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": (),  # what is printed, and no last expression
    "image_srcset": ["2x"],
    "doc_module": ("jepakit",),
    "backreferences_dir": "tutorials/used_in",
    "min_reported_time": 1000,
    "show_signature": False,
    "download_all_examples": False,
    "nested_sections": False,
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"jepakit {release}"
html_static_path = ["_static"]
html_css_files = ["jepakit.css"]
html_js_files = ["filter.js"]
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f66ad", "color-brand-content": "#1f66ad"},
    "dark_css_variables": {"color-brand-primary": "#6cb0f0", "color-brand-content": "#6cb0f0"},
}


class Picture(SphinxDirective):
    """`{picture} name`: the light and the dark drawing of `pictures.py`, with a caption below."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"alt": directives.unchanged_required, "width": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in pictures.PICTURES:
            raise self.error(f"no picture {name!r} in docs/pictures.py")
        figure = nodes.figure(classes=["picture"])
        for theme in pictures.THEMES:
            figure += nodes.image(
                uri=f"/_pictures/{name}-{theme}.svg",
                alt=self.options["alt"],
                width=self.options.get("width", "100%"),
                classes=[f"only-{theme}"],
            )
        if self.content:
            text, _ = self.parse_inline(" ".join(self.content), lineno=self.content_offset)
            figure += nodes.caption("", "", *text)
        return [figure]


class SourceTable(SphinxDirective):
    """`{source-table} name`: a table that `source_tree.py` makes from the code."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in source_tree.TABLES:
            raise self.error(f"no table {name!r} in docs/source_tree.py")
        return self.parse_text_to_nodes(source_tree.TABLES[name]())


def setup(app: Sphinx) -> None:
    app.add_directive("picture", Picture)
    app.add_directive("source-table", SourceTable)
    app.add_html_math_renderer(
        "mathml", (docstrings.inline_mathml, None), (docstrings.block_mathml, None)
    )
    app.connect("builder-inited", lambda app: pictures.draw_all(Path(app.srcdir) / "_pictures"))
    app.connect("autodoc-process-signature", docstrings.signature)
    app.connect("autodoc-skip-member", references.skip)
    app.connect("autodoc-process-docstring", references.describe)
    app.connect("missing-reference", references.resolve, priority=400)  # before intersphinx
    app.add_post_transform(references.LinkNames)
    # Before napoleon, which rewrites the sections.
    app.connect("autodoc-process-docstring", docstrings.math, priority=400)
