"""Clients of agents for the scale benchmark, each a process of its own: this is no program.

The simulated hosts keep an interpreter busy. A client in the same one would measure how long it waits for that.

    agent_client.py attach ROUNDS SOCKET NETWORK NETNS [SOCKET NETWORK NETNS ...]
    agent_client.py ask SOCKET PATH

The first attaches a namespace and detaches it in turn at each of the agents, and prints the milliseconds of each attach
as JSON: a list for each agent. The second asks an agent for PATH every 10 ms until its standard input ends, and prints
the milliseconds of the longest answer.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import sys
import time

from linkspan.api.client import Client
from linkspan.kernel.io.namespaces import open_namespace

EVERY = 0.01
"""Seconds between an answer and the next question."""


def attached(socket: str, network: str, path: str) -> float:
    """Attach a namespace and detach it again; return the milliseconds of the attach."""
    client, fd = Client(socket), open_namespace(path)
    try:
        body = {"id": "new", "name": "new", "network": network, "namespace_fd": fd, "namespace_path": path}
        begun = time.perf_counter()
        client.call("POST", "/v1/attach", body)
        took = (time.perf_counter() - begun) * 1e3
    finally:
        os.close(fd)
    client.call("POST", "/v1/detach", {"id": "new"})
    return took


def attach(rounds: int, *words: str) -> list[list[float]]:
    """Attach in turn at each agent, so many times after a first one that warms up."""
    ways = [words[at : at + 3] for at in range(0, len(words), 3)]
    found = [[attached(*way) for way in ways] for _ in range(rounds + 1)]
    return [list(times) for times in zip(*itertools.islice(found, 1, None), strict=True)]


def longest(socket: str, path: str) -> float:
    """Ask until the standard input ends; return the milliseconds of the longest answer."""
    client, most = Client(socket), 0.0
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        begun = time.perf_counter()
        client.call("GET", path)
        most = max(most, time.perf_counter() - begun)
    return most * 1e3


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    print(json.dumps(attach(int(rest[0]), *rest[1:]) if what == "attach" else longest(*rest)))
