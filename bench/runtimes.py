"""Runtimes benchmark: `ctr run`, `podman run` and `docker run` on a linkspan network, and on each one's own bridge.

Each engine is the real one, in a virtual host of its own. The two networks take turns within one run; a round
is one container on each, started, ended and removed. Then many containers, eight at a time, after which
nothing may be left, and dockerd's start with a container that is restarted always, while the agent starts,
too.

    sudo .venv/bin/python bench/runtimes.py [--quick] [--profile]

With --profile it measures containers on the linkspan network alone, and says what part of a command's time is for the
calls of the network plugin, what part of these the agent takes, and what is left for the engine.

Needs the packages that tests/runtimes need (scripts/packages-test).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import report
import timed_agent
from call_times import Executions, Part, Relay, Span, divided, medians, named
from report import Metric, p, progress, result

from linkspan.core.config import Config, process
from linkspan.runtimes.cni.runtime import USUAL
from linkspan.runtimes.podman.runtime import PLUGIN as PODMAN_PLUGIN

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.polling import until
from support.runtimes.containerd_engine import Containerd
from support.runtimes.docker_engine import IMAGE as DOCKER_IMAGE
from support.runtimes.docker_engine import PLUGIN as DOCKER_PLUGIN
from support.runtimes.docker_engine import Docker, handed_over
from support.runtimes.podman_engine import IMAGE as PODMAN_IMAGE
from support.runtimes.podman_engine import Podman
from support.runtimes.virtual_host import VirtualHost

POOL = "10.77.0.0/16"
AT_A_TIME = 8
OWN_CNI = {
    "cniVersion": "1.0.0",
    "name": "own",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "own0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "subnet": "10.252.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]},
        }
    ],
}
WARM_UPS = 2
"""Containers before those that count: they fill caches."""
Run = Callable[[str], object]


def timed(run: Run, name: str) -> float:
    """Return how many milliseconds a container took from its command to its end."""
    begun = time.perf_counter()
    run(name)
    return (time.perf_counter() - begun) * 1000


def compared(engine: str, ours: Run, own: Run, rounds: int, switch: Callable[[bool], object]) -> dict[str, list[float]]:
    """Time both in turn; ``switch`` makes the network ours or the engine's own, which is not timed."""
    found: dict[str, list[float]] = {"linkspan": [], "its own": []}
    for n in range(-WARM_UPS, rounds):
        progress(f"{engine}: round {n + 1} of {rounds}")
        pair = (("linkspan", ours), ("its own", own))
        for name, run in pair if n % 2 else reversed(pair):
            switch(name == "linkspan")
            took = timed(run, f"b{n + WARM_UPS}{name[0]}")
            if n >= 0:
                found[name].append(took)
    progress("")
    return found


def crowd(engine: str, host: VirtualHost, run: Run, count: int) -> float:
    """Start and remove so many, eight at a time, and return how many a second; nothing may be left."""
    progress(f"{engine}: {count} containers, {AT_A_TIME} at a time")
    begun = time.perf_counter()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(run, (f"m{n}" for n in range(count))))
    took = time.perf_counter() - begun
    progress("")
    links = json.loads(host.run("ip", "-json", "link", "show", "type", "veth").stdout)
    left = host.linkspan("endpoint", "list"), [link["ifname"] for link in links if link]
    if any(left) or not host.linkspan("address", "check")["ok"]:
        sys.exit(f"error: {engine} has left something: {left}, {host.linkspan('address', 'check')}")
    return count / took


# ------------------------------------------------------------------ engines


def in_containerd(host: VirtualHost) -> Run:
    """Start containerd; return what runs a container on the first network by name, which is ours."""
    host.linkspan("install", "cni", "--network", "demo")
    host.run("sh", "-c", "cp /usr/lib/cni/* /opt/cni/bin/")
    engine = Containerd(host)
    return lambda name: engine.run(name, "true")


def in_podman(host: VirtualHost) -> Callable[[str], Run]:
    """Set up Podman with our network and its own; return what runs a container on a network."""
    host.run("mkdir", "-p", "/usr/local/libexec")
    host.run("mount", "-t", "tmpfs", "tmpfs", "/usr/local/libexec")
    host.linkspan("install", "podman")
    engine = Podman(host)
    engine.run("network create -d linkspan --ipam-driver none --opt network=demo demo")
    engine.run("network create --subnet 10.252.0.0/16 own")
    return lambda network: lambda name: engine.run(
        f"run --rm --name {name} --network {network} {PODMAN_IMAGE} true"
    )


def in_docker(engine: Docker) -> Callable[[str], Run]:
    """Start dockerd with our network and a user's own bridge; return what runs a container on a network."""
    engine.start()
    engine.run("network create -d linkspan --ipam-driver linkspan -o network=demo demo")
    engine.run("network create --subnet 10.252.0.0/16 own")
    return lambda network: lambda name: engine.run(
        f"run --rm --name {name} --network {network} {DOCKER_IMAGE} true"
    )


# ------------------------------------------------------------------ beside their own bridges


def containerd(host: VirtualHost, rounds: int, count: int) -> tuple[dict[str, list[float]], float]:
    """Measure containerd's ctr, which takes the first configuration by name."""
    run, conf = in_containerd(host), host.folder / "own.conflist"
    conf.write_text(json.dumps(OWN_CNI))

    def switch(ours: bool) -> object:
        first = "/etc/cni/net.d/00-own.conflist"
        return host.run("rm", "-f", first) if ours else host.run("cp", conf, first)

    found = compared("ctr", run, run, rounds, switch)
    switch(True)
    return found, crowd("ctr", host, run, count)


def podman(host: VirtualHost, rounds: int, count: int) -> tuple[dict[str, list[float]], float]:
    """Measure Podman; its own bridge is netavark's."""
    on = in_podman(host)
    return compared("podman", on("demo"), on("own"), rounds, bool), crowd("podman", host, on("demo"), count)


def docker(host: VirtualHost, engine: Docker, rounds: int, count: int) -> tuple[dict[str, list[float]], float]:
    """Measure Docker; its own bridge is one that a user made, as ours is."""
    on = in_docker(engine)
    return compared("docker", on("demo"), on("own"), rounds, bool), crowd("docker", host, on("demo"), count)


def dockerd_start(host: VirtualHost, engine: Docker, rounds: int) -> tuple[float, float]:
    """Return seconds until dockerd answers, with a container on our network while the agent starts, and on its own."""
    times: dict[str, list[float]] = {"demo": [], "own": []}
    del host.settings["docker_socket"]
    for _ in range(rounds):
        for network in times:
            progress(f"dockerd's start with a container on {network}")
            engine.container("kept", f"--restart always --network {network}")
            engine.stop()
            host.stop_agent()
            go = host.folder / "go"
            go.unlink(missing_ok=True)
            host.agent = host.start(*handed_over(host, go), log="agent.log")
            assert host.agent.stdout is not None
            host.agent.stdout.readline()
            begun = time.perf_counter()
            go.touch()
            engine.launch()
            until(engine.answers, "dockerd answers", 120)
            times[network].append(time.perf_counter() - begun)
            host.agent.stdout.readline()
            until(lambda: engine.run("ps -q"), "the container runs again", 60)
            engine.remove_all()
    progress("")
    return statistics.median(times["demo"]), statistics.median(times["own"])


def find_linkspan() -> None:
    """Let hosts find the program beside this interpreter."""
    script = Path(sys.executable).parent
    if (script / "linkspan").exists():
        os.environ["PATH"] = f"{script}:{os.environ['PATH']}"


def measure(folder: Path, quick: bool) -> dict[str, Metric]:
    """Run each engine, print the tables, and return the metrics."""
    find_linkspan()
    rounds, count = (4, 16) if quick else (20, 100)
    metrics: dict[str, Metric] = {}
    print("| runtime | network | p50 | p95 | containers a second, 8 at a time |\n|---|---|---|---|---|")
    for name in ("ctr", "podman", "docker"):
        (folder / name).mkdir()
        host = VirtualHost(f"lkb-{name}", folder / name)
        try:
            engine = Docker(host) if name == "docker" else None
            host.start_agent()
            host.linkspan("network", "create", "demo", "--pool", POOL)
            if engine:
                times, rate = docker(host, engine, rounds, count)
                ours, own = dockerd_start(host, engine, 1 if quick else 5)
                metrics["dockerd's start: beyond that with its own network"] = result(ours - own, "s", "<= 2")
            else:
                times, rate = {"ctr": containerd, "podman": podman}[name](host, rounds, count)
        finally:
            host.close()
        for network, one in times.items():
            last = f"{rate:.0f}" if network == "linkspan" else ""
            print(f"| {name} run | {network} | {statistics.median(one):.0f} ms | {p(one, 95):.0f} ms | {last} |")
        ratio = statistics.median(times["linkspan"]) / statistics.median(times["its own"])
        metrics[f"{name} run: linkspan / its own bridge, p50"] = result(ratio, "ratio", "<= 1")
    print()
    report.table("target", metrics)
    return metrics


# ------------------------------------------------------------------ the profile


class TimedHost(VirtualHost):
    """A virtual host whose agent notes how long it takes for each call (`bench/timed_agent.py`)."""

    def agent_command(self) -> list[str]:
        """Return the command that starts this agent, with its settings."""
        settings = Config(state_dir=str(self.folder / "state"), socket=str(self.socket), **self.settings)  # type: ignore[arg-type]
        _, variables = process(settings)
        variables[timed_agent.FILE] = str(self.folder / "calls.json")
        program = str(Path(__file__).with_name("timed_agent.py"))
        return ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, program]

    def seen(self, path: str) -> Path:
        """Return the path by which others see a file of the host."""
        return Path(f"/proc/{self.keeper.pid}/root{path}")

    def agent_calls(self) -> list[Span]:
        """End the agent, and return its calls."""
        self.stop_agent()
        found = timed_agent.calls(self.folder / "calls.json")
        return [Span(call["verb"], call["begun"], call["ended"]) for call in found]


def set_up(name: str, host: TimedHost) -> tuple[Run, Executions | Relay]:
    """Start the agent and an engine; return what runs a container, and what watches the calls of its network plugin."""
    engine = Docker(host) if name == "docker" else None
    if engine:
        host.settings["docker_socket"] = str(host.folder / "run" / "plugin.sock")
    host.start_agent()
    host.linkspan("network", "create", "demo", "--pool", POOL)
    if engine:
        relay = Relay(host.seen(DOCKER_PLUGIN), Path(host.settings["docker_socket"]))
        return in_docker(engine)("demo"), relay
    run = in_containerd(host) if name == "ctr" else in_podman(host)("demo")
    return run, Executions(host.seen(f"{USUAL}/linkspan" if name == "ctr" else PODMAN_PLUGIN))


def spans(name: str, host: TimedHost, rounds: int) -> list[dict[str, Part]]:
    """Run so many containers, one after the other, and return how the time of each is divided."""
    run, watcher = set_up(name, host)
    runs = []
    with watcher.watched() as calls:
        for n in range(rounds + WARM_UPS):
            progress(f"{name}: container {n + 1} of {rounds + WARM_UPS}")
            begun = time.perf_counter_ns()
            run(f"p{n}")
            runs.append(Span(name, begun, time.perf_counter_ns()))
    progress("")
    agent = host.agent_calls()
    calls = named(calls, agent)
    return [divided(one, calls, agent) for one in runs[WARM_UPS:]]


def profile(folder: Path, quick: bool) -> dict[str, Metric]:
    """Let each engine run containers on our network, and tell where the time goes."""
    find_linkspan()
    rounds, metrics = 3 if quick else 10, dict[str, Metric]()
    for name in ("ctr", "podman", "docker"):
        (folder / name).mkdir()
        host = TimedHost(f"lkb-{name}", folder / name)
        try:
            found = medians(spans(name, host, rounds))
        finally:
            host.close()
        print(f"\n| {name} run, median of {rounds} | times | ms | of these in the agent |\n|---|---|---|---|")
        for what, (times, spent, agent) in found.items():
            print(f"| {what} | {times:.0f} | {spent:.1f} | {f'{agent:.1f}' if agent else ''} |")
            metrics[f"{name} run: {what}"] = result(spent, "ms")
    return metrics


if __name__ == "__main__":
    report.run(
        measure,
        __doc__ or "",
        "a few rounds",
        {"profile": (profile, "instead: what part of a command's time is for its network, and what for the engine")},
    )
