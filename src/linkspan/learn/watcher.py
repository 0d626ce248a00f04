"""Watcher of what the kernel has of a lesson: judged at once, and watched by a fingerprint of the sandbox's state."""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from collections.abc import Callable

import msgspec

from linkspan.core.escapes import escaped
from linkspan.learn.lesson import Lesson
from linkspan.learn.sandbox import RUN, Sandbox

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
for name in /run/netns/*; do echo "$name"; nsenter --net="$name" sh -c "$one" 2>&1; done
"""

HOST = "host"
"""Name of the namespace that plays the host."""
_HERE = "."
"""The same in the output of a command: no namespace can have this name."""
_SOME = 5
"""Namespaces that are named, at most: a reader may have made any number."""
_TAKERS = """
one='ip route get {target} 2>/dev/null | grep -q "^local " ||
  {{ nft -s list ruleset; grep -qx nat /proc/net/ip_tables_names && iptables-legacy -t nat -S; }} 2>/dev/null |
  grep -iwE "dnat|redirect|tproxy|fwd" {others} | grep -q .'
sh -c "$one" && echo {here}
for name in /run/netns/*; do nsenter --net="$name" sh -c "$one" && echo "${{name##*/}}"; done
true
"""
"""Prints names of namespaces, for the address of a packet."""

_BY_ITSELF = re.compile(
    r"^.*(?:::|\binet6\b|\bproto bird\b).*\n"
    r"|\bNO-CARRIER,|,LOWER_UP\b|,M-DOWN\b|\bstate [A-Z]+\b| linkdown\b",
    re.MULTILINE,
)
"""Changes that the kernel and BIRD make by themselves: carriers, IPv6's own addresses, learnt routes."""
_BEGINNING = f"{RUN}/beginning"
"""In a sandbox: the fingerprint of its settings at the lesson's beginning."""


class Judgement(msgspec.Struct, frozen=True):
    """The state of a lesson now: by check and keep, and the numbers (from 1) of recognised attempts.

    ``probe`` is None if it was not sent, because something else is missing. ``elsewhere`` are the namespaces that take
    its packets, or translate their destination, instead of the one that they should reach.
    """

    checks: tuple[bool, ...]
    keeps: tuple[bool, ...]
    probe: bool | None
    wrong: tuple[int, ...] = ()
    also: tuple[int, ...] = ()
    elsewhere: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Return whether the lesson is passed."""
        return all(self.checks) and all(self.keeps) and not self.elsewhere and self.probe is True


def judge(sandbox: Sandbox, lesson: Lesson) -> Judgement:
    """Judge the sandbox's state now. Raises LinkspanError if the sandbox is gone."""
    data = lesson.data
    signs = (*(one.sign for one in data.wrong), *(one.sign for one in data.also))
    every = (*data.check, *data.keep, *signs)
    *results, (_, takers) = sandbox.results([*(one.run for one in every), _takers(lesson)])
    held = [one.holds(*result) for one, result in zip(every, results, strict=True)]
    checks, held = tuple(held[: len(data.check)]), held[len(data.check) :]
    keeps, held = tuple(held[: len(data.keep)]), held[len(data.keep) :]
    wrong, also = held[: len(data.wrong)], held[len(data.wrong) :]
    meant = _HERE if data.reaches == HOST else data.reaches
    others = [escaped(one) for one in takers.split() if one != meant]
    elsewhere = tuple(HOST if one == _HERE else one for one in others[:_SOME])
    probe = None
    if all(checks) and all(keeps) and not elsewhere:
        ((code, output),) = sandbox.results([lesson.probe.run])
        probe = lesson.probe.holds(code, output)
    return Judgement(checks, keeps, probe, _numbers(wrong), _numbers(also), elsewhere)


def _takers(lesson: Lesson) -> str:
    """Return a command that prints the namespaces that take the probe's packets, or translate their destination.

    A namespace takes what its own routes call local: by an address, on whichever device, or by a route. Rules about
    ports translate no ping.
    """
    if not lesson.data.reaches:
        return "true"
    pings = re.search(r"\bping\b", lesson.data.probe)
    others = '| grep -viE "tcp|udp|sctp|dport"' if pings else ""
    return _TAKERS.format(target=lesson.data.trace[1], others=others, here=_HERE)


def _numbers(held: list[bool]) -> tuple[int, ...]:
    return tuple(number for number, one in enumerate(held, 1) if one)


def remember(sandbox: Sandbox, lesson: Lesson) -> None:
    """Remember the settings of a lesson's beginning. Raises LinkspanError if the sandbox is gone."""
    sandbox.script(f"echo {settings(sandbox, lesson)} > {_BEGINNING}")


def tried(sandbox: Sandbox, lesson: Lesson) -> bool:
    """Return whether somebody has changed a setting since `remember`. Raises LinkspanError if the sandbox is gone."""
    ((_, before),) = sandbox.results([f"cat {_BEGINNING}"])
    return before.strip() != settings(sandbox, lesson)


def settings(sandbox: Sandbox, lesson: Lesson) -> str:
    """Return a fingerprint of what only somebody's commands change. Raises LinkspanError if the sandbox is gone."""
    return hashlib.sha256(_BY_ITSELF.sub("", _state(sandbox, lesson)).encode()).hexdigest()


def _state(sandbox: Sandbox, lesson: Lesson) -> str:
    return "\n".join(output for _, output in sandbox.results([_LOOK, lesson.data.look or "true"]))


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
