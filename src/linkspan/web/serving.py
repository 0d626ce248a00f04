"""Run of `linkspan web`: listens, prints links, and ends with the terminal's Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping

from linkspan.core import http_server
from linkspan.core.errors import Invalid
from linkspan.core.remedies import reason
from linkspan.core.supervise import ended, lasting
from linkspan.web import browser
from linkspan.web.access import TOKEN_LIFE, Access
from linkspan.web.agent_questions import AgentQuestions
from linkspan.web.listening import Place
from linkspan.web.server import PageServer

ENDS_WITHIN = 2.0
"""Seconds that open streams have to end."""


async def serve(
    place: Place,
    agent: str,
    others: Mapping[str, str],
    lab: str,
    *,
    opens_browser: bool,
    say: Callable[[str], None],
) -> None:
    """Serve the page of the agent at the socket ``agent`` until SIGINT, SIGTERM or SIGHUP.

    ``others`` are the sockets of other hosts' agents, by the hosts' names. ``say`` gets each link. Raises Invalid if
    nobody can listen there.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    async with page(place, agent, others, lab) as new_link:
        link = new_link()
        say(link)
        async with contextlib.AsyncExitStack() as stack:
            if opens_browser and browser.can_open():
                path = stack.enter_context(browser.leading_to(link))
                browser.open_file(path)
                loop.call_later(TOKEN_LIFE, path.unlink, True)
            if sys.stdin is not None and sys.stdin.isatty():
                loop.add_reader(sys.stdin, _on_enter, loop, lambda: say(new_link()))
                stack.callback(loop.remove_reader, sys.stdin)
            await stopped.wait()


@contextlib.asynccontextmanager
async def page(
    place: Place, agent: str, others: Mapping[str, str], lab: str
) -> AsyncIterator[Callable[[], str]]:
    """Serve the page within the block; give a function that makes a new link."""
    # The port is known only after it was bound, and the checks of the header Host need it.
    listener = _bound(place)
    listener.setblocking(False)
    port = listener.getsockname()[1]
    authorities = place.authorities(port)
    access = Access(place.scheme, authorities)
    agents = {name: AgentQuestions(path) for name, path in others.items()}
    server = PageServer(access, AgentQuestions(agent), agents, lab, sends=os.geteuid() == 0)
    # A stream ends when its viewer goes, and not with the next message.
    application = server.application()
    runner = http_server.runner(application, shutdown_timeout=ENDS_WITHIN, handler_cancellation=True)
    await runner.setup()
    handler = runner.server
    assert handler is not None
    taking = lasting("taking connections", lambda: server.connections.take(listener, handler, place.tls))
    try:
        yield lambda: f"{place.scheme}://{authorities[0]}/login?token={access.token()}"
    finally:
        await ended(taking)
        listener.close()
        await runner.cleanup()


def _bound(place: Place) -> socket.socket:
    """Return a socket that listens at the place."""
    family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
    try:
        return socket.create_server((place.address, place.port), family=family)
    except OSError as error:
        hint = "give --listen an address of this machine (`ip addr`)"
        if error.errno == errno.EADDRINUSE:
            hint = "`ss -ltnp` shows the other program; give --listen another port, or 0 for a free one"
        if error.errno == errno.EACCES:
            hint = "ports below 1024 are root's: give --listen another port"
        raise Invalid(f"--listen {place.address} port {place.port}: {reason(error)}", hint) from error


def _on_enter(loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
    """Take a line from the terminal; stop to listen to it if it ends, or is another program's now."""
    try:
        mine = os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
        line = sys.stdin.readline() if mine else ""
    except OSError:
        line = ""
    if line:
        then()
    else:
        loop.remove_reader(sys.stdin)
