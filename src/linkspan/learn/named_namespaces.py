"""Named network namespaces of a lesson: each is one of its own, and those of its beginning keep their names.

A check asks for a namespace by its name, and in a sandbox anybody may bind another namespace over a name: `ping` from
a container to itself would then solve a lesson about two. So a namespace is known by its inode. The kernel gives the
number of a deleted one to the next one, so the time of the inode, which the name's mount keeps, belongs to it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from linkspan.learn.lesson import HOST, Lesson
from linkspan.learn.sandbox import NETNS, RUN, Sandbox

_FILE = f"{RUN}/namespaces"
"""In a sandbox: its namespaces at the lesson's beginning."""
_HOST_PATH = "/proc/self/ns/net"
_LOOK = f"TZ=UTC0 stat -Lc '%n %d:%i %y' {_HOST_PATH}"
_NAME = re.compile(r"(?:\bnetns exec|\s-n(?:etns)?) (\w[\w.-]*)")
"""A name in a command of a lesson."""


def remember(sandbox: Sandbox) -> dict[str, str]:
    """Remember the namespaces of a lesson's beginning, and return them by name."""
    ((_, output),) = sandbox.results([f"{_LOOK} {NETNS}/* 2>/dev/null | tee {_FILE}"])
    return _known(output)


def looks(lesson: Lesson, given: Mapping[str, str] | None) -> tuple[str, str]:
    """Return commands that print the namespaces of the beginning, and those that have a lesson's names now.

    ``given``: those of the beginning, if the caller has remembered them. Then the sandbox's file is not read, because
    its programs may write to it.
    """
    if given is not None:
        return "true", _look(names(lesson, given))
    return f"cat {_FILE}", f"{_look(names(lesson))} {NETNS}/*"


def replaced(lesson: Lesson, before: Mapping[str, str] | str, now: str) -> tuple[str, ...]:
    """Return the names that do not mean the namespace of the beginning any more, and those that mean the same one.

    ``before`` and ``now`` are what `looks` has printed, or the remembered ones.
    """
    given = _known(before) if isinstance(before, str) else before
    found = _known(now)
    wanted = {HOST, *names(lesson, given)}
    inodes = {name: found[name].partition(" ")[0] for name in wanted & found.keys()}
    many = Counter(inodes.values())
    other = {name for name, identity in given.items() if found.get(name) != identity}
    return tuple(sorted(other | {name for name, inode in inodes.items() if many[inode] > 1}))


def names(lesson: Lesson, given: Iterable[str] = ()) -> set[str]:
    """Return the names in a lesson's checks, because the reader makes some, and those that were ``given``."""
    data = lesson.data
    runs = (data.probe, *(one.run for one in (*data.check, *data.keep)))
    return {name for run in runs for name in _NAME.findall(run)} | {data.reaches, *given} - {"", HOST}


def _look(wanted: Iterable[str]) -> str:
    return " ".join([_LOOK, *(f"{NETNS}/{name}" for name in sorted(wanted))])


def _known(output: str) -> dict[str, str]:
    """Return identities by name. The host's has no time: no mount keeps its inode."""
    known = {}
    for line in output.splitlines():
        path, _, identity = line.partition(" ")
        if path == _HOST_PATH:
            known[HOST] = identity.partition(" ")[0]
        elif path.startswith(f"{NETNS}/") and identity:
            known[path.removeprefix(f"{NETNS}/")] = identity
    return known
