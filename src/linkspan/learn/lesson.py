"""Lessons as data: one folder each, with a TOML file and a text for each language."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from linkspan.core.errors import Invalid, LinkspanError, NotFound, of_validation
from linkspan.core.translation import LANGUAGES
from linkspan.learn import foreign_file, given_text, texts
from linkspan.learn.needs import NEEDS
from linkspan.learn.texts import Text

HOST = "host"
"""Name of the namespace that plays the host."""
LESSONS = Path(__file__).with_name("lessons")
_LARGEST = 100_000
"""Bytes of each file of a lesson, at most: then each of its commands fits into a command line."""
_FOLDER = re.compile(r"(\d\d)-([a-z0-9]+(?:-[a-z0-9]+)*)")
_PARTS = ("goal", "predict", "see", "why", "task", "works", "question", "answer", "clean")
"""What every lesson has once; besides, three hints, and a part for each check, keep, wrong and also."""
_OPTIONAL = ("probe", "linkspan")
"""What a lesson may have once."""
_LONGEST_OUTPUT = 30_000
"""Characters of an output that is matched, at most: the time of a pattern may grow faster than the output."""
_ARRIVALS = {r"\bping\b": ("Icmp", "InEchos"), "/dev/tcp/": ("Tcp", "PassiveOpens")}
"""By what a probe does: the protocol and the name of the kernel's counter of that (IPv4), where it arrives."""


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shell command in the sandbox, and what must be true of it.

    It holds if the command ends with 0, its output matches the pattern ``has`` and does not match ``lacks``. It
    fails if its output is longer than ``_LONGEST_OUTPUT``: no state of a lesson needs so much. Text that people give to
    links and rules (`given_text.py`) is no part of its output.
    """

    run: str
    has: str = ""
    lacks: str = ""

    def holds(self, code: int, output: str) -> bool:
        """Judge a result: exit code and output (stdout and stderr)."""
        if code or len(output) > _LONGEST_OUTPUT:
            return False
        said = given_text.without(output)
        found = not self.has or re.search(self.has, said, re.MULTILINE)
        return bool(found) and not (self.lacks and re.search(self.lacks, said, re.MULTILINE))


class Attempt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A way that a reader may take: the commands (``try``), its state's sign, and what explain says (``finds``)."""

    attempt: str = msgspec.field(name="try")
    run: str
    has: str = ""
    lacks: str = ""
    finds: str = ""

    @property
    def sign(self) -> Check:
        """Return the check that holds if the reader took this way."""
        return Check(self.run, self.has, self.lacks)


class Shown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of linkspan's plan that a lesson shows: states of these kinds, and of those commands that match ``has``.

    ``of`` is a container of the tutorial's network, '' for the network itself and its host.
    """

    kinds: tuple[str, ...]
    of: str = ""
    has: str = ""


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `lesson.toml`; docs/lessons.md explains each field."""

    minutes: int
    after: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    begins: str = ""
    prepare: str = ""
    fault: bool = False
    finds: str = ""
    look: str = ""
    probe: str
    trace: tuple[str, ...] = ()
    reaches: str = ""
    hosts: tuple[str, ...] = ()
    plan: Shown | None = None
    solutions: tuple[str, ...]
    check: tuple[Check, ...] = ()
    keep: tuple[Check, ...] = ()
    wrong: tuple[Attempt, ...]
    also: tuple[Attempt, ...] = ()


class Lesson(msgspec.Struct, frozen=True):
    """A lesson; ``texts`` by language."""

    number: int
    name: str
    data: Data
    texts: dict[str, Text]

    @property
    def probe(self) -> Check:
        """Return the probe as a check."""
        return Check(self.data.probe)

    @property
    def arrivals(self) -> dict[tuple[str, str], int]:
        """Return by how much the probe raises counters, at least, where it arrives."""
        found = {counter: len(re.findall(sign, self.data.probe)) for sign, counter in _ARRIVALS.items()}
        return {counter: times for counter, times in found.items() if times}


def load(folder: Path) -> Lesson:
    """Read a lesson's folder. Raises Invalid with the first problem, NotFound if there is no such folder."""
    if not (folder / "lesson.toml").is_file():
        raise NotFound(f"{folder} is no lesson: it has no lesson.toml", "docs/lessons.md says what a lesson has")
    named = _FOLDER.fullmatch(folder.resolve().name)
    if named is None:
        raise Invalid(f"the folder's name {folder.name!r} is not of the form 07-forward", "rename it")
    try:
        data = msgspec.toml.decode(foreign_file.content(folder / "lesson.toml", _LARGEST), type=Data)
    except msgspec.ValidationError as error:
        raise of_validation(error, Data).within("lesson.toml") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"lesson.toml: {error}", "TOML writes several lines between triple quotes") from error
    found = {}
    for language in LANGUAGES:
        path = folder / f"{language}.md"
        if not path.is_file():
            raise NotFound(f"{folder.name} has no {path.name}", "a lesson has a text for each language")
        try:
            text = foreign_file.content(path, _LARGEST).decode()
        except UnicodeDecodeError as error:
            raise Invalid(f"{path.name} is not written in UTF-8: {error.reason}", "save it as UTF-8") from error
        found[language] = texts.parsed(text, language)
    lesson = Lesson(int(named[1]), named[2], data, found)
    for problem in _problems(lesson):
        raise Invalid(f"lesson {folder.name}: {problem}", "docs/lessons.md describes each part")
    return lesson


def _problems(lesson: Lesson) -> Iterator[str]:
    """Yield what is wrong with a lesson, as far as one can see without playing it."""
    data = lesson.data
    if len(data.solutions) < 2:
        yield "it needs two solutions, because any command that reaches the state must count"
    if not data.wrong:
        yield "it needs at least one wrong answer"
    if unknown := sorted(set(data.needs) - set(NEEDS)):
        yield f"it needs {', '.join(unknown)}, which nobody can check; the known needs are {', '.join(NEEDS)}"
    if len(data.trace) not in (0, 2, 3):
        yield "trace must name a source and a destination, and perhaps a port"
    if data.reaches and not lesson.arrivals:
        yield "reaches is where the probe must arrive, so it needs a probe by ping or /dev/tcp"
    if data.fault != bool(data.finds) or (data.fault and not data.trace):
        yield "a fault needs trace, and in finds what `learn explain` must say of it; other lessons have no finds"
    ways = (*data.wrong, *data.also)
    runs = (*(one.run for one in (*data.check, *data.keep)), *(one.run for one in ways))
    tries = tuple(one.attempt for one in ways)
    commands = (data.prepare, data.look, data.probe, *data.solutions, *tries, *runs, *data.trace)
    if any("\0" in one for one in commands):
        yield "a command has a zero byte, which no program can be given"
    if any(one.finds for one in ways) and not data.trace:
        yield "finds is what `learn explain` says, so it needs trace"
    checks = (*data.check, *data.keep, *(one.sign for one in ways))
    patterns = [pattern for check in checks for pattern in (check.has, check.lacks)]
    shown = (data.plan.has,) if data.plan else ()
    for pattern in (*patterns, *shown, data.finds, *(one.finds for one in ways)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)  # `[[a]` may mean something else in a later Python
                re.compile(pattern)
        except (re.error, RecursionError, OverflowError, FutureWarning) as error:
            yield f"{pattern!r} is no pattern: {error}"
    counts = {"check": data.check, "keep": data.keep, "wrong": data.wrong, "also": data.also, "hint": (1, 2, 3)}
    wanted = [*_PARTS, *(f"{name} {n}" for name, many in counts.items() for n in range(1, len(many) + 1))]
    for language, text in lesson.texts.items():
        for name in wanted:
            if not text.parts.get(name):
                yield f"{language}.md lacks the part {texts.heading(language, name)!r}"
        for name in text.parts.keys() - {*wanted, *_OPTIONAL}:
            yield f"{language}.md has {texts.heading(language, name)!r}, which lesson.toml does not"
    first, *others = lesson.texts.items()
    for language, text in others:
        if list(text.parts) != list(first[1].parts):
            yield f"{first[0]}.md and {language}.md have their parts in another order"
        for name, words in text.commands().items():
            if words != first[1].commands()[name]:
                yield f"{texts.heading(language, name)!r} in {language}.md has other commands than {first[0]}.md"


@functools.cache
def lessons() -> Mapping[str, Lesson]:
    """Return linkspan's own lessons by name, in their order. Raises Invalid if one is damaged."""
    found = [load(folder) for folder in sorted(LESSONS.iterdir()) if (folder / "lesson.toml").is_file()]
    return {one.name: one for one in found}


def numbered(text: str) -> Lesson:
    """Return the lesson with this number or name. Raises NotFound."""
    for one in lessons().values():
        if text in (str(one.number), f"{one.number:02}", one.name, f"{one.number:02}-{one.name}"):
            return one
    raise NotFound(f"there is no lesson {text}", "`linkspan learn list` shows all")


def opening(lesson: Lesson) -> list[str]:
    """Return the scripts that make the lesson's beginning: those of the lesson that it begins with, and its own.

    Raises LinkspanError if a lesson begins with one that does not exist, or with itself.
    """
    scripts: list[str] = []
    seen = [lesson.name]
    scripts.append(lesson.data.prepare)
    while lesson.data.begins:
        before = lessons().get(lesson.data.begins)
        if before is None or before.name in seen:
            raise LinkspanError(f"lesson {lesson.name} begins with {lesson.data.begins}, which is no lesson before it")
        lesson = before
        seen.append(lesson.name)
        scripts += [lesson.data.solutions[0], lesson.data.prepare]
    return [one for one in reversed(scripts) if one]
