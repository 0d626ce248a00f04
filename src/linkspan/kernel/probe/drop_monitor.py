"""Drop monitor of the kernel: why it dropped a packet, whichever part of it did.

It works for the whole machine at once, and only from its first network namespace. Reports arrive for every
packet that is dropped anywhere; the listener recognises its own. There is only one monitor: if another
program has started it, nothing is changed. A listener that is killed leaves it running, which costs the
kernel a report that nobody reads for each packet that it drops.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import msgspec

from linkspan.core.errors import KernelError, Unavailable
from linkspan.kernel.io.netlink import F_ACK, GENERIC, Message, Socket, attributes, string, text

_CTRL, _GETFAMILY, _FAMILY_ID, _FAMILY_NAME, _GROUPS, _GROUP_ID = 16, 3, 1, 2, 7, 2  # linux/genetlink.h
# linux/net_dropmon.h: NET_DM_CMD_* and NET_DM_ATTR_*
_CONFIG, _START, _STOP, _PACKET = 2, 3, 4, 5
_ALERT_MODE, _SYMBOL, _IN_PORT, _PAYLOAD, _TRUNCATE, _SW_DROPS, _REASON = 1, 3, 4, 7, 9, 20, 23
_PORT_NAME = 1  # NET_DM_ATTR_PORT_NETDEV_NAME
_BY_PACKET = 1  # NET_DM_ALERT_MODE_PACKET
_ENOUGH = 256
"""Bytes to report of each packet: a probe behind a tunnel's headers is shorter."""
_ETHERNET = 14


class Lost(msgspec.Struct, frozen=True):
    """A packet that the kernel dropped: ``packet`` from its IP header on, ``came_by`` '' if no device is known."""

    reason: str
    function: str
    came_by: str
    packet: bytes


class DropMonitor:
    """Listens to the kernel's drop monitor. Raises Unavailable if there is none, or if another program uses it."""

    def __init__(self) -> None:
        self._socket = Socket(GENERIC)
        try:
            self._family, group = self._found()
            self._command(_CONFIG, struct.pack("=HHBxxx", 5, _ALERT_MODE, _BY_PACKET), _word(_TRUNCATE, _ENOUGH))
            self._socket.join(group)
            self._command(_START, struct.pack("=HH", 4, _SW_DROPS))
        except KernelError as error:
            self._socket.close()
            raise Unavailable(f"the kernel's drop monitor cannot be used: {error.message}") from error

    def fileno(self) -> int:
        """Return the descriptor, to wait for reports with select()."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop the monitor."""
        with contextlib.suppress(KernelError):
            self._command(_STOP, struct.pack("=HH", 4, _SW_DROPS))
        self._socket.close()

    def read(self) -> Iterator[Lost]:
        """Yield the packets dropped since the last call."""
        while True:
            try:
                reports = list(self._socket.receive())
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: reports were lost, and the rest is worth reading
                continue
            for kind, _, body in reports:
                if kind == self._family and body[0] == _PACKET:
                    yield _lost(attributes(body, 4))

    def _found(self) -> tuple[int, int]:
        """Return the family's number and that of its group for reports."""
        body = struct.pack("=BBxx", _GETFAMILY, 1) + text(_FAMILY_NAME, "NET_DM")
        found = attributes(self._socket.get(Message(_CTRL, 0, body, "find the family NET_DM")), 4)
        (group,) = (attributes(one)[_GROUP_ID] for one in attributes(found[_GROUPS]).values())
        return int.from_bytes(found[_FAMILY_ID], "little"), int.from_bytes(group, "little")

    def _command(self, command: int, *parts: bytes) -> None:
        body = struct.pack("=BBxx", command, 2) + b"".join(parts)
        self._socket.request(Message(self._family, F_ACK, body, "set up the drop monitor"))


def _word(kind: int, value: int) -> bytes:
    return struct.pack("=HHI", 8, kind, value)


def _lost(found: dict[int, bytes]) -> Lost:
    port = attributes(found.get(_IN_PORT, b""))
    return Lost(
        string(found.get(_REASON, b"")) or "no reason given",
        string(found.get(_SYMBOL, b"")).partition("+")[0],
        string(port.get(_PORT_NAME, b"")),
        found.get(_PAYLOAD, b"")[_ETHERNET:],
    )
