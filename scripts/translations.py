"""Compare the Chinese pages with the English ones, and copy the commands with their output into them.

docs/zh/NAME.md is a translation of docs/NAME.md, and README.zh.md of README.md. Both have the same sections, and in
each section the same commands with the same output, the same words in backticks, links, lines of tables and items
of lists. So whoever plays the English page has played both. A change of the English page that these cannot show is
a change of wording alone.

A translation may leave whole sections out. It names them: <!-- not translated: HEADING; HEADING -->

    .venv/bin/python scripts/translations.py [--check]

Without --check it first copies every block of commands, and fills in the blocks that open with ```= instead.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from os.path import relpath
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OMITTED = re.compile(r"<!-- not translated: (.*) -->")
HIDDEN = re.compile(r"<!-- run: .* -->")
HEADING = re.compile(r"(#+) (.+?) *$")
COMMENT = re.compile(r"\s{2,}# .*$", re.MULTILINE)
"""A comment behind a command, which a translation may translate."""
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
FENCE = "```"


class Section:
    """A heading and what follows until the next one."""

    def __init__(self, level: int, title: str) -> None:
        self.level = level
        self.title = title
        self.lines: list[str] = []
        self.blocks: list[list[str]] = []

    @property
    def anchor(self) -> str:
        """Return the heading's anchor, as it is made on the web."""
        return "#" + re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")

    def count(self, pattern: str) -> int:
        """Return how many lines outside of blocks begin so."""
        return sum(bool(re.match(pattern, line)) for line in self.lines)

    def words(self) -> Counter[str]:
        """Return the words in backticks; a line break in one is a blank."""
        text = "\n".join(line for line in self.lines if not line.startswith("<!--"))
        return Counter(re.sub(r"\s+", " ", word) for word in re.findall(r"`([^`]+)`", text))

    def hidden(self) -> list[str]:
        """Return the commands that run unseen."""
        return [line for line in self.lines if HIDDEN.fullmatch(line.strip())]

    def links(self) -> list[tuple[str, str]]:
        """Return the links within the project: page and anchor."""
        found = LINK.findall("\n".join(self.lines))
        return [(page, anchor) for page, anchor in found if not page.startswith(("http:", "https:"))]


def sections(text: str) -> list[Section]:
    """Return the sections of a page; the first one is its title."""
    found: list[Section] = []
    block: list[str] | None = None
    for line in text.splitlines():
        heading = HEADING.match(line) if block is None else None
        if heading:
            found.append(Section(len(heading[1]), heading[2]))
            continue
        if not found:  # what precedes the title
            found.append(Section(0, ""))
        if block is not None:
            block.append(line)
            block = None if line.startswith(FENCE) else block
        elif line.startswith(FENCE):
            block = [line]
            found[-1].blocks.append(block)
        else:
            found[-1].lines.append(line)
    return found


def counterpart(page: Path) -> Path:
    """Return where the translation of an English page is, or would be."""
    return page.with_suffix(".zh.md") if page.parent == ROOT else page.parent / "zh" / page.name


def original(page: Path) -> Path:
    """Return the English page of a translation."""
    return ROOT / "README.md" if page.parent == ROOT else page.parent.parent / page.name


def translations() -> list[Path]:
    """Return all translations."""
    return [*sorted(ROOT.glob("*.zh.md")), *sorted((ROOT / "docs" / "zh").glob("*.md"))]


def _kept(page: Path) -> list[Section]:
    """Return the sections of an English page that its translation has.

    Raises ValueError if the translation leaves out a section that the page does not have.
    """
    found = sections(page.read_text(encoding="utf-8"))
    omitted = OMITTED.search(counterpart(page).read_text(encoding="utf-8"))
    left_out = set(omitted[1].split("; ")) if omitted else set()
    if unknown := left_out - {one.title for one in found}:
        raise ValueError(f"{page.name} has no section {', '.join(sorted(unknown))}")
    kept = []
    level = 0  # of the section that is left out, with all below it
    for one in found:
        if level and one.level > level:
            continue
        level = one.level if one.title in left_out else 0
        if not level:
            kept.append(one)
    return kept


def _expected(page: Path, link: tuple[str, str]) -> str:
    """Return where a link of an English page leads in its translation: to a translation if there is one."""
    name, anchor = link
    target = (page.parent / name).resolve() if name else page
    goal = target
    if target.suffix == ".md" and target.parent in (ROOT, ROOT / "docs") and counterpart(target).exists():
        kept = _kept(target)
        theirs = sections(counterpart(target).read_text(encoding="utf-8"))
        same = {mine.anchor: other.anchor for mine, other in zip(kept, theirs, strict=False)}
        if not anchor or anchor in same:
            goal, anchor = counterpart(target), same.get(anchor, "")
    here = counterpart(page)
    return ("" if goal == here else relpath(goal, here.parent)) + anchor


def _differences(page: Path) -> Iterator[str]:
    mine, theirs = _kept(page), sections(counterpart(page).read_text(encoding="utf-8"))
    if [one.level for one in mine] != [one.level for one in theirs]:
        yield f"its headings are {[one.title for one in theirs]}, those of {page.name} {[one.title for one in mine]}"
        return
    switch = (relpath(counterpart(page), page.parent), relpath(page, counterpart(page).parent))
    for english, other in zip(mine, theirs, strict=True):
        where = f"section {other.title!r}"
        for wanted, block in zip(english.blocks, other.blocks, strict=False):
            if _bare(wanted) != _bare(block):
                yield f"{where}: the block {block[:2]} differs from {wanted[:2]}"
        if len(english.blocks) != len(other.blocks):
            yield f"{where}: {len(other.blocks)} blocks, and {len(english.blocks)} in {page.name}"
        if english.hidden() != other.hidden():
            yield f"{where}: other hidden commands"
        for what, pattern in (("lines of tables", r"\|"), ("items of lists", r" *(-|\d+\.) ")):
            if english.count(pattern) != other.count(pattern):
                yield f"{where}: {other.count(pattern)} {what}, and {english.count(pattern)} in {page.name}"
        yield from _unequal(f"{where}: words in backticks", english.words(), other.words())
        wanted_links = Counter(_expected(page, link) for link in english.links() if link[0] != switch[0])
        found_links = Counter("".join(link) for link in other.links() if link[0] != switch[1])
        yield from _unequal(f"{where}: links", wanted_links, found_links)
    for text, link in ((page, switch[0]), (counterpart(page), switch[1])):
        if f"]({link})" not in text.read_text(encoding="utf-8"):
            yield f"{relpath(text, ROOT)} does not link the other language: {link}"


def _bare(block: list[str]) -> str:
    return COMMENT.sub("", "\n".join(block))


def _unequal(what: str, wanted: Counter[str], found: Counter[str]) -> Iterator[str]:
    if wanted != found:
        yield f"{what}: missing {sorted((wanted - found).elements())}, stale {sorted((found - wanted).elements())}"


def differences(page: Path) -> list[str]:
    """Return in what the translation of an English page differs from it, in sentences; none if it is current."""
    try:
        return list(_differences(page))
    except ValueError as error:
        return [str(error)]


def follow(page: Path) -> None:
    """Copy the commands and their output from an English page into its translation, if there is one.

    Other blocks stay as they are, because their comments may be translated. A block that opens with ```= is filled in.
    """
    if not counterpart(page).exists():
        return
    blocks = [block for one in _kept(page) for block in one.blocks]
    lines: list[str] = []
    inside = empty = False
    number = -1
    for line in counterpart(page).read_text(encoding="utf-8").splitlines():
        if inside:
            inside = not line.startswith(FENCE)
            if empty:
                continue
        elif line.startswith(FENCE):
            inside, number = True, number + 1
            empty = (line.startswith(f"{FENCE}console") or line == f"{FENCE}=") and number < len(blocks)
            if empty:
                lines += blocks[number]
                continue
        lines.append(line)
    counterpart(page).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Bring all translations up to date, and say what a person has to do."""
    parser = argparse.ArgumentParser(description="compare the translations with the English pages")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    failed = 0
    for page in map(original, translations()):
        if not arguments.check:
            follow(page)
        for text in differences(page):
            failed = 1
            print(f"{relpath(counterpart(page), ROOT)}: {text}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
