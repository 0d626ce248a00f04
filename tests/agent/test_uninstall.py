"""After `uninstall` the machine is as it was before linkspan came, and it says so."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.agent.agent_host import Host, World, pings, run
from support.polling import until

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
    """Return the root below which runtimes are installed, with foreign files."""
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
    host.attach(names[0], "far", ifname="eth1")  # in two networks: a DNS server of their own answers it
    host.attach(names[1], "far", bandwidth={"ingressRate": 10**9, "egressRate": 10**9})
    host.attach(names[2], "inner")
    host.cli("install", "cni", "--network", "demo", "--root", str(root))
    assert pings(names[0], "198.51.100.2")
    assert pings(names[1], "10.202.0.1")
    until(lambda: (host.socket.parent / "names" / "demo+far").exists(), "the server of both networks")
    settled(host.netns)
    return names


@pytest.fixture
def before(world: World, root: Path) -> dict[str, Any]:
    """Return an empty dictionary, which is filled before the agent starts."""
    return {}


@pytest.fixture
def used(world: World, root: Path, container: Callable[[], str], before: dict[str, Any]) -> Any:
    """Return a host in full use; ``before`` has its earlier state."""
    host = Host(world, names=True)
    furnish(host)
    before.update(seen(host.netns, root))
    host.start()
    host.containers = use(host, root, container)
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
        "uninstall", "--yes", "--force", "-v", "--config", str(used.config), "--state-dir", str(used.state_dir)
    )
    assert said.splitlines()[-1] == "nothing of linkspan is left on this machine"
    assert "Bridge ls-demo" in said
    assert differing(before, seen(used.netns, root)) == {}
    assert not used.state_dir.exists()
    assert not used.socket.parent.exists()
    for name in used.containers:
        assert "eth0" not in run("ip", "link", netns=name)
    assert used.process is not None
    used.process.wait(5)


def test_it_refuses_while_endpoints_live(used: Host, root: Path) -> None:
    """Without --force it lists the endpoints and touches nothing."""
    here = seen(used.netns, root)
    said = used.cli("uninstall", "--yes", code=1)
    for name in used.containers:
        assert name in said
    assert sum("4 endpoints live" in line and "--force" in line for line in said.splitlines()) == 1
    assert "ADDRESSES" in said
    assert "--force" in said
    assert differing(here, seen(used.netns, root)) == {}
    assert used.differences() == []


def test_a_dry_run_touches_nothing(used: Host, root: Path) -> None:
    """--dry-run lists what uninstall would remove, and removes nothing."""
    here = seen(used.netns, root)
    said = used.json("uninstall", "--dry-run")
    assert used.cli("uninstall", "--dry-run").startswith("would remove ")
    conflist = "10-linkspan-demo.conflist"
    for word in ("Bridge ls-demo", "NftTable inet linkspan", "ip_forward", str(used.state_dir), conflist):
        assert any(word in item for item in said["removed"]), word
    assert said["left"] == []
    (refused,) = said["refused"]
    assert "4 endpoints live" in refused
    assert "refused without --force: 4 endpoints live" in used.cli("uninstall", "--dry-run")
    assert differing(here, seen(used.netns, root)) == {}
    assert used.differences() == []
    assert json.loads(run("ip", "-j", "link", "show", "ls-demo", netns=used.netns))


def test_the_agent_is_the_one_that_the_config_file_names(used: Host) -> None:
    """It knows its state folder, also if another agent runs at the usual socket."""
    used.config.write_text(f"socket = '{used.socket}'\n")
    inside = ("ip", "netns", "exec", used.netns, sys.executable, "-m", "linkspan.cli.main")
    said = run(*inside, "uninstall", "--dry-run", "--output", "json", "--config", str(used.config))
    assert str(used.state_dir) in json.loads(said)["removed"]


def test_a_file_that_a_user_changed_stays(used: Host, root: Path) -> None:
    """A conflist that a user has edited is not linkspan's any more, and stays."""
    conf = root / "etc/cni/net.d/10-linkspan-demo.conflist"
    conf.write_text(conf.read_text() + "\n")
    used.cli("uninstall", "--yes", "--force")
    assert conf.exists()
    assert not (root / "opt").exists()


def test_a_second_uninstall_finds_nothing(used: Host, root: Path) -> None:
    """It succeeds if nothing is installed, and leaves no file."""
    words = ("uninstall", "--yes", "--force", "--config", str(used.config), "--state-dir", str(used.state_dir))
    used.cli(*words)
    here = seen(used.netns, root)
    assert used.json(*words)["left"] == []
    assert differing(here, seen(used.netns, root)) == {}
    assert not used.state_dir.exists()


def unmark(host: Host, *names: str) -> None:
    """Take the alternative names off links."""
    for name in names:
        (link,) = json.loads(run("ip", "-j", "link", "show", name, netns=host.netns))
        for altname in link["altnames"]:
            run("ip", "link", "property", "del", "dev", name, "altname", altname, netns=host.netns)


def test_links_that_lost_their_alternative_name_go_too(used: Host, root: Path, before: dict[str, Any]) -> None:
    """A bridge, a port and a routed endpoint's link are known by their other marks, and nothing is left."""
    used.stop(signal.SIGKILL)
    links = sorted(used.links())
    marked = [name for name in links if name.startswith(("ls-", "lsp", "lsr"))]
    assert {name[:3] for name in marked} == {"ls-", "lsp", "lsr"}
    unmark(used, *marked)
    words = ("--config", str(used.config), "--state-dir", str(used.state_dir))
    would = used.json("uninstall", "--dry-run", *words)["removed"]
    assert {f"Link {name}" for name in marked} <= set(would)
    assert sorted(used.links()) == links
    found = used.json("uninstall", "--yes", "--force", *words)
    assert (found["left"], found["stays"]) == ([], [])
    assert differing(before, seen(used.netns, root)) == {}


def test_a_link_of_somebody_else_s_that_is_called_as_ours_stays(used: Host) -> None:
    """One mark is not enough to remove it: the link is named, with the command to remove it by hand."""
    run("ip", "link", "add", "ls-mine", "type", "bridge", netns=used.netns)
    run("ip", "link", "add", "lsr1", "type", "veth", "peer", "name", "lsr2", netns=used.netns)
    run("ip", "link", "add", "br0", "type", "bridge", netns=used.netns)  # an underlay's, which has routes of ours
    run("ip", "link", "set", "br0", "up", netns=used.netns)
    run("ip", "route", "add", "203.0.113.0/24", "dev", "br0", "proto", "76", netns=used.netns)
    said = used.cli("uninstall", "--yes", "--force", "--config", str(used.config))
    assert {"ls-mine", "lsr1", "lsr2", "br0"} <= used.links()
    assert "ip link del ls-mine" in said
    assert "lsr1" not in said


def test_it_says_how_much_it_removed_and_names_everything_where_asked(used: Host) -> None:
    """Kinds with their numbers, folders by their paths; every object with -v, and always in JSON."""
    dry = used.json("uninstall", "--dry-run")["removed"]
    assert len(dry) > 100
    lines = used.cli("uninstall", "--yes", "--force", "--config", str(used.config)).splitlines()
    assert len(lines) < 15
    assert any(line.startswith("removed ") and line.endswith(" firewall objects") for line in lines)
    assert f"removed {used.state_dir}" in lines


@pytest.mark.parametrize(
    "text",
    ["store = etcd://192.0.2.1/x\n", "nonsense = 1\n", "cooldown = 'long'\n", "[broken\n"],
    ids=["syntax", "unknown", "wrong", "table"],
)
def test_a_broken_config_file_does_not_keep_linkspan_on_the_machine(used: Host, text: str) -> None:
    """Uninstall uses the readable part of the file, and reports the mistakes."""
    used.config.write_text(f"{text}state_dir = '{used.state_dir}'\nsocket = '{used.socket}'\n")
    used.stop(signal.SIGKILL)
    inside = ("ip", "netns", "exec", used.netns, sys.executable, "-m", "linkspan.cli.main")
    words = ("uninstall", "--yes", "--force", "--config", str(used.config))
    done = subprocess.run([*inside, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"note: config file {used.config}" in done.stderr or "note: setting" in done.stderr
    assert not used.state_dir.exists()
    assert not used.links() & {"ls-demo"}


def test_a_journal_that_cannot_be_read_hides_no_container(used: Host, root: Path, before: dict[str, Any]) -> None:
    """The kernel shows which containers run, and --force removes everything."""
    used.stop(signal.SIGKILL)
    (used.state_dir / "journal.db").write_bytes(b"garbage" * 1000)
    words = ("uninstall", "--yes", "--config", str(used.config), "--state-dir", str(used.state_dir))
    assert "4 endpoints live" in used.cli(*words, code=1)
    used.cli(*words, "--force")
    assert differing(before, seen(used.netns, root)) == {}
