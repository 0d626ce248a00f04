#!/usr/bin/env python
"""Page benchmark: `linkspan web` in headless Chromium, and what viewers cost an agent.

    sudo .venv/bin/python bench/web.py

Chromium sees clusters whose agent is only its answers. The first one has 40 hosts with 2,000 containers, all of them in
the graph. The second one has 1,000 hosts with 100,000 containers: the server sends the table in parts, and the graph
has hosts only. The agent with five viewers is a real one, on a real etcd with simulated hosts (`simulated_hosts.py`).
"""

from __future__ import annotations

import contextlib
import http.client
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import report
import simulated_hosts
from report import p, result
from simulated_hosts import SimulatedHosts

from linkspan.lab import agents, build, processes, sockets, topology
from linkspan.lab.record import Lab

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.agent.cpu_time import threads
from support.polling import until  # the page's tests have the browser
from support.web import chromium
from support.web.answers import FakeAgent, answers, endpoint
from support.web.chromium import Browser

HOSTS, EACH = 40, 50
MANY_HOSTS, MANY_EACH = 1000, 100
SECONDS = 5.0
"""Of panning."""
VIEWERS = 5
LOOK, SHORT_LOOK = 60.0, 10.0
"""Seconds in which an agent's CPU is measured."""
LAB = "lkpweb"
NETWORKS = ("demo", "front", "back")

SHOWN = """
const look = () => {
  if (document.querySelector('.list tbody tr')) window.shownAt = performance.now();
  else requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""
"""Notes when the table has rows. It runs before the page's own scripts."""
PAINTED = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
PAN = """
const [seconds, done] = arguments;
const canvas = document.querySelector('.canvas'), own = canvas.getBoundingClientRect();
const middle = {x: own.x + own.width / 2, y: own.y + own.height / 2};
const mouse = (type, x, y) => canvas.firstChild.dispatchEvent(new MouseEvent(type, {
  bubbles: true, cancelable: true, button: 0, buttons: 1, clientX: middle.x + x, clientY: middle.y + y}));
mouse('mousedown', 0, 0);
const begun = performance.now(); let frames = 0;
const step = (now) => {
  if (now - begun > seconds * 1000) { mouse('mouseup', 0, 0); done(frames / (now - begun) * 1000); return; }
  mouse('mousemove', Math.sin(now / 300) * 120, Math.cos(now / 400) * 80); frames += 1;
  requestAnimationFrame(step);
};
requestAnimationFrame(step);
"""
"""Drags the picture about as a hand does, a step in each frame."""
DRAWN = "return document.querySelector('.canvas')?._cyreg?.cy.nodes().length ?? 0"
_NEXT_FRAME = """
const frame = (then) => requestAnimationFrame(() => {
  const channel = new MessageChannel();
  channel.port1.onmessage = then; channel.port2.postMessage(0);
});
const quiet = (then) => requestIdleCallback(() => frame(then), {timeout: 2000});
"""
TYPE = (
    _NEXT_FRAME
    + """
const [text, done] = arguments;
const input = document.querySelector('input.search');
quiet(() => {
  const begun = performance.now();
  input.value = text; input.dispatchEvent(new Event('input', {bubbles: true}));
  frame(() => done(performance.now() - begun));
});
"""
)
CLICK = (
    _NEXT_FRAME
    + """
const [number, done] = arguments;
const row = document.querySelectorAll('button.row')[number];
const key = `c:${row.closest('tr').dataset.key}`;
quiet(() => {
  const begun = performance.now(); let listed = 0;
  row.click();
  frame(() => { listed = performance.now() - begun; });
  const graph = document.querySelector('.canvas')._cyreg.cy;
  const look = () => graph.$('.chosen, .end').some((one) => one.id() === key)
    ? frame(() => done([listed, performance.now() - begun])) : requestAnimationFrame(look);
  look();
});
"""
)
"""Give milliseconds from an input until the next frame has its effect; of a click, until the graph has it, too.

An input comes when the page has drawn what the last one changed: a hand is not quicker."""


def measure(folder: Path, quick: bool) -> dict[str, report.Metric]:
    """Measure both clusters, and an agent with viewers; return the metrics."""
    found: dict[str, report.Metric] = {}
    with chromium.namespace("view") as where:
        with _page(where, folder / "one", HOSTS, EACH) as page:
            report.progress(f"{HOSTS} hosts")
            found |= _measured(page, quick)
        if not quick:
            with _page(where, folder / "two", MANY_HOSTS, MANY_EACH) as page:
                report.progress(f"{MANY_HOSTS} hosts")
                found |= _large(page)
        found |= _agent(where, SHORT_LOOK if quick else LOOK)
    report.progress("")
    report.table(f"{HOSTS} hosts with {HOSTS * EACH} containers, unless it says something else", found)
    return found


def _agent(where: str, seconds: float) -> dict[str, report.Metric]:
    """Measure a real agent among simulated hosts, without viewers and with them."""
    report.progress("an agent among simulated hosts comes")
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=1, store="etcd", containers_per_host=1))
    try:
        build.up(lab)
        client = agents.client(lab, lab.hosts[0].name)
        client.call("PATCH", "/v1/hosts", {"networks": lab.network})  # and it has no part in those of the others
        for name in simulated_hosts.NETWORKS:
            pool = str(simulated_hosts.pool(name))
            client.call("POST", "/v1/networks", {"name": name, "pools": [pool], "backend": "vxlan"})
        hosts = SimulatedHosts(lab.switch, topology.store_url(lab, lab.hosts[0]), lab.hosts[0].name)
        try:
            hosts.run(hosts.grow(HOSTS - 1))
            time.sleep(5)  # until the agent has taken them in
            report.progress(f"the agent without viewers: {seconds:.0f} s")
            memory, alone = _memory(_pid(lab)), _share(lab, seconds)
            page = chromium.page_process(where, "--socket", lab.socket(lab.hosts[0].name))
            with page as link, _viewers(where, link()):
                time.sleep(5)  # the first reading is of all records
                report.progress(f"the agent with {VIEWERS} viewers: {seconds:.0f} s")
                watched, more = _share(lab, seconds), _memory(_pid(lab)) - memory
        finally:
            hosts.close()
    finally:
        build.down(LAB)
    of = f"an agent among {HOSTS} hosts"
    return {
        f"{of}: CPU for {VIEWERS} viewers": result(100 * (watched - alone), "%", "<= 1"),
        f"{of}: more memory with {VIEWERS} viewers": result(more, "MB", "<= 10"),
    }


def _pid(lab: Lab) -> int:
    (found,) = processes.agents(lab.folder, lab.hosts[0].name)
    return found


def _share(lab: Lab, seconds: float) -> float:
    """Return the share of a core that the agent uses."""
    pid = _pid(lab)
    before = threads(pid)
    time.sleep(seconds)
    return sum(total - before.get(name, 0.0) for name, total in threads(pid).items()) / seconds


def _memory(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


@contextlib.contextmanager
def _viewers(where: str, link: str) -> Iterator[None]:
    """Read VIEWERS streams of the page within the block, as scripts do."""
    address, _, path = link.removeprefix("http://").partition("/")
    over = threading.Event()

    def read(cookie: str) -> None:
        with sockets.inside(where):
            connection = http.client.HTTPConnection(address, timeout=60)
            connection.request("GET", "/api/stream", headers={"Cookie": cookie})
        answer = connection.getresponse()
        with contextlib.closing(connection):
            while not over.is_set() and answer.read1(1 << 16):
                pass

    with sockets.inside(where):
        first = http.client.HTTPConnection(address, timeout=60)
        first.request("GET", f"/{path}")
    cookie = str(first.getresponse().headers["Set-Cookie"]).partition(";")[0]
    first.close()
    readers = [threading.Thread(target=read, args=(cookie,), daemon=True) for _ in range(VIEWERS)]
    for one in readers:
        one.start()
    try:
        yield
    finally:
        over.set()  # each notices it with the next message, or when the server ends


def _measured(page: Browser, quick: bool) -> dict[str, report.Metric]:
    found = _loads(page, 2 if quick else 5)
    until(lambda: page.run(DRAWN) >= HOSTS, "all hosts are in the graph")
    report.progress("panning")
    frames = page.driver.execute_async_script(PAN, 1.0 if quick else SECONDS)
    page.devtools("Performance.enable", {"timeDomain": "threadTicks"})
    before = _worked(page)
    page.driver.execute_async_script(PAN, 1.0 if quick else SECONDS)
    by_panning = (_worked(page) - before) / (1.0 if quick else SECONDS)
    report.progress("typing and clicking")
    words = ("c", "c1", "c12", "c1", "c", "") * (1 if quick else 5)
    before = _worked(page)
    typed = [page.driver.execute_async_script(TYPE, text) for text in words]
    page.shows("c0-0", ".list")
    by_typing, before = _worked(page) - before, _worked(page)
    clicks = [page.driver.execute_async_script(CLICK, number) for number in range(6 if quick else 30)]
    by_clicks = _worked(page) - before
    listed, drawn = zip(*clicks, strict=True)
    return found | {
        "frames a second while panning": result(frames, "frames", ">= 30"),
        "a letter in the search until the next frame, p95": result(p(typed, 95), "ms", "<= 50"),
        "a click on a row until the next frame, p95": result(p(list(listed), 95), "ms", "<= 50"),
        "a click on a row until the graph has it, p95": result(p(list(drawn), 95), "ms"),
        "CPU time of the page's thread for a letter": result(by_typing / len(typed) * 1000, "ms"),
        "CPU time of the page's thread for a click": result(by_clicks / len(clicks) * 1000, "ms"),
        "share of a core for the page's thread while panning": result(100 * by_panning, "%"),
        "memory of the tab's scripts": result(_heap(page), "MB", "<= 150"),
    }


def _loads(page: Browser, rounds: int, of: str = "") -> dict[str, report.Metric]:
    """Load the page several times, with nothing in the browser's cache; return the median times."""
    page.devtools("Network.enable", {})
    page.devtools("Network.setCacheDisabled", {"cacheDisabled": True})
    page.devtools("Page.addScriptToEvaluateOnNewDocument", {"source": SHOWN})
    paints, shown = [], []
    for number in range(rounds):
        report.progress(f"{of}load {number + 1} of {rounds}")
        page.driver.refresh()
        until(lambda: page.run("return window.shownAt"), "the table is there")
        until(lambda: page.run(PAINTED) is not None, "the first paint is noted")
        paints.append(page.run(PAINTED))
        shown.append(page.run("return window.shownAt"))
    return {
        f"{of}first paint": result(statistics.median(paints) / 1000, "s", "<= 1"),
        f"{of}until the table has rows": result(statistics.median(shown) / 1000, "s"),
    }


def _worked(page: Browser) -> float:
    """Return the seconds of CPU time of the page's thread so far: a busy machine does not change them."""
    found = page.devtools("Performance.getMetrics", {})["metrics"]
    return float(next(one["value"] for one in found if one["name"] == "TaskDuration"))


def _large(page: Browser) -> dict[str, report.Metric]:
    of = f"{MANY_HOSTS} hosts with {MANY_HOSTS * MANY_EACH} containers: "
    found = _loads(page, 3, of)
    searches = []
    for number in range(5):
        report.progress(f"{of}search {number + 1}")
        begun = time.monotonic()
        page.run(
            "const input = document.querySelector('input.search'); input.value = arguments[0];"
            "input.dispatchEvent(new Event('input', {bubbles: true}));",
            f"c{number + 1}77-",
        )
        page.shows(f"c{number + 1}77-0", ".list")
        searches.append(time.monotonic() - begun)
    return found | {
        f"{of}a search": result(statistics.median(searches), "s", "<= 2"),
        f"{of}memory of the tab's scripts": result(_heap(page), "MB", "<= 150"),
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
    with agent.in_thread(), served as link, chromium.browser(where) as page:
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
    agent.more["trace"] = _trace()
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


def _trace() -> dict[str, Any]:
    """Return a trace between two containers of h0."""
    hop = {"host": "h0", "device": "eth0", "port": "", "detail": "", "headers": ["eth"], "mtu": 1450, "seen": None}
    hops = [
        {**hop, "namespace": namespace, "action": action}
        for namespace, action in (("c0-0", "sent"), ("host", "routed"), ("c0-1", "delivered"))
    ]
    return {
        "verdict": "reachable", "reachable": True, "path_mtu": 1450, "hops": hops, "reply_hops": hops[::-1],
        "broken_at": "", "reason": "", "unknown": [],
    }  # fmt: skip


if __name__ == "__main__":
    report.run(measure, "the page in Chromium", "the smaller cluster only, fewer rounds: about 20 s")
