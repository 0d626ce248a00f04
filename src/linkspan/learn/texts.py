"""A lesson's text in one language: parts with the same names in every language, read from Markdown."""

from __future__ import annotations

import re

import msgspec

from linkspan.core.errors import Invalid

HEADINGS = {
    "en": {
        "goal": "Goal",
        "predict": "Predict",
        "see": "See",
        "why": "Why",
        "task": "Task",
        "check": "Check",
        "probe": "Probe",
        "keep": "Keep",
        "hint": "Hint",
        "wrong": "Not it",
        "also": "Also",
        "works": "Now",
        "linkspan": "linkspan",
        "question": "Question",
        "answer": "Answer",
        "clean": "Clean up",
    },
    "zh": {
        "goal": "目标",
        "predict": "先预测",
        "see": "观察",
        "why": "原因",
        "task": "任务",
        "check": "检查",
        "probe": "验证",
        "keep": "保持",
        "hint": "提示",
        "wrong": "常见错误",
        "also": "另一种办法",
        "works": "再试一次",
        "linkspan": "linkspan",
        "question": "思考",
        "answer": "答案",
        "clean": "清理",
    },
}
"""Headings of the parts, by language. Those of check, keep, hint, wrong and also have a number: "Hint 2"."""
NUMBERED = ("check", "keep", "hint", "wrong", "also")
_HEADING = re.compile(r"^\*\*(.+?)[:\uff1a]\*\* *", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")


class Text(msgspec.Struct, frozen=True):
    """A lesson's text; ``parts`` by name, "hint 2" for a numbered one, in the order of the file."""

    title: str
    parts: dict[str, str]

    def part(self, name: str, number: int = 0) -> str:
        """Return a part, '' if there is none; ``number`` counts from 1."""
        return self.parts.get(f"{name} {number}" if number else name, "")

    def count(self, name: str) -> int:
        """Return how many parts have this name with a number."""
        return sum(one.partition(" ")[0] == name for one in self.parts)

    def commands(self) -> dict[str, list[str]]:
        """Return the words between backticks of each part, sorted: languages put them in another order."""
        return {name: sorted(_CODE.findall(part)) for name, part in self.parts.items()}


def heading(language: str, name: str) -> str:
    """Return the heading of a part, of which ``name`` may have a number."""
    word, _, number = name.partition(" ")
    return f"{HEADINGS[language][word]} {number}".rstrip()


def parsed(markdown: str, language: str) -> Text:
    """Read a text. Raises Invalid, which names the line's words, if a heading is unknown or appears twice."""
    first, _, rest = markdown.strip().partition("\n")
    if not first.startswith("# "):
        raise Invalid(f"{language}.md does not begin with a title", "write `# TITLE` in its first line")
    pieces = _HEADING.split(rest)
    if pieces[0].strip():
        first_part = f"**{HEADINGS[language]['goal']}:**"
        raise Invalid(f"{language}.md: {pieces[0].strip()[:40]!r} is in no part", f"begin it with {first_part}")
    parts: dict[str, str] = {}
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        name = _name(title, language)
        if name in parts:
            raise Invalid(f"{language}.md has the part {title!r} twice", "number its parts, or join them")
        parts[name] = body.strip()
    return Text(first[2:].strip(), parts)


def _name(title: str, language: str) -> str:
    for name, word in HEADINGS[language].items():
        numbered = name in NUMBERED
        if (found := re.fullmatch(rf"{re.escape(word)} ?(\d*)", title)) and bool(found[1]) == numbered:
            return f"{name} {found[1]}".rstrip()
    known = ", ".join(f"{word} N" if name in NUMBERED else word for name, word in HEADINGS[language].items())
    raise Invalid(f"{language}.md: {title!r} is no part of a lesson", f"the parts are {known}")
