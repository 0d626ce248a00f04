"""A small agent on a unix socket for tests of the plugin: it records each request and answers as told."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self


class Request(NamedTuple):
    """One request as it came: head, variables, stdin, and the process that sent it."""

    head: bytes
    variables: dict[str, str]
    stdin: bytes
    pid: int

    def namespace(self) -> int:
        """Return the inode behind the plugin's descriptor; works only while the plugin waits."""
        return Path(f"/proc/{self.pid}/fd/{self.variables['LINKSPAN_NETNS_FD']}").stat().st_ino


Reply = Callable[[Request], bytes]
"""Returns all bytes of the answer; fewer than its head promises, or none, is an agent that died."""


def answer(body: bytes = b"", status: int = 200) -> bytes:
    """Return a whole HTTP answer."""
    return b"HTTP/1.0 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


class AgentServer:
    """Listens for as long as it is entered. ``replies`` are used in turn, the last one forever."""

    def __init__(self, path: Path, *replies: Reply) -> None:
        self.requests: list[Request] = []
        self._path = path
        self._replies = list(replies) or [lambda request: answer()]
        self._socket = socket.socket(socket.AF_UNIX)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def reply(self, *replies: Reply) -> None:
        """Answer in this way from now on."""
        self._replies = list(replies)

    def __enter__(self) -> Self:
        self._socket.bind(str(self._path))
        self._socket.listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()
        self._path.unlink()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        try:
            request = received(connection, pid)
            self.requests.append(request)
            connection.sendall(reply(request))
        except ConnectionError:
            pass


def received(connection: socket.socket, pid: int) -> Request:
    """Read one request, of the length in its header."""
    text = b""
    while b"\r\n\r\n" not in text:
        text += _more(connection)
    head, _, body = text.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")
    )
    while len(body) < length:
        body += _more(connection)
    block, _, stdin = body.partition(b"\0\0")
    pairs = (entry.decode(errors="surrogateescape").partition("=") for entry in block.split(b"\0"))
    return Request(head, {name: value for name, _, value in pairs}, stdin, pid)


def _more(connection: socket.socket) -> bytes:
    part = connection.recv(1 << 20)
    if not part:
        raise ConnectionAbortedError("the plugin closed before its request was whole")
    return part
