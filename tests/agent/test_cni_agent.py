"""Both forms of the CNI plugin against the real agent: what a runtime does, from ADD to GC, and with no agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linkspan.lab.topology import bare
from linkspan.shim import build
from support.agent.agent_host import Host, pings, run
from support.polling import until

VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
POOLS = ("10.201.0.0/29", "fd00:201::/64")


TUNING = Path("/usr/lib/cni/tuning")
"""The reference plugins' (Debian's package containernetworking-plugins)."""


class Runtime:
    """Calls the plugin as a container runtime does, in the host's namespace."""

    def __init__(self, host: Host, plugin: Path) -> None:
        self.host = host
        self.plugin = plugin
        self.entered: tuple[str, ...] = ()
        """A command's beginning by which the runtime is in another mount namespace than the agent."""

    def call(
        self, command: str, netns: str = "", version: str = "1.1.0", code: int = 0, ifname: str = "eth0", **conf: Any
    ) -> dict[str, Any]:
        """Run the plugin for the container of this namespace, expect an exit code, and return what it prints."""
        path = f"/run/netns/{netns}" if netns else ""
        given = {"cniVersion": version, "name": "demo", "type": "linkspan", **conf}
        return self.run(self.plugin, command, netns, path, code, given, ifname)

    def collect(self, *valid: str) -> None:
        """Run GC: the interfaces eth0 of these containers are valid."""
        attachments = [{"containerID": netns, "ifname": "eth0"} for netns in valid]
        given = {"cniVersion": "1.1.0", "name": "demo", "type": "linkspan", "cni.dev/valid-attachments": attachments}
        self.run(self.plugin, "GC", "", "", 0, given)

    def tune(self, netns: str, previous: dict[str, Any], **conf: Any) -> dict[str, Any]:
        """Run the reference plugin tuning as the next one in the chain, and return the chain's result."""
        if not TUNING.exists():
            pytest.skip("tuning is not installed: apt-get install containernetworking-plugins")
        given = {"cniVersion": "1.0.0", "name": "demo", "type": "tuning", "prevResult": previous, **conf}
        return self.run(TUNING, "ADD", netns, f"/run/netns/{netns}", 0, given)

    def run(
        self,
        plugin: Path,
        command: str,
        container: str,
        path: str,
        code: int,
        given: dict[str, Any],
        ifname: str = "eth0",
    ) -> dict[str, Any]:
        """Run any plugin for a container whose namespace has this path."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": ifname if container else "",
            "CNI_NETNS": path,
            "CNI_PATH": "/opt/cni/bin",
            "LINKSPAN_SOCKET": str(self.host.socket),
        }
        done = subprocess.run(
            ["ip", "netns", "exec", self.host.netns, *self.entered, str(plugin)],
            input=json.dumps(given).encode(),
            env={"PATH": os.environ["PATH"]} | {k: v for k, v in environment.items() if v},
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (command, done.stdout, done.stderr)
        return dict(json.loads(done.stdout)) if done.stdout else {}

    def attached(self) -> set[str]:
        """Return the ids of what is attached."""
        return {e["id"] for e in self.host.client.call("GET", "/v1/endpoints")}

    def clean(self) -> None:
        """Nothing is attached, and nothing left."""
        assert self.attached() == set()
        assert self.host.differences() == []
        assert self.host.check()["ok"]


@pytest.fixture(scope="session", params=["c", "python"])
def plugin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each form of the plugin."""
    path = Path(tmp_path_factory.mktemp("plugin") / "linkspan")
    if request.param == "c":
        if not build.build(path):
            pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    else:
        path.write_bytes(build.script(sys.executable))
        path.chmod(0o755)
    return path


@pytest.fixture
def runtime(host: Host, plugin: Path) -> Runtime:
    """Return a runtime on a host with network demo of five addresses."""
    host.network("demo", *POOLS)
    return Runtime(host, plugin)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_container_s_life(runtime: Runtime, container: Callable[[], str], version: str) -> None:
    """ADD gives a network and a result of the version asked for; CHECK finds it; DEL ends it, and again."""
    name = container()
    result = runtime.call("ADD", name, version)
    assert result["cniVersion"] == version
    assert {ip["address"] for ip in result["ips"]} == {"10.201.0.2/29", "fd00:201::2/64"}
    assert {ip.get("version") for ip in result["ips"]} == ({"4", "6"} if version < "1.0.0" else {None})
    inside = result["interfaces"][result["ips"][0]["interface"]]
    assert (inside["name"], inside["sandbox"]) == ("eth0", f"/run/netns/{name}")
    shown = json.loads(run("ip", "-j", "addr", "show", "eth0", netns=name))[0]
    assert shown["address"] == inside["mac"]
    assert {r["dst"] for r in result["routes"]} == {"0.0.0.0/0", "::/0"}
    assert pings(name, "10.201.0.1")
    assert pings(name, "fd00:201::1")
    if version >= "0.4.0":
        assert runtime.call("CHECK", name, version, prevResult=result) == {}
    failed = runtime.call("ADD", name, version, code=1)
    assert "attached already" in failed["msg"]
    assert pings(name, "10.201.0.1")
    for _ in range(2):
        assert runtime.call("DEL", name, version, prevResult=result) == {}
    assert "eth0" not in run("ip", "link", netns=name)
    runtime.clean()


@pytest.mark.parametrize("mode", ["bridged", "routed"])
def test_a_container_in_two_networks(runtime: Runtime, container: Callable[[], str], mode: str) -> None:
    """Two ADDs give it two interfaces: each reaches its own network, CHECK finds both, and one DEL leaves the other."""
    host, name = runtime.host, container()
    peers: dict[str, list[str]] = {}
    for number, network in ((202, "web"), (203, "data")):
        host.network(network, f"10.{number}.0.0/24", f"fd00:{number}::/64", options={"mode": mode})
        peers[network] = [bare(one["address"]) for one in runtime.call("ADD", container(), name=network)["ips"]]
    web = runtime.call("ADD", name, name="web")
    data = runtime.call("ADD", name, ifname="eth1", name="data")
    inside = data["interfaces"][data["ips"][0]["interface"]]
    assert (inside["name"], inside["sandbox"]) == ("eth1", f"/run/netns/{name}")
    assert all(pings(name, address) for found in peers.values() for address in found)
    assert "dev eth0" in run("ip", "route", "get", "192.0.2.2", netns=name)
    again = runtime.call("ADD", name, ifname="eth1", name="data", code=1)
    assert "attached already" in again["msg"]
    assert runtime.call("CHECK", name, name="web", prevResult=web) == {}
    assert runtime.call("CHECK", name, ifname="eth1", name="data", prevResult=data) == {}
    assert host.differences() == []
    assert runtime.call("DEL", name, name="web", prevResult=web) == {}
    assert "eth0" not in run("ip", "link", netns=name)
    assert all(pings(name, address) for address in peers["data"])
    assert "dev eth1" in run("ip", "route", "get", "192.0.2.2", netns=name)
    assert runtime.call("CHECK", name, ifname="eth1", name="data", prevResult=data) == {}
    assert runtime.call("DEL", name, ifname="eth1", name="data", prevResult=data) == {}
    assert name not in runtime.attached()
    assert host.differences() == []


def test_versions_are_told(runtime: Runtime) -> None:
    """VERSION lists the four; another one, and a command that a version has not, are refused with code 1."""
    assert runtime.call("VERSION")["supportedVersions"] == VERSIONS
    assert runtime.call("ADD", runtime.host.netns, "9.9.9", code=1)["code"] == 1
    assert runtime.call("STATUS", version="1.0.0", code=1)["code"] == 1


def test_check_finds_what_was_taken_away(runtime: Runtime, container: Callable[[], str]) -> None:
    """An address or a route removed by hand, or the interface set down, fails CHECK by name until it is repaired."""
    name = container()
    result = runtime.call("ADD", name)
    for change, named in (
        (("addr", "del", "10.201.0.2/29", "dev", "eth0"), "10.201.0.2"),
        (("route", "del", "default"), "eth0"),
        (("link", "set", "eth0", "down"), "eth0"),
    ):
        run("ip", *change, netns=name)
        failed = runtime.call("CHECK", name, prevResult=result, code=1)
        assert named in failed["msg"] + failed.get("details", ""), failed
        runtime.host.restart()  # which puts what is missing
        assert runtime.call("CHECK", name, prevResult=result) == {}
    assert runtime.call("CHECK", container(), prevResult=result, code=1)["code"] == 3


def test_gc_takes_what_is_not_listed(runtime: Runtime, container: Callable[[], str]) -> None:
    """GC detaches what came by CNI to this network and is not in the list, and nothing else."""
    runtime.host.network("other", "10.202.0.0/24")
    keep, gone, by_hand, elsewhere = (container() for _ in range(4))
    runtime.call("ADD", keep)
    runtime.call("ADD", gone)
    runtime.host.attach(by_hand)
    runtime.call("ADD", elsewhere, name="other")
    runtime.collect(keep)
    assert runtime.attached() == {keep, by_hand, elsewhere}
    assert "eth0" not in run("ip", "link", netns=gone)
    assert pings(keep, "10.201.0.1")
    runtime.call("GC")
    assert runtime.attached() == {keep, by_hand, elsewhere}
    runtime.collect()
    assert runtime.attached() == {by_hand, elsewhere}


def test_status_tells_of_an_exhausted_pool(runtime: Runtime, container: Callable[[], str]) -> None:
    """STATUS fails with code 50 while no address is left, and ADD names the holders."""
    assert runtime.call("STATUS") == {}
    names = [container() for _ in range(5)]
    for name in names:
        runtime.call("ADD", name)
    assert runtime.call("STATUS", code=1)["code"] == 50
    failed = runtime.call("ADD", container(), code=1)
    assert "10.201.0.0/29" in failed["msg"]
    runtime.call("DEL", names[0])
    assert runtime.call("STATUS") == {}
    assert runtime.call("STATUS", code=1, name="nowhere")["code"] == 50


def test_runtime_config_is_honoured(runtime: Runtime, container: Callable[[], str]) -> None:
    """portMappings, ips, mac and bandwidth come to the interface, and CHECK agrees."""
    name = container()
    wanted = {
        "ips": ["10.201.0.5/29"],
        "mac": "02:00:00:00:00:05",
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 8_000_000, "egressRate": 16_000_000}
        | {"ingressBurst": 800_000, "egressBurst": 800_000},
    }
    result = runtime.call("ADD", name, runtimeConfig=wanted)
    assert "10.201.0.5/29" in {ip["address"] for ip in result["ips"]}
    shown = json.loads(run("ip", "-j", "addr", "show", "eth0", netns=name))[0]
    assert shown["address"] == "02:00:00:00:00:05"
    mapped = run("nft", "list", "map", "inet", "linkspan", "publish4", netns=runtime.host.netns)
    assert "tcp . 8080 : 10.201.0.5 . 80" in mapped
    assert "tbf" in run("tc", "qdisc", "show", "dev", "eth0", netns=name)
    assert "rate 16Mbit" in run("tc", "qdisc", "show", "dev", "eth0", netns=name)
    (endpoint,) = runtime.host.client.call("GET", "/v1/endpoints")
    inward = run("tc", "qdisc", "show", "dev", endpoint["host_ifname"], netns=runtime.host.netns)
    assert "rate 8Mbit" in inward
    assert runtime.call("CHECK", name, prevResult=result, runtimeConfig=wanted) == {}
    run("tc", "qdisc", "del", "dev", "eth0", "root", netns=name)
    assert runtime.call("CHECK", name, prevResult=result, runtimeConfig=wanted, code=1)["msg"]
    taken = runtime.call("ADD", container(), runtimeConfig={"portMappings": wanted["portMappings"]}, code=1)
    assert "8080/tcp" in taken["msg"]
    assert name in taken["msg"]
    runtime.call("DEL", name, runtimeConfig=wanted)
    runtime.clean()


def test_check_goes_by_the_callers_result(runtime: Runtime, container: Callable[[], str]) -> None:
    """An MTU that the chain's result shows is right, another one is not; a result without one says nothing of it."""
    name = container()
    result = runtime.call("ADD", name)
    run("ip", "link", "set", "eth0", "mtu", "1400", netns=name)
    assert "eth0" in runtime.call("CHECK", name, prevResult=result, code=1)["msg"]
    assert runtime.call("CHECK", name, "1.0.0", code=1, prevResult=result)["code"] == 105
    (inside,) = (one for one in result["interfaces"] if one["name"] == "eth0")
    del inside["mtu"]
    assert runtime.call("CHECK", name, "1.0.0", prevResult=result | {"cniVersion": "1.0.0"}) == {}
    inside["mtu"] = 1400
    assert runtime.call("CHECK", name, prevResult=result) == {}
    runtime.host.restart()
    assert "mtu 1400" in run("ip", "link", "show", "eth0", netns=name)
    assert runtime.call("CHECK", name, prevResult=result) == {}
    inside["mtu"] = 1300
    assert runtime.call("CHECK", name, prevResult=result, code=1)["code"] == 105


@pytest.mark.parametrize("mode", ["bridged", "routed"])
def test_a_chain_with_tuning_works(runtime: Runtime, container: Callable[[], str], mode: str) -> None:
    """A later plugin's MAC and MTU are the container's: it talks at once, CHECK agrees, and a restart keeps them."""
    pools = ("10.205.0.0/24", "fd00:205::/64")
    runtime.host.network("tuned", *pools, options={"mode": mode} if mode == "routed" else {})
    name, other = container(), container()
    runtime.call("ADD", other, name="tuned")
    added = runtime.call("ADD", name, "1.0.0", name="tuned")
    first, second = (ip["address"].partition("/")[0] for ip in added["ips"])
    result = runtime.tune(name, added, mac="02:11:22:33:44:55", mtu=1400)
    for netns in (name, other):
        for address in ("10.205.0.1", "fd00:205::1") if netns == name else (first, second):
            assert pings(netns, address), f"{address} from {netns}"
    assert runtime.call("CHECK", name, "1.0.0", name="tuned", prevResult=result) == {}
    runtime.host.restart()
    shown = run("ip", "link", "show", "eth0", netns=name)
    assert "02:11:22:33:44:55" in shown
    assert "mtu 1400" in shown
    assert pings(name, "10.205.0.1")
    assert pings(name, "fd00:205::1")
    assert runtime.call("CHECK", name, "1.0.0", name="tuned", prevResult=result) == {}
    for one in (name, other):
        runtime.call("DEL", one, name="tuned")
    runtime.clean()


def test_a_mac_of_another_container_is_not_taken_over(runtime: Runtime, container: Callable[[], str]) -> None:
    """The guard still drops packets from it, the event log names its owner, and a CHECK fails with that."""
    name, other = container(), container()
    victim = runtime.call("ADD", other)["interfaces"][1]["mac"]
    result = runtime.call("ADD", name)
    run("ip", "link", "set", "eth0", "address", victim, netns=name)

    def told() -> bool:
        return f"MAC {victim}, which belongs to {other}" in runtime.host.cli("events")

    until(told, "the event log says whose it is")
    assert not pings(name, "10.201.0.1")
    assert pings(other, "10.201.0.1")
    result["interfaces"][1]["mac"] = victim
    assert other in runtime.call("CHECK", name, prevResult=result, code=1)["msg"]


def test_a_mac_is_taken_over_only_while_a_chain_runs(runtime: Runtime, container: Callable[[], str]) -> None:
    """Of an endpoint that came by hand, or of one whose chain has ended, another MAC stays outside the guard."""
    name = container()
    runtime.host.attach(name)
    assert pings(name, "10.201.0.1")
    run("ip", "link", "set", "eth0", "address", "02:11:22:33:44:66", netns=name)
    assert not pings(name, "10.201.0.1")


def test_check_looks_into_a_namespace_that_the_agent_finds_nowhere(runtime: Runtime) -> None:
    """If the runtime has its own mounts and no process lives in the container yet, its descriptor counts."""
    script = """
    mount -t tmpfs tmpfs /mnt; touch /mnt/box; unshare --net mount --bind /proc/self/ns/net /mnt/box
    echo up; exec sleep 600
    """
    apart = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
    keeper = runtime.host.world.spawn(runtime.host.netns, *apart, stdout=subprocess.PIPE)
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == b"up\n"
    runtime.entered = ("nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt", "--")
    conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "demo", "type": "linkspan"}
    plugin = runtime.plugin
    result = runtime.run(plugin, "ADD", "box", "/mnt/box", 0, conf)
    conf |= {"prevResult": result}
    assert runtime.run(plugin, "CHECK", "box", "/mnt/box", 0, conf) == {}
    run(*runtime.entered, "nsenter", "--net=/mnt/box", "ip", "address", "flush", "dev", "eth0")
    assert runtime.run(plugin, "CHECK", "box", "/mnt/box", 1, conf)["code"] == 105
    runtime.run(plugin, "DEL", "box", "/mnt/box", 0, conf)
    runtime.clean()


def test_bad_namespaces(runtime: Runtime, container: Callable[[], str]) -> None:
    """A namespace that is not there, and the runtime's own, are refused, and DEL succeeds without one."""
    missing = runtime.call("ADD", "nowhere", code=1)
    assert "/run/netns/nowhere" in missing["msg"]
    own = runtime.call("ADD", runtime.host.netns, code=1)
    assert runtime.host.netns in own["msg"]
    name = container()
    runtime.call("ADD", name)
    runtime.host.world.delete(name)
    runtime.call("DEL", name)
    runtime.clean()


def queued(host: Host) -> list[Path]:
    """Return the files of the queue."""
    return sorted((host.socket.parent / "queue").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_removal_while_no_agent_runs(
    runtime: Runtime, container: Callable[[], str], number: signal.Signals
) -> None:
    """DEL succeeds, is queued, and is done before the next agent says ready; ADD and STATUS ask to try again."""
    name, stays = container(), container()
    runtime.call("ADD", name)
    runtime.call("ADD", stays)
    runtime.host.stop(number)
    runtime.call("DEL", name)
    runtime.call("DEL", name)
    assert queued(runtime.host)
    assert runtime.call("ADD", container(), code=1)["code"] == 11
    assert runtime.call("STATUS", code=1)["code"] == 50
    runtime.host.start()
    assert runtime.attached() == {stays}
    assert queued(runtime.host) == []
    assert "eth0" not in run("ip", "link", netns=name)
    assert runtime.host.differences() == []
    assert runtime.host.check()["ok"]


def test_a_removal_of_an_earlier_life_is_not_applied(runtime: Runtime, container: Callable[[], str]) -> None:
    """A queued DEL that is older than the container's attachment is dropped, at start and while the agent runs."""
    name = container()
    runtime.call("ADD", name)
    runtime.host.stop()
    runtime.call("DEL", name)
    (entry,) = queued(runtime.host)
    old = entry.read_bytes()
    runtime.host.start()
    runtime.call("ADD", name)
    _put(entry, old)
    until(lambda: not queued(runtime.host), "the old removal is dropped")
    assert runtime.attached() == {name}
    runtime.host.stop()
    _put(entry, old)
    runtime.host.start()
    assert queued(runtime.host) == []
    assert runtime.attached() == {name}
    assert pings(name, "10.201.0.1")
    _put(entry, json.dumps(json.loads(old) | {"boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME)}).encode())
    until(lambda: not runtime.attached(), "the new removal is applied")
    runtime.clean()


def _put(path: Path, content: bytes) -> None:
    """Put a file as the plugin does, by a rename."""
    new = path.with_suffix(".tmp")
    new.write_bytes(content)
    new.rename(path)


def test_damaged_entries_are_set_aside(runtime: Runtime, container: Callable[[], str]) -> None:
    """A file of the queue that cannot be read stops nothing: it is renamed, and the others are done."""
    name = container()
    runtime.call("ADD", name)
    runtime.host.stop()
    runtime.call("DEL", name)
    folder = runtime.host.socket.parent / "queue"
    _put(folder / "0.json", b"{ soup")
    _put(folder / "1.json", b"\xff" * 100)
    runtime.host.start()
    assert [path.name for path in queued(runtime.host)] == ["0.json.bad", "1.json.bad"]
    runtime.clean()
