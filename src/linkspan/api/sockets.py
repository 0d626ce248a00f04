"""Sockets on which an agent or a controller listens: unix sockets, and the address for metrics."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from linkspan.agent import locks
from linkspan.core import http_server
from linkspan.core.config import GROUP, listening_at
from linkspan.core.errors import Conflict, Invalid
from linkspan.core.remedies import reason, remedy

BACKLOG = 1024
"""Length of the backlog: all containers of a host may start at once, and 128 is too few."""

PATIENCE = 5.0
"""Seconds that requests have to end when a server stops."""


@contextlib.asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[web.AppRunner]:
    """Yield a runner of an application, which ends with the block."""
    runner = http_server.runner(app, shutdown_timeout=PATIENCE)
    await runner.setup()
    try:
        yield runner
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def on_socket(
    runner: web.AppRunner, path: Path, setting: str = "socket", umask: int = 0o117
) -> AsyncIterator[None]:
    """Serve on the unix socket that ``listener`` gives, until the block ends; raises what it raises."""
    with listener(path, setting, umask) as made:
        await web.SockSite(runner, made, backlog=BACKLOG).start()
        yield


@contextlib.contextmanager
def listener(path: Path, setting: str = "socket", umask: int = 0o117) -> Iterator[socket.socket]:
    """Give a listening unix socket that the group may use, unless the umask forbids it. Whoever serves it closes it.

    Its file is removed with the block: whoever connects then finds at once that nobody serves. Raises Invalid if it
    cannot be made, and Conflict if another process serves it.
    """
    another = f"give --{setting} another path" if setting == "socket" else f"give {setting} another path"
    if (pid := locks.listener(str(path))) is not None:
        who = f"another process{f', with pid {pid}' if pid else ''}"
        raise Conflict(f"{setting} {path} is served by {who}", f"stop that one first, or {another}")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _listen_at(made, path, umask)
        own = path.lstat().st_ino
    except OSError as error:
        made.close()
        raise Invalid(f"{setting} {path}: {reason(error)}", remedy(error, path, another)) from error
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):  # it is gone, or its folder is
            if path.lstat().st_ino == own:  # else another process serves there by now
                path.unlink()


def _listen_at(made: socket.socket, path: Path, umask: int) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.is_socket():
        path.unlink()  # left by an agent that died
    elif os.path.lexists(path):  # another program's file or folder
        raise FileExistsError(errno.EEXIST, "something else than a socket is there")
    old = os.umask(umask)
    try:
        made.bind(str(path))
    finally:
        os.umask(old)
    with contextlib.suppress(KeyError):  # without the group only root may use the socket
        os.chown(path, 0, grp.getgrnam(GROUP).gr_gid)
    made.listen(BACKLOG)


@contextlib.asynccontextmanager
async def metrics_at(where: str, handler: Handler) -> AsyncIterator[None]:
    """Serve /metrics, and nothing else, at ADDRESS:PORT; serve nothing if it is empty. Raises Invalid."""
    address, port = listening_at(where)
    if not port:
        yield
        return
    app = web.Application()
    app.add_routes([web.get("/metrics", handler)])
    async with listening(app) as runner:
        try:
            await web.TCPSite(runner, address or None, port).start()
        except OSError as error:
            why, hint = reason(error), "give metrics an address of this host (`ip addr`)"
            if error.errno == errno.EADDRINUSE:
                why = "another program listens there"
                hint = "`ss -ltnp` shows it: stop it, or give metrics another port"
            raise Invalid(f"metrics {where}: {why}", hint) from error
        yield
