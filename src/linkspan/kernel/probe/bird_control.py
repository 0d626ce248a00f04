"""Client of BIRD's control socket (BIRD 2 and 3), with few rights and bounded times.

Each line of an answer begins with four digits and ``-``, the last one with a blank in its place; a line that
begins with a blank belongs to the code before it. The parsers are pure: they get the lines and return values.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from linkspan.core.errors import Unavailable
from linkspan.core.states.programs import BGP_REFUSED

SECONDS = 5.0
"""Seconds for all commands of one call: 10,000 routes with all their attributes take 0.3 s (measured)."""

Line = tuple[int, str]
"""An answer's line: its code, and its text."""

_PROTOCOL, _DETAIL, _ROUTE = 1002, 1006, 1007
_PROBLEMS = 8000
"""Codes from here on are of commands that failed."""
_NOTHING = 8001
"""No such network: an answer without routes."""
_FAMILIES = {"ipv4": 4, "ipv6": 6}
_COUNTS = re.compile(r"(\d+) (imported|filtered|exported)")
_HEAD = re.compile(
    r"(\S*)\s+(?:unicast|unreachable|blackhole|prohibited|via|recursive)\b.*?\[(\S+) [^\]]*\](.*)"
)
_HOP = re.compile(r"via (\S+) on (\S+)")
_SAID = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d\S*) (?:\[\d+\] )?<\w+> (\w+): (.*)")
_STRANGER = re.compile(r"unknown address (\S+)")
_COMMUNITY = re.compile(r"\(([\d, ]+)\)")
_CREDENTIALS = struct.Struct("3i")
"""struct ucred (unix(7)): a process, its user and its group."""


class Channel(msgspec.Struct, frozen=True):
    """One address family of a session; numbers of prefixes received, accepted, filtered, and sent.

    ``limit`` is how many are accepted at most (0: any number), ``full`` whether there are more.
    """

    family: int
    up: bool = False
    accepted: int = 0
    filtered: int = 0
    sent: int = 0
    limit: int = 0
    full: bool = False

    @property
    def received(self) -> int:
        """Return the number of prefixes that the peer announces now."""
        return self.accepted + self.filtered


class Protocol(msgspec.Struct, frozen=True):
    """A BGP session in BIRD.

    ``state`` is up, start, stop or down, ``bgp_state`` RFC 4271's word, ``since`` seconds since the epoch
    (None if BIRD prints another format than ours), ``wait`` seconds until its next try, ``families`` those in
    the peer's OPEN.
    """

    name: str
    state: str
    since: float | None = None
    info: str = ""
    bgp_state: str = ""
    address: str = ""
    remote_as: int = 0
    local_as: int = 0
    router_id: str = ""
    source: str = ""
    last_error: str = ""
    wait: float = 0.0
    families: tuple[int, ...] = ()
    channels: tuple[Channel, ...] = ()

    @property
    def established(self) -> bool:
        """Return whether the session is up."""
        return self.state == "up"

    def count(self, what: str) -> int:
        """Return the sum over the families of ``sent``, ``received``, ``accepted`` or ``filtered``."""
        return sum(getattr(channel, what) for channel in self.channels)


class Route(msgspec.Struct, frozen=True):
    """A route from a protocol; ``best`` is the one in use, ``refused`` the rule that filtered it.

    ``next_hops`` are the (address, device) that the kernel gets. If there are none, ``next_hop`` is the
    announced one, which is not on a link.
    """

    prefix: str
    protocol: str
    best: bool = False
    next_hops: tuple[tuple[str, str], ...] = ()
    next_hop: str = ""
    as_path: str = ""
    origin: str = ""
    med: int | None = None
    local_pref: int | None = None
    communities: tuple[str, ...] = ()
    refused: str = ""


class Said(msgspec.Struct, frozen=True):
    """A line of BIRD's log; ``stranger`` is the address of a connection that no session expects."""

    at: float
    protocol: str
    text: str
    stranger: str = ""


# Asking


def ask(path: Path, *commands: str, seconds: float = SECONDS) -> list[list[Line]]:
    """Return BIRD's answer to each command; BIRD itself refuses commands that change anything.

    Raises Unavailable if it does not answer in time, or refuses a command.
    """
    return _asked(path, ("restrict", *commands), seconds)[1:]


def enable(path: Path, protocol: str) -> None:
    """Enable a session that is disabled, by hand or by BIRD itself. Raises Unavailable as ``ask`` does."""
    _asked(path, (f"enable {protocol}",), SECONDS)


def speaker(path: Path) -> int:
    """Return the process that listens at a control socket, 0 if it is of another pid namespace. Raises Unavailable.

    It tells whether BIRD was started again. BIRD's "Last reboot" does not: BIRD calculates it from two clocks each
    time it is asked, so it differs now and then by a millisecond, and by more if the clock is set.
    """
    with _connection(path, SECONDS) as way:
        pid, _, _ = _CREDENTIALS.unpack(way.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return int(pid)


@contextlib.contextmanager
def _connection(path: Path, seconds: float) -> Iterator[socket.socket]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as way:
            way.settimeout(seconds)
            way.connect(str(path))
            yield way
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Unavailable(
            f"BIRD at {path} does not answer: {why}",
            "is it running? bird.log in the state folder shows why not",
        ) from error


def _asked(path: Path, commands: Iterable[str], seconds: float) -> list[list[Line]]:
    end = time.monotonic() + seconds
    with _connection(path, seconds) as way:
        heard = _heard(way, end)
        _answer(heard, "")  # its greeting
        found = []
        for command in commands:
            way.sendall(command.encode() + b"\n")
            found.append(_answer(heard, command))
        return found


def _heard(way: socket.socket, end: float) -> Iterator[bytes]:
    rest = b""
    while True:
        *whole, rest = rest.split(b"\n")
        yield from whole
        way.settimeout(max(end - time.monotonic(), 0.001))
        data = way.recv(1 << 16)
        if not data:
            raise ConnectionResetError(0, "it closed the connection")
        rest += data


def _answer(heard: Iterable[bytes], command: str) -> list[Line]:
    lines = []
    for line in heard:
        lines.append(line.decode(errors="replace"))
        if line[:4].isdigit() and line[4:5] == b" ":
            break
    found = list(coded(lines))
    code, text = found[-1]
    if code >= _PROBLEMS and code != _NOTHING:
        raise Unavailable(f"BIRD refuses {command!r}: {text}")
    return found


def coded(lines: Iterable[str]) -> Iterator[Line]:
    """Yield the lines of an answer, each with its code."""
    code = 0
    for line in lines:
        if line[:4].isdigit():
            code, line = int(line[:4]), line[4:]
        yield code, line[1:]


# Reading


def protocols(lines: Iterable[Line]) -> list[Protocol]:
    """Return the BGP sessions of ``show protocols``, with all details those of ``show protocols all``."""
    found: list[dict[str, Any]] = []
    bgp = False
    for code, text in lines:
        if code == _PROTOCOL:
            name, kind, _, state, *rest = text.split(None, 4)
            bgp = kind == "BGP"
            if bgp:
                found.append({"name": name, "state": state, "channels": []} | _since(rest[0] if rest else ""))
        elif code == _DETAIL and bgp:
            _detail(found[-1], text.strip())
    return [Protocol(**{k: v for k, v in one.items() if k != "side"} | _channels(one)) for one in found]


def _since(text: str) -> dict[str, Any]:
    """Return the time, as ``timeformat protocol iso long`` prints it, and the rest."""
    day, _, rest = text.partition(" ")
    clock, _, info = rest.partition(" ")
    at = _moment(day, clock)
    return {"info": rest.strip()} if at is None else {"since": at, "info": info.strip()}


def _moment(day: str, clock: str) -> float | None:
    """Return seconds since the epoch of BIRD's ISO long format, which is local time."""
    whole, _, fraction = clock.partition(".")
    try:
        return time.mktime(time.strptime(f"{day} {whole}", "%Y-%m-%d %H:%M:%S")) + float(f"0.{fraction or 0}")
    except ValueError:
        return None


_WORDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "BGP state": ("bgp_state", str),
    "Neighbor address": ("address", str),
    "Neighbor AS": ("remote_as", int),
    "Local AS": ("local_as", int),
    "Neighbor ID": ("router_id", str),
    "Source address": ("source", str),
    "Last error": ("last_error", str),
    "Connect delay": ("wait", lambda text: float(text.partition("/")[0])),
    "Error wait": ("wait", lambda text: float(text.partition("/")[0])),
}


def _detail(one: dict[str, Any], text: str) -> None:
    """Add a line of a session's details to ``one``."""
    word, _, value = text.partition(":")
    value = value.strip()
    if text in ("Local capabilities", "Neighbor capabilities"):
        one["side"] = text.partition(" ")[0]
    elif word == "AF announced" and one.get("side") == "Neighbor":
        one["families"] = tuple(_FAMILIES[name] for name in value.split() if name in _FAMILIES)
    elif word.startswith("Channel "):
        one["channels"].append({"family": _FAMILIES.get(word.split()[1], 0)})
    elif one["channels"]:
        if word == "State":
            one["channels"][-1]["up"] = value == "UP"
        elif word == "Import limit":
            most, _, hit = value.partition(" ")
            one["channels"][-1].update(limit=int(most), full=hit == "[HIT]")
        elif word == "Routes":
            one["channels"][-1].update({name: int(count) for count, name in _COUNTS.findall(value)})
    elif word in _WORDS:
        name, read = _WORDS[word]
        one[name] = read(value)


def _channels(one: dict[str, Any]) -> dict[str, tuple[Channel, ...]]:
    return {
        "channels": tuple(
            Channel(
                c["family"],
                c.get("up", False),
                c.get("imported", 0),
                c.get("filtered", 0),
                c.get("exported", 0),
                c.get("limit", 0),
                c.get("full", False),
            )
            for c in one["channels"]
        )
    }


def routes(lines: Iterable[Line]) -> list[Route]:
    """Return the routes of ``show route all``, with whatever other selection the command made."""
    found: list[dict[str, Any]] = []
    destination = ""
    for code, text in lines:
        if code == _ROUTE and (head := _HEAD.match(text)):
            destination = head[1] or destination  # a further route of the same destination
            found.append(
                {"prefix": destination, "protocol": head[2], "best": "*" in head[3].split(), "next_hops": ()}
            )
        elif found and (hop := _HOP.match(text.strip())):
            found[-1]["next_hops"] += ((hop[1], hop[2]),)
        elif found and code not in (_ROUTE, 0):
            _attribute(found[-1], text.strip())
    return [Route(**one) for one in found]


_ATTRIBUTES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "as_path": ("as_path", str),
    "path": ("as_path", str),
    "next_hop": ("next_hop", lambda text: text.partition(" ")[0]),  # a link-local one may follow
    "origin": ("origin", str),
    "med": ("med", int),
    "local_pref": ("local_pref", int),
    BGP_REFUSED: ("refused", str),
}
"""By the name after BIRD 2's ``BGP.`` or BIRD 3's ``bgp_``; filters' own attributes have no such prefix."""


def _attribute(one: dict[str, Any], text: str) -> None:
    name, _, value = text.partition(": ")
    name = name.removeprefix("BGP.").removeprefix("bgp_")
    if name in ("community", "large_community"):
        found = (":".join(part.replace(",", " ").split()) for part in _COMMUNITY.findall(value))
        one["communities"] = (*one.get("communities", ()), *found)
    elif name in _ATTRIBUTES:
        field, read = _ATTRIBUTES[name]
        one[field] = read(value)


def said(log: str) -> tuple[Said, ...]:
    """Return the lines of a log that are about a session, or about BGP as a whole."""
    found = []
    for line in log.splitlines():
        if (match := _SAID.search(line)) and (at := _moment(match[1], match[2])) is not None:
            stranger = _STRANGER.search(match[4])
            found.append(Said(at, match[3], match[4], stranger[1] if stranger else ""))
    return tuple(found)


def count(lines: Iterable[Line]) -> int:
    """Return the number of routes of a command that ends with ``count``."""
    return sum(int(text.split()[0]) for _, text in lines if " routes" in text and text.split()[0].isdigit())
