"""Attach benchmark: linkspan's CNI plugin beside Debian's reference plugins.

Every plugin is started in the same way (posix_spawn), in turn within one run, each in a host namespace of its
own; a round is one ADD and one DEL by each. The whole program runs in network and mount namespaces of its
own, so that nothing of it can stay on the machine, however it ends.

    sudo .venv/bin/python bench/attach.py [--quick] [--profile]

With --profile it measures linkspan alone, and says where the agent spends the time of an ADD and of a DEL.

Needs the packages containernetworking-plugins and iptables, and a C compiler for the C shim.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report
import timed_agent
from report import Metric, p, progress, result

from linkspan.cli.address import NOT_WELL
from linkspan.core.config import Config, process
from linkspan.shim import build

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.agent.cpu_time import measured

CLONE_NEWNET = 0x40000000  # linux/sched.h
MS_BIND = 4096  # linux/mount.h
REFERENCE = Path("/usr/lib/cni")
NETWORK = "bench"
AT_A_TIME = 16
HELD = 200
LINKSPAN_C, LINKSPAN_PY, PLAIN, MASQ = "linkspan (C)", "linkspan (Python)", "reference", "reference, ipMasq"
TARGETS = {PLAIN: ("<= 0.25", "<= 0.06", ">= 4"), MASQ: ("<= 0.1", "<= 0.03", ">= 9")}
"""Of the C shim beside a reference: an ADD, a DEL, and ADDs a second at a time."""

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


# ------------------------------------------------------------------ namespaces


class Namespace:
    """A network namespace with a path, as runtimes keep them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            _checked(_libc.unshare(CLONE_NEWNET), "make a network namespace")
            source, target = b"/proc/self/ns/net", str(path).encode()
            _checked(_libc.mount(source, target, b"none", MS_BIND, None), f"keep it at {path}")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        finally:
            _checked(_libc.setns(home, CLONE_NEWNET), "go back")
            os.close(home)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in it: what is started now lives in there."""
        home, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(self.path, os.O_RDONLY)
        try:
            _checked(_libc.setns(there, CLONE_NEWNET), f"enter {self.path}")
            yield
        finally:
            _checked(_libc.setns(home, CLONE_NEWNET), "go back")
            os.close(home)
            os.close(there)


# ------------------------------------------------------------------ plugins


@dataclass
class Plugin:
    """A CNI plugin in its host namespace, with its configuration and its containers' namespaces."""

    name: str
    argv: list[str]
    host: Namespace
    config: dict[str, Any]
    folder: Path
    containers: list[Namespace]
    add: list[float] = field(default_factory=list)
    delete: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prefix = self.name.replace(" ", "").translate(str.maketrans("(),", "---"))
        self.stdin = self.folder / f"{self.prefix}.json"
        self.output = self.folder / f"{self.prefix}.out"
        self.stdin.write_text(json.dumps(self.config))

    def spawn(self, command: str, number: int) -> int:
        """Start the plugin for container ``number``, as a runtime does; returns the pid."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"{self.prefix}{number}",
            "CNI_NETNS": str(self.containers[number].path),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(REFERENCE),
            "PATH": os.environ["PATH"],
        }
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, str(self.stdin), os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self.output), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        return os.posix_spawn(self.argv[0], self.argv, environment, file_actions=actions)

    def ended(self, status: int, what: str) -> None:
        """Stop the benchmark where a call has failed: a wrong answer is not measured."""
        if os.waitstatus_to_exitcode(status) != 0:
            said = self.output.read_text(errors="replace")[-2000:]
            sys.exit(f"error: {self.name}: {what} failed: {said}")

    def timed(self, command: str, number: int) -> float:
        """Run one call and return its milliseconds, from before its start to after its end."""
        self.output.write_bytes(b"")
        started = time.perf_counter_ns()
        _, status = os.waitpid(self.spawn(command, number), 0)
        took = (time.perf_counter_ns() - started) / 1e6
        self.ended(status, command)
        return took

    def many(self, command: str, numbers: range, at_a_time: int = AT_A_TIME) -> float:
        """Run a call for each container, some at a time, and return how many a second were done."""
        self.output.write_bytes(b"")
        running: set[int] = set()
        started = time.perf_counter()
        for number in numbers:
            if len(running) == at_a_time:
                self._reap(running, command)
            running.add(self.spawn(command, number))
        while running:
            self._reap(running, command)
        return len(numbers) / (time.perf_counter() - started)

    def _reap(self, running: set[int], command: str) -> None:
        pid, status = os.waitpid(-1, 0)
        if pid in running:
            running.discard(pid)
            self.ended(status, command)

    def prove(self) -> None:
        """Attach one container and let it ping its gateway, so that what is measured is known to work."""
        with self.host.entered():
            self.timed("ADD", 0)
        result = json.loads(self.output.read_text())
        gateway = next(ip["gateway"] for ip in result["ips"] if "gateway" in ip)
        with self.containers[0].entered():
            done = subprocess.run(["ping", "-c", "1", "-W", "2", gateway], capture_output=True, text=True, check=False)
        with self.host.entered():
            self.timed("DEL", 0)
        if done.returncode:
            sys.exit(f"error: {self.name}: the container does not reach its gateway {gateway}: {done.stdout}")


class Agent:
    """A linkspan agent in a host namespace of its own."""

    def __init__(self, host: Namespace, folder: Path, *, timed: bool = False) -> None:
        """Start it; if ``timed``, it notes in the file ``steps`` how long each step takes (`bench/timed_agent.py`)."""
        self.socket = folder / "agent.sock"
        self.steps = folder / "steps.json"
        self.log = folder / "agent.log"
        program = shutil.which("linkspan", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if program is None:
            sys.exit("error: no linkspan here: run scripts/test once, then .venv/bin/python bench/attach.py")
        self.program = program
        command, variables = process(Config(state_dir=str(folder / "state"), socket=str(self.socket)))
        if timed:
            command = [sys.executable, str(Path(__file__).with_name("timed_agent.py"))]
            variables[timed_agent.FILE] = str(self.steps)
        with host.entered(), self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != "ready":
            sys.exit(f"error: the agent did not start: {self.log.read_text()}")

    def call(self, *argv: str) -> None:
        """Run a linkspan command."""
        subprocess.run([self.program, *argv, "--socket", str(self.socket)], check=True, stdout=subprocess.DEVNULL)

    def status(self, count: int) -> list[float]:
        """Return the milliseconds that `linkspan status` takes, from its start to its end, ``count`` times."""
        argv, times = [self.program, "status", "--socket", str(self.socket)], []
        for _ in range(count):
            started = time.perf_counter_ns()
            done = subprocess.run(argv, check=False, stdout=subprocess.DEVNULL)
            times.append((time.perf_counter_ns() - started) / 1e6)
            if done.returncode not in (0, NOT_WELL):
                sys.exit(f"error: `linkspan status` failed: {self.log.read_text()}")
        return times

    def resident(self) -> float:
        """Return the agent's resident memory in MB (VmRSS of proc_pid_status(5))."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def cpu(self, seconds: float) -> float:
        """Return the percentage of one core that the agent uses in this time."""
        return measured(self.process, seconds).share * 100

    def stop(self) -> None:
        """Delete the network, whose DNS server would outlive the agent, and end the agent, as systemd would."""
        try:
            self.call("network", "delete", NETWORK, "--force")
            time.sleep(1)  # a server that was about to start has ended by then, too
        finally:
            self.process.terminate()
            self.process.wait(30)


def shims(folder: Path) -> dict[str, list[str]]:
    """Return how to start linkspan's plugin, by name: the C shim where it can be built, and its Python twin."""
    python, compiled = folder / "linkspan-python", folder / "linkspan-c"
    python.write_bytes(build.script(sys.executable))
    python.chmod(0o755)
    found = {LINKSPAN_PY: [str(python)]}
    if build.build(compiled):
        found[LINKSPAN_C] = [str(compiled)]
    return found


def reference(name: str, masquerade: bool, folder: Path, containers: list[Namespace]) -> Plugin:
    """Return Debian's bridge plugin with host-local, in a host namespace of its own."""
    ipam = {"type": "host-local", "subnet": "10.88.0.0/16", "dataDir": str(folder / f"addresses-{masquerade}")}
    config = {"cniVersion": "1.0.0", "name": NETWORK, "type": "bridge", "bridge": "lkpbr0", "isGateway": True}
    return Plugin(
        name,
        [str(REFERENCE / "bridge")],
        Namespace(folder / f"reference-{masquerade}"),
        {**config, "hairpinMode": True, "ipMasq": masquerade, "ipam": ipam},
        folder,
        containers,
    )


# ------------------------------------------------------------------ measuring


def rounds(plugins: list[Plugin], count: int) -> None:
    """Let each plugin in turn do one ADD and one DEL, ``count`` times; the first round warms up."""
    for number in range(count + 1):
        for plugin in plugins:
            with plugin.host.entered():
                add = plugin.timed("ADD", number % len(plugin.containers))
                delete = plugin.timed("DEL", number % len(plugin.containers))
            if number:
                plugin.add.append(add)
                plugin.delete.append(delete)
        progress(f"one at a time: round {number} of {count}")


def throughput(plugins: list[Plugin], count: int, repeats: int) -> None:
    """Let each plugin in turn do ``count`` ADDs, 16 at a time."""
    for turn in range(repeats):
        for plugin in plugins:
            with plugin.host.entered():
                plugin.rates.append(plugin.many("ADD", range(count)))
                plugin.many("DEL", range(count))
        progress(f"{AT_A_TIME} at a time: turn {turn + 1} of {repeats}")


def results(plugins: list[Plugin], resident: float, idle: float, status: list[float]) -> dict[str, Any]:
    """Return all metrics, with the targets where there are any."""
    by = {plugin.name: plugin for plugin in plugins}
    found: dict[str, Any] = {}
    for plugin in plugins:
        for what, values in (("add", plugin.add), ("del", plugin.delete)):
            for percent in (50, 95):
                found[f"{plugin.name}: {what} p{percent}"] = result(p(values, percent), "ms")
        found[f"{plugin.name}: adds a second, {AT_A_TIME} at a time"] = result(statistics.median(plugin.rates), "1/s")
    plain = by[PLAIN]
    if LINKSPAN_C in by:
        shim = by[LINKSPAN_C]
        for name, (add, delete, many) in TARGETS.items():
            other = by[name]
            rate = statistics.median(shim.rates) / statistics.median(other.rates)
            found[f"C shim / {name}: add p50"] = result(p(shim.add, 50) / p(other.add, 50), "ratio", add)
            found[f"C shim / {name}: del p50"] = result(p(shim.delete, 50) / p(other.delete, 50), "ratio", delete)
            found[f"C shim / {name}: {AT_A_TIME} at a time"] = result(rate, "ratio", many)
    python = p(by[LINKSPAN_PY].add, 50) / p(plain.add, 50)
    found["Python shim / reference: add p50"] = result(python, "ratio", "<= 1.2")
    found[f"agent: resident with {HELD} attachments"] = result(resident, "MB", "<= 60")
    found[f"agent: CPU when idle with {HELD} attachments"] = result(idle, "%", "<= 0.5")
    found["linkspan status: p50"] = result(p(status, 50), "ms", "<= 120")
    return found


def tell(plugins: list[Plugin], found: dict[str, Any]) -> None:
    """Print the figures for a reader, as Markdown."""
    print(f"| plugin | ADD p50 | ADD p95 | DEL p50 | DEL p95 | ADDs a second, {AT_A_TIME} at a time |")
    print("|---|---|---|---|---|---|")
    for plugin in plugins:
        times = [p(values, percent) for values in (plugin.add, plugin.delete) for percent in (50, 95)]
        cells = " | ".join(f"{value:.1f} ms" for value in times)
        print(f"| {plugin.name} | {cells} | {statistics.median(plugin.rates):.0f} |")
    print()
    report.table("target", {name: metric for name, metric in found.items() if metric["target"]})


def measure(folder: Path, quick: bool) -> dict[str, Metric]:
    """Run everything in the namespaces of this process."""
    many = 64 if quick else HELD
    host = Namespace(folder / "linkspan")
    containers = [Namespace(folder / f"c{number}") for number in range(HELD)]
    agent = Agent(host, folder)
    try:
        agent.call("network", "create", NETWORK, "--pool", "10.77.0.0/16", "--backend", "bridge")
        config = {"cniVersion": "1.0.0", "name": NETWORK, "type": "linkspan", "socket": str(agent.socket)}
        plugins = [
            Plugin(name, argv, host, config, folder, containers)
            for name, argv in sorted(shims(folder).items())
        ]
        plugins += [reference(PLAIN, False, folder, containers), reference(MASQ, True, folder, containers)]
        for plugin in plugins:
            plugin.prove()
        rounds(plugins, 10 if quick else 100)
        throughput(plugins, many, 1 if quick else 3)
        with plugins[0].host.entered():
            plugins[0].many("ADD", range(HELD))
            resident = agent.resident()
            agent.cpu(2)  # what the last attachments set going has settled by then
            idle = agent.cpu(5 if quick else 30)
            status = agent.status(5 if quick else 20)
            plugins[0].many("DEL", range(HELD))
    finally:
        agent.stop()
    progress("")
    found = results(plugins, resident, idle, status)
    tell(plugins, found)
    return found


def profile(folder: Path, quick: bool) -> dict[str, Metric]:
    """Let one plugin do ADD and DEL in turn, and tell where the agent spends the time."""
    count = 20 if quick else 200
    host, containers = Namespace(folder / "linkspan"), [Namespace(folder / f"c{number}") for number in range(20)]
    agent = Agent(host, folder, timed=True)
    try:
        agent.call("network", "create", NETWORK, "--pool", "10.77.0.0/16", "--backend", "bridge")
        config = {"cniVersion": "1.0.0", "name": NETWORK, "type": "linkspan", "socket": str(agent.socket)}
        name, argv = min(shims(folder).items())
        plugin = Plugin(name, argv, host, config, folder, containers)
        plugin.prove()
        rounds([plugin], count)
    finally:
        agent.stop()
    progress("")
    calls = timed_agent.calls(agent.steps)
    for verb, whole in (("ADD", plugin.add), ("DEL", plugin.delete)):
        tell_steps(verb, [call["steps"] for call in calls if call["verb"] == verb], p(whole, 50))
    return {
        f"{plugin.name}: {verb}, p50, with the stopwatch": result(p(values, 50), "ms")
        for verb, values in (("ADD", plugin.add), ("DEL", plugin.delete))
    }


def tell_steps(verb: str, calls: list[dict[str, list[int]]], whole: float) -> None:
    """Print the median of each step of a verb, the longest first; ``whole`` are the milliseconds of the plugin."""
    named = list(dict.fromkeys(step for call in calls for step in call))
    each = {step: [call.get(step, [0, 0, 0]) for call in calls] for step in named}
    spent = {step: [statistics.median(one[n] for one in found) for n in range(3)] for step, found in each.items()}
    _, wall, cpu = spent.pop(timed_agent.CALL)
    rest = wall - sum(one[1] for one in spent.values()), cpu - sum(one[2] for one in spent.values())
    rows = {"outside of the agent's call": (1, whole * 1e6 - wall, 0), "between these steps": (1, *rest), **spent}
    print(f"\n| {verb}, {whole:.2f} ms | times | ms | ms of CPU |\n|---|---|---|---|")
    for step, (times, of_wall, of_cpu) in sorted(rows.items(), key=lambda row: -row[1][1]):
        print(f"| {step} | {times:.0f} | {of_wall / 1e6:.3f} | {of_cpu / 1e6:.3f} |")


if __name__ == "__main__":
    if not (REFERENCE / "bridge").exists():
        sys.exit("error: no reference plugins: apt-get install containernetworking-plugins iptables")
    report.run(
        measure,
        "ADD and DEL through linkspan and through the reference plugins",
        "fewer rounds: about 15 s",
        {"profile": (profile, "instead: where the agent spends the time of an ADD and of a DEL, step by step")},
    )
