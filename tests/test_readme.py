"""Every Python block of the README runs, in order, in one namespace."""

import pathlib
import re

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_readmes_code_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
