"""After `uninstall` the machine is as it was before linkspan came, and it says so."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_host import Host, World, pings, run, until

SEEN = {
    "links": "ip -j -d link",
    "addresses": "ip -j addr",
    "routes": "ip -j route show table all",
    "routes6": "ip -j -6 route show table all",
    "rules": "ip -j rule",
    "nft": "nft -s list ruleset",
    "iptables": "iptables-save",
    "ip6tables": "ip6tables-save",
    "sysctl": "sysctl -a -r ^net[.]",
}
MOVING = (
    "ifi_", "valid_life_time", "preferred_life_time", "_timer", "nf_conntrack_count",
    "route.gc_", "fib_multipath_hash_seed", "tcp_fastopen_key", "stable_secret",
)  # fmt: skip
"""What counts or moves by itself."""


def seen(netns: str, folder: Path) -> dict[str, Any]:
    """Return all that linkspan could change in a namespace, and the files below a folder."""
    shown: dict[str, Any] = {}
    for name, command in SEEN.items():
        lines = run(*command.split(), netns=netns, check=False).replace(",", ",\n").splitlines()
        shown[name] = sorted(x for x in lines if not x.startswith("#") and not any(m in x for m in MOVING))
    shown["files"] = {str(p): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}
    return shown


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root below which runtimes are installed, with files of others."""
    (tmp_path / "etc/cni/net.d").mkdir(parents=True)
    (tmp_path / "etc/cni/net.d/99-other.conflist").write_text("{}")
    return tmp_path


def furnish(host: Host) -> None:
    """Give the host a cable, settings that forwarding as a whole would change, and rules of its own."""
    host.outside()
    for setting in ("all.accept_redirects=0", "uplink.rp_filter=1", "uplink.forwarding=1"):
        run("sysctl", "-qw", f"net.ipv4.conf.{setting}", netns=host.netns)
    run("sysctl", "-qw", "net.ipv6.conf.uplink.forwarding=1", netns=host.netns)
    run("nft", "add table inet mine; add chain inet mine c { type filter hook forward priority 3; }", netns=host.netns)
    run("iptables", "-P", "FORWARD", "DROP", netns=host.netns)
    run("iptables", "-N", "DOCKER-USER", netns=host.netns)
    run("iptables", "-I", "FORWARD", "-j", "DOCKER-USER", netns=host.netns)
    run("iptables", "-A", "DOCKER-USER", "-j", "RETURN", netns=host.netns)
    settled(host.netns)


def settled(netns: str) -> None:
    """Wait until no address is tentative."""
    until(lambda: "tentative" not in run("ip", "addr", netns=netns), "addresses that can be used")


def use(host: Host, root: Path, container: Callable[[], str]) -> list[str]:
    """Make networks, containers, published ports, and install the plugin; returns the containers."""
    host.network("demo", "10.201.0.0/24", "fd00:201::/64")
    host.network("far", "10.202.0.0/24", "fd00:202::/64", options={"mode": "routed"})
    host.network("inner", "10.203.0.0/24", internal=True)
    host.cli("network", "allow", "demo", "far")
    names = [container() for _ in range(3)]
    ports = [{"host_ip": "", "host_port": 8080, "port": 80, "protocol": p} for p in ("tcp", "udp")]
    host.attach(names[0], ports=ports)
    host.attach(names[1], "far", bandwidth={"ingressRate": 10**9, "egressRate": 10**9})
    host.attach(names[2], "inner")
    host.cli("install", "cni", "--network", "demo", "--root", str(root))
    assert pings(names[0], "198.51.100.2")
    assert pings(names[1], "10.202.0.1")
    settled(host.netns)
    return names


@pytest.fixture
def before(world: World, root: Path) -> dict[str, Any]:
    """An empty dictionary, filled before the agent comes."""
    return {}


@pytest.fixture
def used(world: World, root: Path, container: Callable[[], str], before: dict[str, Any]) -> Any:
    """A host that is in full use; ``before`` is what it was like."""
    host = Host(world, names=True)
    furnish(host)
    before.update(seen(host.netns, root))
    host.start()
    host.names = use(host, root, container)  # type: ignore[attr-defined]
    try:
        yield host
    finally:
        host.close()


def differing(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what differs, in a form that can be read."""
    found = {}
    for name in before:
        old, new = before[name], after[name]
        if old != new:
            found[name] = ([x for x in old if x not in new], [x for x in new if x not in old])
    return found


@pytest.mark.parametrize("killed", [False, True], ids=["running", "killed"])
def test_the_machine_is_as_it_was(used: Host, root: Path, before: dict[str, Any], killed: bool) -> None:
    """`uninstall --yes --force` gives everything back, from a running agent and after one was killed."""
    if killed:
        used.stop(signal.SIGKILL)
    said = used.cli(
        "uninstall", "--yes", "--force", "--config", str(used.config), "--state-dir", str(used.state_dir)
    )
    assert said.splitlines()[-1] == "nothing of linkspan is left on this machine"
    assert "Bridge ls-demo" in said
    assert differing(before, seen(used.netns, root)) == {}
    assert not used.state_dir.exists()
    assert not used.socket.parent.exists()
    for name in used.names:  # type: ignore[attr-defined]
        assert "eth0" not in run("ip", "link", netns=name)
    assert used.process is not None
    used.process.wait(5)


def test_it_refuses_while_endpoints_live(used: Host, root: Path) -> None:
    """Without --force it lists the endpoints and touches nothing."""
    here = seen(used.netns, root)
    said = used.cli("uninstall", "--yes", code=1)
    for name in used.names:  # type: ignore[attr-defined]
        assert name in said
    assert sum("3 endpoints live" in line and "--force" in line for line in said.splitlines()) == 1
    assert "ADDRESSES" in said
    assert "--force" in said
    assert differing(here, seen(used.netns, root)) == {}
    assert used.differences() == []


def test_a_dry_run_touches_nothing(used: Host, root: Path) -> None:
    """--dry-run names what would go, and all of it stands."""
    here = seen(used.netns, root)
    said = used.json("uninstall", "--dry-run")
    assert used.cli("uninstall", "--dry-run").startswith("would remove ")
    conflist = "10-linkspan-demo.conflist"
    for word in ("Bridge ls-demo", "NftTable inet linkspan", "ip_forward", str(used.state_dir), conflist):
        assert any(word in item for item in said["removed"]), word
    assert said["left"] == []
    assert differing(here, seen(used.netns, root)) == {}
    assert used.differences() == []
    assert json.loads(run("ip", "-j", "link", "show", "ls-demo", netns=used.netns))


def test_a_file_that_a_user_changed_stays(used: Host, root: Path) -> None:
    """A conflist edited since is not ours alone any more, and is left."""
    conf = root / "etc/cni/net.d/10-linkspan-demo.conflist"
    conf.write_text(conf.read_text() + "\n")
    used.cli("uninstall", "--yes", "--force")
    assert conf.exists()
    assert not (root / "opt").exists()


def test_a_second_uninstall_finds_nothing(used: Host, root: Path) -> None:
    """It succeeds where there is nothing, and leaves nothing of its own."""
    words = ("uninstall", "--yes", "--force", "--config", str(used.config), "--state-dir", str(used.state_dir))
    used.cli(*words)
    here = seen(used.netns, root)
    assert used.json(*words)["left"] == []
    assert differing(here, seen(used.netns, root)) == {}
    assert not used.state_dir.exists()
