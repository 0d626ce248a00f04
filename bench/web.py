#!/usr/bin/env python
"""Page benchmark: `linkspan web` in headless Chromium, for clusters whose agent is only its answers.

    sudo .venv/bin/python bench/web.py

The first cluster has 40 hosts with 2,000 containers, all of them in the graph. The second one has 1,000 hosts with
100,000 containers: the server sends the table in parts, and the graph has hosts only.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import report
from report import p, result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.polling import until  # the page's tests have the browser
from support.web import chromium
from support.web.answers import FakeAgent, answers, endpoint
from support.web.chromium import Browser

HOSTS, EACH = 40, 50
MANY_HOSTS, MANY_EACH = 1000, 100
SECONDS = 5.0
"""Of panning."""
NETWORKS = ("demo", "front", "back")

PAN = """
const [seconds, done] = arguments;
const graph = document.querySelector('.canvas')._cyreg.cy;
const begun = performance.now(); let frames = 0;
const step = (now) => {
  if (now - begun > seconds * 1000) return done(frames / (now - begun) * 1000);
  graph.panBy({x: Math.sin(now / 300) * 12, y: Math.cos(now / 300) * 8}); frames += 1;
  requestAnimationFrame(step);
};
requestAnimationFrame(step);
"""
DRAWN = "return document.querySelector('.canvas')?._cyreg?.cy.nodes().length ?? 0"
TYPE = """
const [text, done] = arguments;
const input = document.querySelector('input.search');
const begun = performance.now();
input.value = text; input.dispatchEvent(new Event('input', {bubbles: true}));
requestAnimationFrame(() => { const channel = new MessageChannel();
  channel.port1.onmessage = () => done(performance.now() - begun); channel.port2.postMessage(0); });
"""
CLICK = """
const done = arguments[1];
const row = document.querySelectorAll('button.row')[arguments[0]];
const begun = performance.now(); row.click();
requestAnimationFrame(() => { const channel = new MessageChannel();
  channel.port1.onmessage = () => done(performance.now() - begun); channel.port2.postMessage(0); });
"""


def measure(folder: Path, quick: bool) -> dict[str, report.Metric]:
    """Measure both clusters; return the metrics."""
    found: dict[str, report.Metric] = {}
    with chromium.namespace("view") as where:
        with _page(where, folder / "one", HOSTS, EACH) as page:
            report.progress(f"{HOSTS} hosts")
            until(lambda: page.run(DRAWN) > HOSTS * EACH, "all containers are in the graph")
            found |= _measured(page, quick)
        if not quick:
            with _page(where, folder / "two", MANY_HOSTS, MANY_EACH) as page:
                report.progress(f"{MANY_HOSTS} hosts")
                found |= _large(page)
    report.progress("")
    report.table(f"{HOSTS} hosts with {HOSTS * EACH} containers, unless it says something else", found)
    return found


def _measured(page: Browser, quick: bool) -> dict[str, report.Metric]:
    paint = page.run("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    frames = page.driver.execute_async_script(PAN, 1.0 if quick else SECONDS)
    words = ("c", "c1", "c12", "c1", "c", "") * (1 if quick else 5)
    typed = [page.driver.execute_async_script(TYPE, text) for text in words]
    clicks = [page.driver.execute_async_script(CLICK, number) for number in range(5 if quick else 20)]
    return {
        "first paint": result(paint / 1000, "s", "<= 1"),
        "frames a second while panning": result(frames, "frames", ">= 30"),
        "a letter in the search until the next frame, p95": result(p(typed, 95), "ms", "<= 50"),
        "a click on a row until the next frame, p95": result(p(clicks, 95), "ms", "<= 50"),
        "memory of the tab's scripts": result(_heap(page), "MB", "<= 150"),
    }


def _large(page: Browser) -> dict[str, report.Metric]:
    paint = page.run("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    searches = []
    for number in range(5):
        begun = time.monotonic()
        page.run(
            "const input = document.querySelector('input.search'); input.value = arguments[0];"
            "input.dispatchEvent(new Event('input', {bubbles: true}));",
            f"c{number}77-",
        )
        page.shows(f"c{number}77-", ".list")
        searches.append(time.monotonic() - begun)
    of = f"{MANY_HOSTS} hosts with {MANY_HOSTS * MANY_EACH} containers"
    return {
        f"{of}: first paint": result(paint / 1000, "s", "<= 1"),
        f"{of}: a search": result(statistics.median(searches), "s", "<= 2"),
        f"{of}: memory of the tab's scripts": result(_heap(page), "MB", "<= 150"),
    }


def _heap(page: Browser) -> float:
    page.devtools("HeapProfiler.collectGarbage", {})
    return float(page.run("return performance.memory.usedJSHeapSize")) / 1e6


@contextlib.contextmanager
def _page(where: str, folder: Path, hosts: int, each: int) -> Iterator[Browser]:
    """Give a browser at the page of an agent with these answers."""
    folder.mkdir()
    agent = FakeAgent(folder / "agent.sock")
    _fill(agent, hosts, each)
    served = chromium.page_process(where, "--socket", str(agent.path))
    with _serving(agent), served as link, chromium.browser(where) as page:
        page.size(1440, 900)
        page.driver.get(link())
        page.shows("c0-0", ".list")
        yield page


def _fill(agent: FakeAgent, hosts: int, each: int) -> None:
    one = answers().hosts[0]
    lease: dict[str, Any] = one["leases"][0]
    agent.answers.hosts[:] = [
        {
            **one,
            "id": f"id-{number}",
            "name": f"h{number}",
            "underlay": {"ifname": "eth0", "addresses": [f"192.0.{number // 250}.{number % 250}/16"]},
            "leases": [
                {**lease, "network": name, "prefixes": [f"10.{number // 250}.{number % 250}.0/24"]} for name in NETWORKS
            ],
        }
        for number in range(hosts)
    ]
    network = agent.answers.networks[0]
    agent.answers.networks[:] = [{**network, "name": name} for name in NETWORKS]
    agent.answers.status["agent"]["host"] = "h0"
    agent.answers.endpoints[:] = [
        endpoint(
            f"c{host}-{number}",
            f"h{host}",
            network=NETWORKS[number % len(NETWORKS)],
            addresses=[f"10.{host // 250}.{host % 250}.{number + 2}/32"],
        )
        for host in range(hosts)
        for number in range(each)
    ]


@contextlib.contextmanager
def _serving(agent: FakeAgent) -> Iterator[None]:
    """Serve the answers in a thread."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    ended = asyncio.Event()

    async def serve() -> None:
        async with agent.serving():
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


if __name__ == "__main__":
    report.run(measure, "the page in Chromium", "the smaller cluster only, fewer rounds: about 20 s")
