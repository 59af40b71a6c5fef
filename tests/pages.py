"""The site's pages and their Python blocks."""

import pathlib
import re

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = {path.stem: path for path in sorted(DOCS.glob("*.md"))}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run_page(name):
    """The namespace that a page's blocks leave, run in order."""
    namespace = {}
    for block in BLOCK.findall(PAGES[name].read_text()):
        exec(compile(block, str(PAGES[name]), "exec"), namespace)
    return namespace
