"""Panel of a lesson: the lesson's text, what is achieved, and what is recognised, as paragraphs in one language."""

from __future__ import annotations

import time
from collections.abc import Callable

from linkspan.learn import comparison
from linkspan.learn.language import Words
from linkspan.learn.lesson import Lesson, lessons
from linkspan.learn.texts import heading
from linkspan.learn.watcher import Judgement

DONE, OPEN, BROKEN = "✓", "·", "✗"
STAYS = 6.0
"""Seconds: what looks like a mistake for less may be half of what the reader is about to type."""


class Panel:
    """A lesson in one language."""

    def __init__(self, lesson: Lesson, words: Words) -> None:
        self._lesson = lesson
        self._words = words
        self._text = lesson.texts[words.language]

    @property
    def title(self) -> str:
        """Return the lesson's number and title."""
        return self._words("Lesson {number}: {title}", number=self._lesson.number, title=self._text.title)

    @property
    def _effort(self) -> str:
        """Return the title with the minutes that the lesson takes, and the lessons that a reader should know."""
        before = [str(lessons()[name].number) for name in self._lesson.data.after]
        words, given = self._words, {"title": self.title, "minutes": self._lesson.data.minutes}
        if not before:
            return words("{title} (about {minutes} minutes)", **given)
        known = words.listed(before)
        return words("{title} (about {minutes} minutes; know lesson {lessons} first)", **given, lessons=known)

    def part(self, name: str, number: int = 0) -> str:
        """Return a part with its heading, which counts hints only: what else is said is said in any order."""
        named = f"{name} {number}" if name == "hint" else name
        mark = "\uff1a" if self._words.language == "zh" else ": "
        return f"{heading(self._words.language, named)}{mark}{self._text.part(name, number)}"

    def introduction(self, *, exam: bool = False) -> list[str]:
        """Return what is read before the task is done; in an exam nothing is explained."""
        why = () if self._lesson.data.fault else ("why",)
        names = ("goal", "see", "task") if exam else ("goal", "predict", "see", *why, "task")
        parts = [self.part(name) for name in names]
        return [self._effort, *parts, *self.steps(None)]

    def steps(self, judged: Judgement | None) -> list[str]:
        """Return a line for each step of the task, with its mark; nothing is done where ``judged`` is None."""
        data = self._lesson.data
        checks = judged.checks if judged else (False,) * len(data.check)
        lines = [(ok, self._text.part("check", n)) for n, ok in enumerate(checks, 1)]
        probe = self._text.part("probe") or self._words("works: {command}", command=data.probe)
        if judged and judged.probe is None:
            probe = self._words("{probe} (tried once all else is as it must be)", probe=probe)
        lines.append((bool(judged and judged.probe), probe))
        broken = [self.broken(n) for n, ok in enumerate(judged.keeps if judged else (), 1) if not ok]
        return [f"  {DONE if ok else OPEN} {text}" for ok, text in lines] + broken + self.diverted(judged)

    def broken(self, keep: int) -> str:
        """Return the line about what was to stay, and did not."""
        return f"  {BROKEN} {self._words('this must stay: {text}', text=self._text.part('keep', keep))}"

    def diverted(self, judged: Judgement | None) -> list[str]:
        """Return lines about other namespaces than the lesson means: one has the name, or gives the probe's answer."""
        if judged is None:
            return []
        words, found = self._words, []
        if judged.replaced:
            names = words.listed(judged.replaced)
            text = words("deleted, replaced, or the same namespace as another one: {names}", names=names)
            found.append(f"  {BROKEN} {text}")
        if not judged.arrived:
            reaches = self._lesson.data.reaches
            text = words("something else answers: no packet arrives in {reaches}", reaches=reaches)
            found.append(f"  {OPEN} {text}")
        return found

    def ending(self, also: tuple[int, ...] = ()) -> list[str]:
        """Return what is read after the lesson is passed; ``also`` are the recognised other ways."""
        words = self._words
        lines = [words("Passed: {title}", title=self._text.title)]
        lines += [self._text.part("also", number) for number in also]
        lines.append(self.part("works"))
        if self._lesson.data.fault:
            lines.append(self.part("why"))
        if self._text.part("linkspan"):
            lines.append(self.part("linkspan"))
            shown = self._lesson.data.plan
            lines += [f"  {command}" for command in (comparison.commands(shown) if shown else ())]
        following = words("`learn answer` shows the answer; `next` goes to the next lesson.")
        return [*lines, self.part("question"), following]


class News:
    """News for the reader since the last judgement; each thing is told once until it changes back."""

    def __init__(
        self, panel: Panel, lesson: Lesson, clock: Callable[[], float] = time.monotonic, *, exam: bool = False
    ) -> None:
        """``exam``: no mistake is answered, and the end is one line."""
        self._panel = panel
        self._exam = exam
        self._clock = clock
        self._mistakes: dict[int, float] = {}  # since when; infinity after it was told
        self._before = Judgement((False,) * len(lesson.data.check), (True,) * len(lesson.data.keep), None)
        self.passed = False

    def of(self, judged: Judgement) -> list[str]:
        """Return the paragraphs about a new judgement."""
        before, self._before = self._before, judged
        if self.passed:
            return []
        steps, earlier = self._panel.steps(judged), self._panel.steps(before)
        done = [line for line in steps if line not in earlier and line.strip().startswith(DONE)]
        undone = [line for line in earlier if line.strip().startswith(DONE) and line not in steps]
        lines = [*done, *(line.replace(DONE, OPEN, 1) for line in undone)]
        lines += [
            self._panel.broken(n)
            for n, (ok, was) in enumerate(zip(judged.keeps, before.keeps, strict=True), 1)
            if was and not ok
        ]
        lines += [line for line in self._panel.diverted(judged) if line not in earlier]
        if judged.passed:
            self.passed = True
            ending = self._panel.ending(judged.also)
            return [*lines, "", *(ending[:1] if self._exam else ending)]
        if self._exam:
            return lines
        return lines + [f"  {self._panel.part('wrong', number)}" for number in self._stayed(judged)]

    def _stayed(self, judged: Judgement) -> list[int]:
        """Return the mistakes that have stayed for a while, each once until it was corrected."""
        now = self._clock()
        self._mistakes = {number: self._mistakes.get(number, now) for number in judged.wrong}
        stayed = [number for number, since in self._mistakes.items() if now - since >= STAYS]
        self._mistakes |= dict.fromkeys(stayed, float("inf"))
        return stayed
