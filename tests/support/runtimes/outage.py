"""The longest time for which a container's web server did not answer, as its host saw it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from support.runtimes.virtual_host import VirtualHost, stop

_WATCH = """
import select, socket, sys, time
last, worst = time.monotonic(), 0.0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    try:
        with socket.create_connection((sys.argv[1], 80), 0.1):
            now = time.monotonic()
            worst, last = max(worst, now - last), now
    except OSError:
        pass
print(worst, flush=True)
"""


@contextlib.contextmanager
def outage(host: VirtualHost, address: str) -> Iterator[list[float]]:
    """Watch port 80 of an address; the list has the longest time without an answer (seconds) afterwards."""
    watch = host.inside(sys.executable, "-c", _WATCH, address)
    process = subprocess.Popen(watch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    longest: list[float] = []
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield longest
        said, _ = process.communicate("\n", timeout=30)
        longest.append(float(said))
    finally:
        stop(process)
