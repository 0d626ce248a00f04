"""The agent's process: settings in, ``ready`` out, and SIGTERM ends it in order.

It is a process of its own, started in the command line's place by exec: the command line's libraries would
stay in its memory for good, and so would the arenas that glibc makes for each thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from linkspan.agent.agent import Agent
from linkspan.api.app import Api
from linkspan.api.server import serving
from linkspan.api.startup import waiting
from linkspan.core import garbage
from linkspan.core.config import CONFIG_FILE, SETTINGS, SETTINGS_FILE, Config, process
from linkspan.core.process import served
from linkspan.runtimes import systemd


def main() -> None:
    """Run the agent with the settings in the environment; start again in its place if it asks for other settings."""
    garbage.collect_rarely()
    settings = msgspec.json.decode(os.environ.pop(SETTINGS), type=Config)
    file, following = os.environ.pop(SETTINGS_FILE, CONFIG_FILE), list[Config]()
    served(_run(settings, Path(file), following), settings.log_level)
    if following and not systemd.restarts():
        command, variables = process(following[-1], file)
        os.execve(command[0], command, os.environ | variables)  # noqa: S606 - no shell is meant


async def _run(settings: Config, file: Path, following: list[Config]) -> None:
    stop, ready = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def restart(changed: Config) -> None:
        following.append(changed)
        stop.set()

    agent = Agent(settings, _waiting, file, restart)
    serve, stopping = asyncio.create_task(_serve(agent, stop, ready)), asyncio.create_task(stop.wait())
    await asyncio.wait({serve, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.is_set():  # it waits for the store
        serve.cancel()
    stopping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serve


@contextlib.asynccontextmanager
async def _waiting(agent: Agent) -> AsyncIterator[None]:
    """Serve while a new agent waits for its store, perhaps for days: garbage is collected as usual by then."""
    garbage.collect_usually()
    async with waiting(agent):
        yield


async def _serve(agent: Agent, stop: asyncio.Event, ready: asyncio.Event) -> None:
    async with agent.running(), serving(agent, Api(agent).application):
        ready.set()
        print("ready", flush=True)
        systemd.notify("READY=1")
        garbage.collect_usually()
        watchdog = asyncio.create_task(_watchdog())
        await stop.wait()
        systemd.notify("STOPPING=1")
        watchdog.cancel()


async def _watchdog() -> None:
    """Notify systemd that the event loop runs, twice in each of its intervals (sd_watchdog_enabled(3))."""
    interval = systemd.watchdog_interval()
    while interval:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval / 2)


if __name__ == "__main__":
    main()
