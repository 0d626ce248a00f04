"""The Chinese pages are current: they have the commands, output and references of the English pages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import translations  # noqa: E402 - scripts are no package

PAGES = {
    "README.zh", "backends", "clusters", "first-cluster", "first-steps", "glossary", "learn", "lessons", "networks",
    "policy", "teaching", "troubleshooting", "web",
}  # fmt: skip


def test_a_reader_of_chinese_finds_these_pages() -> None:
    """No page is lost."""
    assert {page.stem for page in translations.translations()} == PAGES


@pytest.mark.parametrize("page", translations.translations(), ids=lambda page: page.stem)
def test_a_translation_is_current(page: Path) -> None:
    """It has the English page's commands with their output, so that page is played for both."""
    assert translations.differences(translations.original(page)) == []


ENGLISH = """# One
[中文](zh/one.md)

Type `ls`, see [two](two.md#its-part) and [below](#more).
```console
$ ls
a
```
## More
- an item

| a | b |
|---|---|
```
ls    # lists
```
## Not for all
"""
CHINESE = """# 一
[English](../one.md)

<!-- not translated: Not for all -->
输入 `ls` 见[二](two.md#部分)和[下文](#更多)。
```console
$ ls
a
```
## 更多
- 一项

| 甲 | 乙 |
|---|---|
```
ls    # 列出
```
"""


@pytest.fixture
def english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an English page whose translation is current, in a project of two pages."""
    monkeypatch.setattr(translations, "ROOT", tmp_path)
    folder = tmp_path / "docs" / "zh"
    folder.mkdir(parents=True)
    (folder.parent / "two.md").write_text("# Two\n## Its part\n")
    (folder / "two.md").write_text("# 二\n## 部分\n")
    (folder / "one.md").write_text(CHINESE)
    page = folder.parent / "one.md"
    page.write_text(ENGLISH)
    return page


def test_wording_and_comments_may_differ(english: Path) -> None:
    """They are what is translated."""
    assert translations.differences(english) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("$ ls\na", "$ ls\nb", "the block"),
        ("`ls`", "`cat`", "missing ['ls'], stale ['cat']"),
        ("two.md#部分", "../two.md#its-part", "missing ['two.md#部分']"),
        ("(#更多)", "(#more)", "missing ['#更多']"),
        ("- 一项", "一项", "0 items of lists, and 1 in one.md"),
        ("| 甲 | 乙 |\n", "", "1 lines of tables, and 2 in one.md"),
        ("## 更多", "### 更多", "its headings are"),
        ("ls    #", "cat    #", "the block"),
        ("[English](../one.md)", "", "docs/zh/one.md does not link the other language: ../one.md"),
        ("Not for all", "Not there", "one.md has no section Not there"),
    ],
)
def test_what_differs_is_named(english: Path, old: str, new: str, said: str) -> None:
    """In words that say where to look."""
    page = translations.counterpart(english)
    text = page.read_text()
    assert old in text
    page.write_text(text.replace(old, new))
    (found,) = translations.differences(english)
    assert said in found


def test_output_is_copied_and_what_a_person_wrote_stays(english: Path) -> None:
    """One play of the English page brings both pages up to date."""
    page = translations.counterpart(english)
    english.write_text(ENGLISH.replace("$ ls\na\n", "$ ls\nb\nc\n"))
    assert translations.differences(english)
    translations.follow(english)
    assert translations.differences(english) == []
    assert page.read_text() == CHINESE.replace("$ ls\na\n", "$ ls\nb\nc\n")
