"""The pictures of the pages: they are what the script draws, complete, and readable in both colour schemes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from linkspan.backends import BACKENDS

ROOT = Path(__file__).parents[3]
FILES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "pictures").glob("*.svg")}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Give scripts/pictures.py."""
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "scripts" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_script_draws(script: ModuleType) -> None:
    """A picture is changed in the script, and drawn again."""
    assert script.pictures() == FILES


def test_every_backend_has_a_picture_and_a_page_shows_it() -> None:
    """The page on backends has those across hosts, and the first page the bridge."""
    assert {f"{name}.svg" for name in BACKENDS} == FILES.keys()
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("backends.md", "first-steps.md")]
    assert set(re.findall(r"\]\(pictures/(.+?)\)", "".join(pages))) == FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_picture_stands_alone(name: str) -> None:
    """It has a title, needs no other file, and runs nothing."""
    root = ElementTree.fromstring(FILES[name])  # noqa: S314 - our own file
    tags = {str(one.tag).rpartition("}")[2] for one in root.iter()}
    assert tags == {"svg", "title", "style", "rect", "path", "circle", "text", "tspan"} & tags
    assert root.findtext("{http://www.w3.org/2000/svg}title")
    assert "href" not in FILES[name]
    assert "url(" not in FILES[name]


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    darker, lighter = sorted(map(_luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_words_can_be_read_in_both_colour_schemes(script: ModuleType) -> None:
    """Their contrast is at least 4.5 to 1 (WCAG 2, level AA), on their own box and on a host's."""
    for light in (True, False):
        found = {role: colours[:2] if light else colours[2:] for role, colours in script.COLOURS.items()}
        for role in found.keys() - {"paper", "card"}:
            strong, pale = found[role]
            for behind in (pale, found["paper"][1], found["card"][1]):
                assert _contrast(strong, behind) >= 4.5, (role, strong, behind)
