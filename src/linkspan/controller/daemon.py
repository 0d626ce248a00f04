"""The controller's process: settings in, ``ready`` out, and SIGTERM ends it in order; what it has put stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from aiohttp import web

from linkspan.controller.controller import Controller
from linkspan.controller.settings import ENVIRONMENT, Settings
from linkspan.controller.telling import Telling
from linkspan.daemon import served
from linkspan.errors import Invalid
from linkspan.locks import state_folder
from linkspan.runtimes import systemd
from linkspan.serving import listening, on_socket


def main() -> None:
    """Run the controller with the settings in the environment."""
    settings = msgspec.json.decode(os.environ.pop(ENVIRONMENT), type=Settings)
    served(_run(settings), settings.log_level)


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    name = settings.name or f"{socket.gethostname()}:{os.getpid()}"
    with state_folder(Path(settings.state_dir), "controller"):
        await _serve(Controller(settings, name), settings, stop)


async def _serve(controller: Controller, settings: Settings, stop: asyncio.Event) -> None:
    await controller.start()
    path = Path(settings.socket)
    try:
        async with listening(Telling(controller).application()) as runner, _metrics(controller):
            await on_socket(runner, path)
            print("ready", flush=True)
            systemd.notify("READY=1")
            await stop.wait()
            systemd.notify("STOPPING=1")
        path.unlink(missing_ok=True)
    finally:
        await controller.stop()


@contextlib.asynccontextmanager
async def _metrics(controller: Controller) -> AsyncIterator[None]:
    text = controller.settings.metrics
    if not text:
        yield
        return
    host, _, port = text.rpartition(":")
    app = web.Application()
    app.add_routes([web.get("/metrics", Telling(controller).metrics)])
    async with listening(app) as runner:
        try:
            await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
        except (OSError, ValueError) as error:
            raise Invalid(f"metrics {text}: {error}", "write ADDRESS:PORT, 127.0.0.1:9643") from error
        yield


if __name__ == "__main__":
    main()
