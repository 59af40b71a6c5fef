"""The site: pages in MyST, the API from docstrings, figures and examples run at every build.

What runs where: this build executes the examples (but for those that say so on their page), the
scripts in `figures/` and the docstrings' doctests; `make test` runs, page by page, every Python
block of these pages, and checks that their numbers are those of `benchmarks/results`.
"""

import html
import os
import re
import sys
import textwrap
from pathlib import Path
from urllib.parse import urljoin

import jax
from docutils import nodes
from docutils.utils.math import tex2unichar
from sphinx import addnodes

import optax_decoupled

os.environ["MPLBACKEND"] = "agg"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))  # for gallery_order
# One process runs all examples, and the one about sharding needs eight devices.
jax.config.update("jax_num_cpu_devices", 8)

project = "optax_decoupled"
author = "The optax_decoupled authors"
project_copyright = author
version = release = optax_decoupled.__version__

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",  # formulas come from the site itself, not from another server
]
exclude_patterns = ["_build", "figures"]
templates_path = ["_templates"]
nitpicky = True
# Other projects' objects: their inventories are on the network, and a build must not need it.
# Our own aliases of types say their role in a signature and have no page.
nitpick_ignore_regex = [
    ("py:.*", r"(collections|jax|numpy|optax|re)\..*"),
    ("py:class", "Leaf|PyTree"),
]

html_theme = "furo"
html_title = "optax_decoupled"
html_static_path = ["_static"]
html_extra_path = ["../benchmarks/results/landing.png"]  # the card of a shared link
html_css_files = ["site.css"]
html_js_files = ["full_size.js"]
html_favicon = "_static/favicon.svg"
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_param = False  # arguments that are explained together stay together
napoleon_use_rtype = False

plot_formats = ["svg"]
plot_html_show_formats = False
plot_html_show_source_link = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/(?!bfloat16)\w+\.py$",  # that one takes two minutes
    "within_subsection_order": "gallery_order.by_hand",
    "abort_on_example_error": True,
    "default_thumb_file": str(ROOT / "benchmarks" / "results" / "bfloat16.png"),
    "download_all_examples": False,
    "min_reported_time": float("inf"),
    "show_signature": False,
    "thumbnail_size": (480, 320),
    "write_computation_times": False,
}


# What a formula's macro is in plain text.
SYMBOLS = {
    **tex2unichar.mathalpha,
    **tex2unichar.mathbin,
    **tex2unichar.mathrel,
    **tex2unichar.mathop,
    "ge": "≥",
    "le": "≤",
    "odot": "⊙",
}


def prose(paragraph):
    """Its sentences, up to one that leads to a list or has a formula of more than symbols."""
    text = ""
    for child in paragraph.children:
        tex = child.astext()
        if not isinstance(child, nodes.math):
            text += tex
        elif SYMBOLS.keys() >= set(re.findall(r"\\([a-zA-Z]+|\W)", tex)):
            plain = re.sub(r"\\([a-zA-Z]+) ?", lambda match: SYMBOLS[match[1]], tex)
            text += re.sub(r"[{}]", "", plain)
        else:
            break
    else:
        if text.endswith((".", "?", ")")):
            return text
    return "".join(text.rpartition(". ")[:2]).strip()


def describe(app, pagename, templatename, context, doctree):
    """A page's first paragraph and a picture, for search engines and for shared links."""
    if doctree is None:
        return  # the index and the search
    title = doctree.next_node(nodes.title).astext()
    texts = (
        prose(paragraph)
        for paragraph in doctree.findall(nodes.paragraph)
        if isinstance(paragraph.parent, nodes.section | addnodes.desc_content)
    )
    text = textwrap.shorten(next(filter(None, texts), title), 200, placeholder=" …")
    picture = urljoin(html_baseurl, "landing.png")
    tags = [
        ("name", "description", text),
        ("property", "og:title", title),
        ("property", "og:description", text),
        ("property", "og:type", "website"),
        ("property", "og:site_name", project),
        ("property", "og:image", picture),
        ("property", "og:image:alt", "Test error over learning rate and decay: L2, decoupled"),
        ("name", "twitter:card", "summary_large_image"),
    ]
    if html_baseurl:
        tags.append(("property", "og:url", context["pageurl"]))
    context["metatags"] += "".join(
        f'<meta {kind}="{name}" content="{html.escape(content)}" />\n'
        for kind, name, content in tags
    )


def setup(app):
    app.connect("html-page-context", describe)
