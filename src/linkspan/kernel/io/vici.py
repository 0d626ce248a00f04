"""Client of strongSwan's control socket (vici), with bounded times.

The library speaks the protocol; this module turns its dictionaries of bytes into values, and its exceptions
into ours.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import vici
from vici.exception import CommandException, SessionException

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Unavailable
from linkspan.core.states.ipsec import PREFIX

SECONDS = 5.0
"""Seconds for one answer."""

Session = Any
"""A session of the library, which has no types: each of the daemon's commands is a method of it."""
Refused: type[Exception] = CommandException
"""The exception of a session if the daemon rejects a command."""


class Loaded(msgspec.Struct, frozen=True):
    """A connection as the daemon has loaded it: its children's names, and whether it starts by itself.

    Agents before this version let the daemon start, also again after a peer was silent.
    """

    children: tuple[str, ...]
    starts: bool = False


class Child(msgspec.Struct, frozen=True):
    """A pair of ESP associations in the daemon; SPIs in hexadecimal, ``installed``: they carry packets.

    ``there`` is the remote prefix.
    """

    name: str
    number: int
    installed: bool
    spi_in: str = ""
    spi_out: str = ""
    cipher: str = ""
    encapsulated: bool = False
    mark: int = 0
    there: Prefix | None = None


class Association(msgspec.Struct, frozen=True):
    """An IKE association: ``number`` is the daemon's own, ``age`` the seconds since it is up, None if it is not.

    ``remote`` and ``port`` are where the peer is seen.
    """

    connection: str
    number: int
    state: str
    remote: str = ""
    initiator: bool = False
    age: int | None = None
    children: tuple[Child, ...] = ()
    port: int = 0

    @property
    def established(self) -> bool:
        """Return whether both hosts have authenticated each other."""
        return self.age is not None and self.state == "ESTABLISHED"


@contextlib.contextmanager
def session(path: Path, alive: Callable[[], bool] = lambda: False) -> Iterator[Session]:
    """Yield a session. Wait for a daemon that is ``alive`` and has just started. Raises Unavailable."""
    end = time.monotonic() + SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as way:
        try:
            way.settimeout(SECONDS)
            while True:
                try:
                    way.connect(str(path))
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    if not alive() or time.monotonic() > end:
                        raise
                    time.sleep(0.01)
            yield vici.Session(way)
        except CommandException as error:
            raise Unavailable(f"strongSwan refuses: {error}") from error
        except (OSError, SessionException) as error:
            why = (getattr(error, "strerror", "") or str(error)).lower()
            raise Unavailable(
                f"strongSwan at {path} does not answer: {why}",
                "is it running? charon.log in the state folder shows why not",
            ) from error


def names(asked: Session) -> set[str]:
    """Return the names of our loaded connections, by one message: ``connections`` needs one for each."""
    found = (bytes(one).decode(errors="replace") for one in asked.get_conns().get("conns", ()))
    return {name for name in found if name.startswith(PREFIX)}


def connections(asked: Session) -> dict[str, Loaded]:
    """Return our loaded connections, by name."""
    return {
        name: _loaded(one["children"])
        for told in asked.list_conns()
        for name, one in told.items()
        if name.startswith(PREFIX)
    }


def _loaded(children: dict[str, Any]) -> Loaded:
    # "restart" before strongSwan 5.9.6.
    starts = any(_text(one, "dpd_action") in ("start", "restart") for one in children.values())
    return Loaded(tuple(children), starts)


def associations(asked: Session) -> list[Association]:
    """Return the IKE associations of our connections, including those being established."""
    return [
        _association(name, one)
        for told in asked.list_sas()
        for name, one in told.items()
        if name.startswith(PREFIX)
    ]


def _association(name: str, told: dict[str, Any]) -> Association:
    return Association(
        connection=name,
        number=int(told["uniqueid"]),
        state=_text(told, "state"),
        remote=_text(told, "remote-host"),
        initiator=_text(told, "initiator") == "yes",
        age=int(told["established"]) if "established" in told else None,
        children=tuple(_child(one) for one in told.get("child-sas", {}).values()),
        port=int(_text(told, "remote-port") or "0"),
    )


def _child(told: dict[str, Any]) -> Child:
    bits = _text(told, "encr-keysize")
    return Child(
        name=_text(told, "name"),
        number=int(told["uniqueid"]),
        installed=_text(told, "state") in ("INSTALLED", "REKEYING", "REKEYED"),
        spi_in=_text(told, "spi-in"),
        spi_out=_text(told, "spi-out"),
        cipher=_text(told, "encr-alg").replace("_", "-") + (f"-{bits}" if bits else ""),
        encapsulated=_text(told, "encap") == "yes",
        mark=int(_text(told, "if-id-out") or "0", 16),
        there=prefix(told["remote-ts"][0].decode()) if told.get("remote-ts") else None,
    )


def _text(told: dict[str, Any], word: str) -> str:
    return bytes(told.get(word, b"")).decode(errors="replace")
