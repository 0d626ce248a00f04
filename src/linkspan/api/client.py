"""Client of the agent for the command line: HTTP over the unix socket."""

from __future__ import annotations

import http.client
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec

from linkspan.api import WARNINGS
from linkspan.core import errors
from linkspan.core.config import LABS
from linkspan.core.errors import LinkspanError, NotFound, Unavailable
from linkspan.core.escapes import plain

_ERRORS = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LinkspanError)
}


PATIENCE = 120.0
"""Seconds without a byte after which the agent counts as hanging: no answer takes so long."""


AT_ONCE = 1 << 18
"""Bytes of an answer that are read at a time."""


def part(kind: str, name: str) -> str:
    """Return the name of a ``kind`` of object as a part of a URL's path. Raises NotFound for an empty one."""
    if not name:
        raise NotFound(f"{kind} '' does not exist", "give a name")
    return quote(name, safe="")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float | None) -> None:
        super().__init__("linkspan", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # If many clients connect at once, the agent's backlog is full. Then a socket with Python's own
        # timeout is refused (EAGAIN), and a blocking one waits for its turn, for the time that the kernel is
        # given.
        if self.timeout is not None:
            limit = struct.pack("ll", int(self.timeout), int(self.timeout % 1 * 1_000_000))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self.sock.connect(self._path)
        self.sock.settimeout(self.timeout)


class Client:
    """Asks the agent. Every call raises LinkspanError: the agent's own, or Unavailable if it does not answer."""

    shown: ClassVar[Callable[[Any], Any]] = staticmethod(lambda value: value)
    """Applied to all text from agents: nothing, or ``escapes.shown`` for people to read."""

    @classmethod
    def show_by(cls, shown: Callable[[Any], Any]) -> None:
        """Apply this function to all text from agents from now on."""
        cls.shown = staticmethod(shown)

    warned: ClassVar[Callable[[str], None]] = staticmethod(lambda _text: None)
    """Called with each warning of an agent: nothing, or what prints it."""

    @classmethod
    def warn_by(cls, warned: Callable[[str], None]) -> None:
        """Call this function with each warning of an agent from now on."""
        cls.warned = staticmethod(warned)

    def __init__(self, path: str, patience: float = PATIENCE) -> None:
        """``patience`` is in seconds without a byte."""
        self.path = path
        self._patience = patience

    def call(self, method: str, url: str, body: object = None) -> Any:
        """Return the decoded answer."""
        response = self._send(method, url, body, self._patience)
        try:
            data = response.read()
        except TimeoutError as error:
            raise self._hangs() from error
        except (OSError, http.client.HTTPException) as error:
            raise self._ended() from error
        if response.status >= 400:
            raise _error(data, response.status)
        for text in msgspec.json.decode(response.headers.get(WARNINGS, "[]")):
            Client.warned(Client.shown(text))
        return data.decode() if url == "/metrics" else Client.shown(msgspec.json.decode(data))

    def items(self, url: str) -> Iterator[Any]:
        """Yield the decoded items of a list as they come."""
        for part in self.parts(url):
            found = msgspec.json.decode(part)
            yield from found if plain(part) else map(Client.shown, found)

    def parts(self, url: str) -> Iterator[str]:
        """Yield a list as it comes: parts of it, each of which is a list of some items, in one line of JSON."""
        response = self._send("GET", url, None, self._patience)
        opened, left = b"[", b""
        try:
            if response.status >= 400:
                raise _error(response.read(), response.status)
            while some := response.read1(AT_ONCE):
                whole, line_end, left = (left + some).rpartition(b"\n")
                if line_end:
                    yield from _part(whole.removeprefix(opened))
                    opened = b""
        except TimeoutError as error:
            raise self._hangs() from error
        except (OSError, http.client.HTTPException) as error:
            raise self._ended() from error
        if not left.endswith(b"]"):
            raise self._ended()
        yield from _part(left.removeprefix(opened)[:-1])  # an older agent sends all items in one line

    def _ended(self) -> Unavailable:
        return Unavailable(
            f"agent at {self.path} ended during the request", "`linkspan status` shows whether it runs again"
        )

    def clustered(self, hosts: Collection[str]) -> bool:
        """Return whether the cluster has several hosts; ``hosts`` are those that the caller knows already."""
        return len(hosts) > 1 or len(self.call("GET", "/v1/cluster")["hosts"]) > 1

    def lines(self, url: str) -> Iterator[bytes]:
        """Yield the lines of an answer as they come."""
        response = self._send("GET", url, None, None)
        if response.status >= 400:
            raise _error(response.read(), response.status)
        while line := response.readline():
            yield line

    def _hangs(self) -> Unavailable:
        return Unavailable(
            f"the agent at {self.path} has not answered for {self._patience:.0f} s",
            "does its process hang, or is it stopped? `systemctl status linkspan` shows its state",
        )

    def _send(self, method: str, url: str, body: object, seconds: float | None) -> http.client.HTTPResponse:
        connection = _Connection(self.path, seconds)
        data = None if body is None else msgspec.json.encode(body)
        try:
            connection.request(method, url, data, {"Content-Type": "application/json"})
            return connection.getresponse()
        except (TimeoutError, BlockingIOError) as error:
            raise self._hangs() from error
        except PermissionError as error:
            raise Unavailable(
                f"user {os.geteuid()} may not use the agent's socket {self.path}",
                "use sudo, or join the group linkspan to read",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise no_answer(self.path, error) from error


def no_answer(path: str, error: OSError | http.client.HTTPException) -> Unavailable:
    """Return the error of an agent with which there is no connection."""
    why = (getattr(error, "strerror", None) or str(error)).lower()
    return Unavailable(f"no agent answers at {path}: {why}", started(path))


def started(path: str, what: str = "agent", unit: str = "linkspan") -> str:
    """Return the command that starts the agent of a socket: in a lab by the lab, not on the machine."""
    host = Path(path).parent
    if host.parent.parent == LABS:
        return f"`linkspan lab mend {host.name} --lab {host.parent.name}` starts it"
    return f"start one: `sudo linkspan {what}`, or `sudo systemctl start {unit}`"


def _part(lines: bytes) -> Iterator[str]:
    """Yield these items of a list as a list, if there are any; commas and line ends divide them."""
    if items := lines.strip(b",\n").replace(b"\n", b""):  # no text in JSON has a line end
        yield f"[{items.decode()}]"


def _error(data: bytes, status: int) -> LinkspanError:
    try:
        found = Client.shown(msgspec.json.decode(data)["error"])
        kind = _ERRORS.get(found["code"], LinkspanError)
        error = LinkspanError.__new__(kind)
        Exception.__init__(error, found["message"])
        error.message, error.hint = found["message"], found["hint"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return LinkspanError(f"the agent answered with status {status}", "is it another version?")
    return error
