"""ARCHITECTURE.md, CONTRIBUTING.md, docs/modules.md and docs/glossary.md name what is in the project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PLACES = (ROOT, ROOT / "src" / "linkspan", ROOT / "tests")
"""Where a path on a page may begin."""
PLACEHOLDERS = {"NAME", "KIND", "GROUP"}
"""Parts of a path that stand for a name of the reader's own."""


def _paths(page: str) -> set[str]:
    """Return the files and the folders that a page has in backticks, folders with a slash at their end."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"`((?:[\w.-]+/)+|(?:[\w.-]+/)*[\w-]+\.(?:py|md|c))`", text)
    return {path for path in found if not PLACEHOLDERS & set(re.split(r"\W|_", path))}


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/modules.md"])
def test_every_path_on_a_page_exists(page: str) -> None:
    """A path in backticks leads to a file or folder of the project, of its sources or of its tests."""
    paths = _paths(page)
    assert paths
    assert {path for path in paths if not any((place / path).exists() for place in PLACES)} == set()


def test_every_class_in_the_glossary_exists() -> None:
    """The last column has the file of a class, then its name; a term without a class has neither."""
    rows = re.findall(
        r"^\| (.+?) \| .+ \| ?(.*?) ?\|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE
    )
    terms = [(term, cell) for term, cell in rows if set(term) != {"-"} and cell != "class"]
    assert len(terms) > 50
    for term, cell in terms:
        named = re.findall(r"`([\w/]+\.py)` `(\w+)`", cell)
        assert ", ".join(f"`{path}` `{name}`" for path, name in named) == cell, term
        for path, name in named:
            text = (ROOT / "src" / "linkspan" / path).read_text(encoding="utf-8")
            assert re.search(rf"^class {name}\b", text, re.MULTILINE), f"{term}: {path} has no class {name}"


def test_the_glossary_has_each_term_once() -> None:
    """A reader who looks for a term finds one meaning."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = [term for cell in re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE) for term in cell.split(", ")]
    terms = [term for term in terms if term != "term"]
    assert len(set(terms)) == len(terms)


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as they are made from their text on the web."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_link_on_a_page_leads_somewhere(page: Path) -> None:
    """A link within the project leads to a file, and to a heading of it."""
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8"))
    for name, anchor in links:
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in _anchors(target), f"{name}#{anchor}"
