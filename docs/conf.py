"""The site: pages in MyST, the API from docstrings, figures and examples run at every build.

What runs where: this build executes the examples (but for those that say so on their page) and
the scripts in `figures/`; `make test` runs the docstrings' doctests and, page by page, every Python
block of these pages, and checks that their numbers are those of `benchmarks/results`.
"""

import os
import re
import sys
from pathlib import Path

import jax

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
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",  # formulas come from the site itself, not from another server
    "sphinxext.opengraph",
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
# What search engines and shared links show of a page: its beginning, and one picture.
ogp_site_url = html_baseurl
ogp_image = "landing.png"
ogp_image_alt = "Test error over learning rate and decay: with L2, and decoupled"
ogp_custom_meta_tags = ['<meta name="twitter:card" content="summary_large_image" />']
pygments_style = "friendly"
pygments_dark_style = "github-dark"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
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


def link_to_gallery(app, docname, source):
    """Links to examples lead to files where a page is read in a clone, to pages on the site."""
    source[0] = re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](gallery/\1)", source[0])
    source[0] = source[0].replace("](../examples)", "](gallery/index)")


def setup(app):
    app.connect("source-read", link_to_gallery)
