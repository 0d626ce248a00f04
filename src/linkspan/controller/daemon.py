"""Process of the controller: settings in, ``ready`` out, and SIGTERM ends it in order; its flows and routes stay."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import msgspec

from linkspan.agent.locks import state_folder
from linkspan.api.sockets import listening, metrics_at, on_socket
from linkspan.controller.api import StatusRoutes
from linkspan.controller.controller import Controller
from linkspan.controller.settings import ENVIRONMENT, Settings
from linkspan.core.process import served
from linkspan.runtimes import systemd


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
        telling = StatusRoutes(controller)
        async with (
            listening(telling.application()) as runner,
            metrics_at(settings.metrics, telling.metrics),
            on_socket(runner, path),
        ):
            print("ready", flush=True)
            systemd.notify("READY=1")
            await stop.wait()
            systemd.notify("STOPPING=1")
    finally:
        await controller.stop()



if __name__ == "__main__":
    main()
