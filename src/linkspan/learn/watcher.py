"""What the kernel has of a lesson: judged at once, and watched by a fingerprint of the sandbox's state."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import msgspec

from linkspan.learn.lesson import Lesson
from linkspan.learn.sandbox import Sandbox

PAUSE = 0.4
"""Seconds between two fingerprints: a reader is told within a second."""
SETTLING = (0.7, 2.0, 6.5)
"""Seconds after a change at which the checks run again.

A link's carrier and neighbour entries come a little later, and a mistake counts only if it stays.
"""

_LOOK = """
look() {
  printf '%s\\n' 'link show' 'address show' 'route show table all' 'rule show' 'neighbour show nud permanent' |
    $1 ip -o -batch - 2>&1
  $1 nft -s list ruleset 2>&1
  $1 bridge -d link show 2>&1
  $1 ss -Htuln 2>&1
  $1 sh -c 'cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/rp_filter \
    /proc/sys/net/bridge/bridge-nf-call-iptables; test -s /proc/net/ip_tables_names && iptables-legacy -S' 2>&1
}
look
for name in $(ls /run/netns); do echo "$name"; look "nsenter --net=/run/netns/$name"; done
"""
"""Prints what checks depend on, without counters and timers."""


class Judgement(msgspec.Struct, frozen=True):
    """What is true of a lesson now: by check and keep, and the numbers (from 1) of recognised attempts.

    ``probe`` is None if it was not sent, because something else is missing.
    """

    checks: tuple[bool, ...]
    keeps: tuple[bool, ...]
    probe: bool | None
    wrong: tuple[int, ...] = ()
    also: tuple[int, ...] = ()

    @property
    def passed(self) -> bool:
        """Return whether the lesson is passed."""
        return all(self.checks) and all(self.keeps) and self.probe is True


def judge(sandbox: Sandbox, lesson: Lesson) -> Judgement:
    """Judge the sandbox's state now. Raises LinkspanError if the sandbox is gone."""
    data = lesson.data
    signs = (*(one.sign for one in data.wrong), *(one.sign for one in data.also))
    every = (*data.check, *data.keep, *signs)
    results = sandbox.results([one.run for one in every])
    held = [one.holds(*result) for one, result in zip(every, results, strict=True)]
    checks, held = tuple(held[: len(data.check)]), held[len(data.check) :]
    keeps, held = tuple(held[: len(data.keep)]), held[len(data.keep) :]
    wrong, also = held[: len(data.wrong)], held[len(data.wrong) :]
    probe = None
    if all(checks) and all(keeps):
        ((code, output),) = sandbox.results([lesson.probe.run])
        probe = lesson.probe.holds(code, output)
    return Judgement(checks, keeps, probe, _numbers(wrong), _numbers(also))


def _numbers(held: list[bool]) -> tuple[int, ...]:
    return tuple(number for number, one in enumerate(held, 1) if one)


class Watcher:
    """Judges a lesson whenever the sandbox's state has changed, and a little later once more."""

    def __init__(
        self, sandbox: Sandbox, lesson: Lesson, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sandbox = sandbox
        self._lesson = lesson
        self._clock = clock
        self._seen = b""
        self._due: list[float] = []

    def look(self) -> Judgement | None:
        """Return a new judgement, None if nothing has changed since the last one.

        Raises LinkspanError if the sandbox is gone.
        """
        ((_, state),) = self._sandbox.results([_LOOK])
        seen = hashlib.sha256(state.encode()).digest()
        now = self._clock()
        if seen != self._seen:
            self._seen = seen
            self._due = [now + after for after in SETTLING]
        elif self._due and now >= self._due[0]:
            self._due.pop(0)
        else:
            return None
        return judge(self._sandbox, self._lesson)
