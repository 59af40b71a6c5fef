"""The page on citing repeats CITATION.cff."""

import re

from pages import DOCS, PAGES

import optax_decoupled as od

FACTS = (DOCS.parent / "CITATION.cff").read_text()
ENTRIES = re.findall(r"^@\w+\{.*?^\}", PAGES["citation"].read_text(), re.DOTALL | re.MULTILINE)


def field(entry, name):
    (value,) = re.findall(rf"^  {name}\s*= \{{(.*)\}},?$", entry, re.MULTILINE)
    return value


def plain(text):
    return re.sub(r"[{}\\]", "", text)


def test_the_package_is_cited_by_its_facts():
    (package,) = [x for x in ENTRIES if x.startswith("@software")]
    for name, line in {
        "title": 'title: "{}"',
        "author": '- name: "{}"',
        "version": "version: {}",
        "year": "date-released: {}",
        "license": "license: {}",
    }.items():
        assert line.format(plain(field(package, name))) in FACTS
    assert field(package, "version") == od.__version__


def test_every_paper_is_cited_by_its_facts():
    papers = re.findall(
        r'  - type: .*?title: "(.*?)".*?year: (\d+).*?abs/([\d.]+)"', FACTS, re.DOTALL
    )
    cited = {(plain(field(x, "title")), field(x, "year")): x for x in ENTRIES}
    assert len(papers) == len(ENTRIES) - 1 == 3
    for title, year, number in papers:
        assert number in cited[title, year]
