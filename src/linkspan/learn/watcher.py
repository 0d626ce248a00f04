"""Watcher of what the kernel has of a lesson: judged at once, and watched by a fingerprint of the sandbox's state."""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from collections.abc import Callable, Mapping

import msgspec

from linkspan.core.errors import LinkspanError
from linkspan.learn import named_namespaces
from linkspan.learn.lesson import HOST, Lesson
from linkspan.learn.sandbox import RUN, TIMED_OUT, Sandbox

PAUSE = 0.4
"""Seconds between two fingerprints: a reader is told within a second."""
SETTLING = (0.7, 2.0, 6.5, 15.0, 30.0, 60.0)
"""Seconds after a change at which the checks run again.

A link's carrier and neighbour entries come a little later, and a mistake counts only if it stays. The kernel keeps an
old neighbour entry for up to 55 seconds: 45 in which it asks nobody, and the rest until nobody has answered.
"""

_ONE = """
ip -o -batch - 2>&1 <<END
link show
address show
route show table all
rule show
neighbour show nud permanent
END
nft -s list ruleset 2>&1
ss -Htuln 2>&1
for file in /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/conf/*/proxy_arp \
  /proc/sys/net/bridge/bridge-nf-call-iptables; do read -r value <$file && echo $value; done 2>/dev/null
if read -r table </proc/net/ip_tables_names; then iptables-legacy -S; fi 2>/dev/null
"""
"""Prints what checks depend on, of one namespace, without counters and timers; it starts three programs."""
_LOOK = f"""
one={shlex.quote(_ONE)}
sh -c "$one"
for name in /run/netns/*; do
  [ ! -f "$name" ] || {{ echo "$name"; nsenter --net="$name" sh -c "$one" 2>&1; }}
done
exit 0
"""
"""Prints that of all namespaces with a name; a pipe with such a name would keep it waiting."""

_BY_ITSELF = re.compile(
    r"^.*(?:::|\binet6\b|\bproto bird\b).*\n"
    r"|\bNO-CARRIER,|,LOWER_UP\b|,M-DOWN\b|\bstate [A-Z]+\b| linkdown\b",
    re.MULTILINE,
)
"""Changes that the kernel and BIRD make by themselves: carriers, IPv6's own addresses, learnt routes."""
_COUNTDOWN = re.compile(r"\b(valid|preferred)_lft \d+sec")
"""Changes each second: what is left of an address of DHCP."""
_BEGINNING = f"{RUN}/beginning"
"""In a sandbox: the fingerprint of its settings at the lesson's beginning."""


class Judgement(msgspec.Struct, frozen=True):
    """The state of a lesson now: by check and keep, and the numbers (from 1) of recognised attempts.

    ``probe`` is None if it was not sent, because something else is missing. ``arrived`` is False if it was answered,
    and its packets have not reached the namespace that they must reach: something else gave the answer. ``replaced``
    are names that another namespace has than the lesson means.
    """

    checks: tuple[bool, ...]
    keeps: tuple[bool, ...]
    probe: bool | None
    wrong: tuple[int, ...] = ()
    also: tuple[int, ...] = ()
    arrived: bool = True
    replaced: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Return whether the lesson is passed."""
        return all(self.checks) and all(self.keeps) and self.probe is True and self.arrived and not self.replaced


def judge(sandbox: Sandbox, lesson: Lesson, given: Mapping[str, str] | None = None) -> Judgement:
    """Judge the sandbox's state now. Raises LinkspanError if the sandbox is gone.

    ``given``: the namespaces of the beginning, if the caller has remembered them (`named_namespaces.remember`).
    """
    data = lesson.data
    signs = (*(one.sign for one in data.wrong), *(one.sign for one in data.also))
    every = (*data.check, *data.keep, *signs)
    before, now, *results = sandbox.results([*named_namespaces.looks(lesson, given), *(one.run for one in every)])
    replaced = named_namespaces.replaced(lesson, before[1] if given is None else given, now[1])
    held = [one.holds(*result) for one, result in zip(every, results, strict=True)]
    checks, held = tuple(held[: len(data.check)]), held[len(data.check) :]
    keeps, held = tuple(held[: len(data.keep)]), held[len(data.keep) :]
    wrong, also = held[: len(data.wrong)], held[len(data.wrong) :]
    probe, arrived = None, True
    if all(checks) and all(keeps):
        counted, kept = _counters(lesson), [one.run for one in data.keep]
        first, (code, output), after, *results = sandbox.results([counted, lesson.probe.run, counted, *kept])
        probe = lesson.probe.holds(code, output)
        # The reader may have typed meanwhile: what the probe found must not be due to what was to stay.
        keeps = tuple(one.holds(*result) for one, result in zip(data.keep, results, strict=True))
        arrived = not probe or _arrived(lesson, first, after)
    return Judgement(checks, keeps, probe, _numbers(wrong), _numbers(also), arrived, replaced)


def _counters(lesson: Lesson) -> str:
    """Return a command that prints the kernel's counters of the namespace that the probe must reach."""
    if lesson.data.reaches in ("", HOST):
        return "cat /proc/net/snmp"
    return f"nsenter --net={shlex.quote(f'/run/netns/{lesson.data.reaches}')} cat /proc/net/snmp"


def _arrived(lesson: Lesson, before: tuple[int, str], after: tuple[int, str]) -> bool:
    """Return whether the probe's packets have arrived, by the counters before and after it.

    Who else could have given the answer is not asked: there are too many ways to take a packet.
    """
    return not lesson.data.reaches or all(
        before[0] == after[0] == 0 and _count(after[1], *one) - _count(before[1], *one) >= times
        for one, times in lesson.arrivals.items()
    )


def _count(counters: str, protocol: str, name: str) -> int:
    """Return one of the counters of /proc/net/snmp: of each protocol a line of names, and one of values."""
    names, values = (line.split() for line in counters.splitlines() if line.startswith(f"{protocol}:"))
    return int(values[names.index(name)])


def _numbers(held: list[bool]) -> tuple[int, ...]:
    return tuple(number for number, one in enumerate(held, 1) if one)


def remember(sandbox: Sandbox, lesson: Lesson) -> None:
    """Remember the settings of a lesson's beginning. Raises LinkspanError as `settings`."""
    sandbox.script(f"echo {settings(sandbox, lesson)} > {_BEGINNING}")


def tried(sandbox: Sandbox, lesson: Lesson) -> bool:
    """Return whether somebody has changed a setting since `remember`. Raises LinkspanError as `settings`."""
    ((_, before),) = sandbox.results([f"cat {_BEGINNING}"])
    return before.strip() != settings(sandbox, lesson)


def settings(sandbox: Sandbox, lesson: Lesson) -> str:
    """Return a fingerprint of what only somebody's commands change.

    Raises LinkspanError if the sandbox is gone, or its state cannot be read to its end.
    """
    return hashlib.sha256(_BY_ITSELF.sub("", _state(sandbox, lesson)).encode()).hexdigest()


def _state(sandbox: Sandbox, lesson: Lesson) -> str:
    """Return what checks depend on. Raises LinkspanError if it cannot be read to its end: changes would not be seen."""
    (code, state), (ended, more) = sandbox.results([_LOOK, lesson.data.look or "true"])
    if code or ended >= TIMED_OUT:
        raise LinkspanError("the state of the sandbox cannot be read to its end")
    return _COUNTDOWN.sub("", f"{state}\n{more}")


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

        Raises LinkspanError as `settings`.
        """
        seen = hashlib.sha256(_state(self._sandbox, self._lesson).encode()).digest()
        now = self._clock()
        if seen != self._seen:
            self._seen = seen
            self._due = [now + after for after in SETTLING]
        elif self._due and now >= self._due[0]:
            self._due.pop(0)
        else:
            return None
        return judge(self._sandbox, self._lesson)
