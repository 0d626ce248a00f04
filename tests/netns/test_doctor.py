"""Doctor: what it finds wrong with a machine, each with a fix, and that it leaves the machine alone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from linkspan.core.model import Underlay
from linkspan.diagnose.doctor import doctor, kernel_features
from linkspan.diagnose.doctor.checks import Check, Surroundings
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.machine import Machine
from linkspan.runtimes import checks
from support.netns import sample
from support.netns.world import World


@pytest.fixture
def world() -> Iterator[World]:
    """Make a host and one container."""
    made = World("h", "a")
    yield made
    made.close()


@dataclasses.dataclass
class Patient:
    """A host with the network demo, and what the doctor looks at."""

    world: World
    around: Surroundings

    def checks(self) -> dict[str, Check]:
        """Examine it."""
        with self.world.entered("h"), contextlib.closing(Namespaces()) as namespaces:
            return {c.check: c for c in doctor.examine(namespaces, self.around, checks())}


@pytest.fixture
def patient(world: World, tmp_path: Path) -> Patient:
    """Make a host where everything of the network demo is in place."""
    network = sample.network()
    states = sample.states([network], [sample.endpoint(world, "a", network, 2)])
    with world.entered("h"), contextlib.closing(Machine(tmp_path)) as machine:
        machine.namespaces.register(world.inode("a"), world.path("a"))
        assert machine.reconciler.change(("all",), states) == {}
    return Patient(world, Surroundings([network], tmp_path / "state", tmp_path))


def test_a_sound_host_passes(patient: Patient) -> None:
    """Nothing fails, and every check that does not say so has a detail."""
    found = patient.checks()
    assert [c for c in found.values() if c.status == "fail"] == []
    assert all(c.detail for c in found.values())
    for name in ("kernel veth", "kernel nft inet", "forwarding IPv4", "forwarding IPv6", "bridge ls-demo", "disk"):
        assert found[name].status == "ok", found[name]


@pytest.mark.parametrize(
    ("breakage", "check", "status", "words", "fix"),
    [
        ("sysctl -qw net.ipv4.ip_forward=0", "forwarding IPv4", "fail", "ip_forward=0", "sysctl -w"),
        ("sysctl -qw net.ipv6.conf.all.forwarding=0", "forwarding IPv6", "fail", "forwarding=0", "sysctl -w"),
        ("sysctl -qw net.ipv4.conf.all.rp_filter=1", "rp_filter", "warn", "strict", "rp_filter=2"),
        ("sysctl -qw net.ipv4.conf.all.arp_ignore=8", "neighbour search", "fail", "nobody gets", "arp_ignore=0"),
        ("sysctl -qw net.ipv4.conf.all.proxy_arp_pvlan=1", "neighbour search", "warn", "that others have", "sysctl -w"),
        (
            "sysctl -qw net.ipv4.neigh.ls-demo.mcast_solicit=0",
            "neighbour search",
            "fail",
            "asks nobody on ls-demo",
            "sysctl -w net/ipv4/neigh/ls-demo/mcast_solicit=3",
        ),
        (
            "sysctl -qw net.ipv6.neigh.ls-demo.mcast_solicit=0",
            "neighbour search",
            "fail",
            "asks nobody on ls-demo",
            "sysctl -w net/ipv6/neigh/ls-demo/mcast_solicit=3",
        ),
        (
            "ip link add mv0 link ls-demo type macvlan mode passthru",
            "links above",
            "fail",
            "mv0 is on ls-demo",
            "ip link del mv0",
        ),
        ("iptables -P FORWARD DROP", "iptables FORWARD 10.77.0.0/24", "fail", "policy DROP", "agent"),
        (
            "iptables -A FORWARD -d 10.77.0.0/24 -j REJECT",
            "iptables FORWARD 10.77.0.0/24",
            "fail",
            "-d 10.77.0.0/24 -j REJECT",
            "iptables -D FORWARD -d 10.77.0.0/24 -j REJECT",
        ),
        (
            "iptables -t mangle -P FORWARD DROP",
            "iptables FORWARD 10.77.0.0/24",
            "fail",
            "iptables -t mangle FORWARD drops traffic of network demo: policy DROP",
            "iptables -t mangle -P FORWARD ACCEPT",
        ),
        (
            "nft 'add table ip mine; add chain ip mine way { type filter hook forward priority 0; policy drop; }'",
            "nft forward 10.77.0.0/24",
            "fail",
            "ip mine way drops traffic of network demo: policy drop",
            "nft insert rule ip mine way ip saddr 10.77.0.0/24 accept",
        ),
    ],
)
def test_what_is_wrong_with_the_host_is_found(
    patient: Patient, breakage: str, check: str, status: str, words: str, fix: str
) -> None:
    """The check names the setting or rule, and what to do."""
    assert patient.checks()[check].status == "ok"
    patient.world.sh("h", breakage)
    found = patient.checks()[check]
    assert found.status == status
    assert words in found.detail
    assert fix in found.fix


def test_what_keeps_the_underlay_from_its_neighbours_is_found(patient: Patient) -> None:
    """By the families of the host's own addresses, whatever the families of the networks."""
    patient.world.sh("h", "ip link add up0 type veth peer name up1")
    patient.world.sh("h", "ip link add mv0 link up0 type macvlan mode passthru")
    patient.around = msgspec.structs.replace(patient.around, underlay=Underlay("up0", ("192.0.2.1/24",)))
    for family, status in ((6, "ok"), (4, "fail")):
        patient.world.sh("h", f"sysctl -qw net.ipv{family}.neigh.up0.mcast_solicit=0")
        assert patient.checks()["neighbour search"].status == status
    above = patient.checks()["links above"]
    assert (above.status, "mv0 is on up0" in above.detail) == ("fail", True)


def test_a_pool_that_is_accepted_in_anothers_chain_is_well(patient: Patient) -> None:
    """DROP as policy is no fault if rules let the pool through, both ways."""
    pool = "10.77.0.0/24"
    patient.world.sh("h", f"iptables -P FORWARD DROP; iptables -I FORWARD -s {pool} -j ACCEPT")
    assert patient.checks()[f"iptables FORWARD {pool}"].status == "fail"
    patient.world.sh("h", f"iptables -I FORWARD -d {pool} -j ACCEPT")
    assert patient.checks()[f"iptables FORWARD {pool}"].status == "ok"


def test_the_fix_for_anothers_nft_chain_lets_the_pool_through(patient: Patient) -> None:
    """Typed as shown, and for a host without networks the chain is named before one is made."""
    table = "add table inet mine; add chain inet mine way { type filter hook forward priority 0; policy drop; }"
    patient.world.sh("h", f"nft '{table}'")
    for pool in ("10.77.0.0/24", "fd77::/64"):
        fix = patient.checks()[f"nft forward {pool}"].fix
        patient.world.sh("h", fix.partition(" (")[0])
        assert patient.checks()[f"nft forward {pool}"].status == "ok"
    empty = Patient(patient.world, Surroundings())
    assert "inet mine way has policy drop" in empty.checks()["nft forward"].detail


FOREIGN = [
    ("iptables-nft", "filter FORWARD -d {pool} -j DROP"),
    ("iptables-nft", "filter FORWARD ! -s 203.0.113.0/24 -m comment --comment 'not for us; really' -j DROP"),
    ("iptables-nft", "mangle FORWARD -s {pool} -j DROP"),
    ("iptables-nft", "filter OTHERS -s {pool} -j REJECT"),
    ("iptables-legacy", "filter FORWARD -d {pool} -j DROP"),
    ("ip6tables-nft", "filter FORWARD -d {pool} -j DROP"),
]


@pytest.mark.parametrize(("command", "rule"), FOREIGN)
def test_the_fix_for_anothers_iptables_rule_removes_that_rule_alone(patient: Patient, command: str, rule: str) -> None:
    """Typed as shown: linkspan's own rules are there already, and the agent puts nothing back."""
    pool, other = ("fd77::/64", "2001:db8:9::/64") if command.startswith("ip6") else ("10.77.0.0/24", "203.0.113.0/24")
    table, chain, spec = rule.format(pool=pool).split(" ", 2)
    patient.world.sh(
        "h",
        f"{command} -N OTHERS; {command} -A FORWARD -s {other} -j DROP; {command} -A FORWARD -j OTHERS; "
        + "".join(
            f"{command} -A FORWARD {side} {pool} -m comment --comment 'linkspan: {pool}' -j ACCEPT; "
            for side in ("-s", "-d")
        ),
    )
    before = patient.world.sh("h", f"{command} -t {table} -S")
    patient.world.sh("h", f"{command} -t {table} -I {chain} {spec}")
    found = patient.checks()[f"iptables FORWARD {pool}"]
    assert found.status == "fail"
    patient.world.sh("h", found.fix.partition(" (")[0])
    assert patient.checks()[f"iptables FORWARD {pool}"].status == "ok"
    assert patient.world.sh("h", f"{command} -t {table} -S") == before


def test_features_are_tried_where_nobody_is(patient: Patient) -> None:
    """Neither the links nor the rules of the host's namespace change, and none is left behind."""

    def everything() -> str:
        return patient.world.sh("h", "ip -o link; nft list ruleset; tc qdisc")

    before = everything()
    with patient.world.entered("h"):
        found = kernel_features.probe()
    assert set(found.values()) == {""}
    assert everything() == before


def conf(folder: Path, name: str, plugin: str) -> None:
    """Write a CNI configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f'{{"cniVersion": "1.0.0", "name": "x", "plugins": [{{"type": "{plugin}"}}]}}')


def test_the_order_of_cni_configurations_and_the_plugin_are_checked(patient: Patient) -> None:
    """Missing plugin, one that cannot be executed, one that others come before; then everything is ok."""
    root = patient.around.root
    assert patient.checks()["CNI configuration"].status == "skip"
    conf(root / "etc/cni/net.d", "20-linkspan.conflist", "linkspan")
    assert patient.checks()["CNI plugin"].status == "fail"
    plugin = root / "opt/cni/bin/linkspan"
    plugin.parent.mkdir(parents=True)
    plugin.write_text("")
    assert "chmod" in patient.checks()["CNI plugin"].fix
    plugin.chmod(0o755)
    assert patient.checks()["CNI plugin"].status == "ok"
    conf(root / "etc/cni/net.d", "10-other.conflist", "bridge")
    found = patient.checks()["CNI configuration"]
    assert (found.status, "10-other.conflist" in found.fix) == ("warn", True)
    (root / "etc/cni/net.d/00-broken.conf").write_text("{")
    assert "00-broken.conf" in patient.checks()["CNI configuration"].detail


def test_networkd_that_would_remove_our_routes_is_found(patient: Patient) -> None:
    """It counts only if it runs, and its drop-in file solves it."""
    root = patient.around.root
    assert patient.checks()["systemd-networkd"].status == "ok"
    (root / "run/systemd/netif").mkdir(parents=True)
    (root / "run/systemd/netif/state").write_text("")
    found = patient.checks()["systemd-networkd"]
    assert (found.status, "ManageForeignRoutes=no" in found.fix) == ("warn", True)
    folder = root / "etc/systemd/networkd.conf.d"
    folder.mkdir(parents=True)
    (folder / "x.conf").write_text("[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n")
    assert patient.checks()["systemd-networkd"].status == "ok"
    (root / "etc/systemd/network").mkdir()
    (root / "etc/systemd/network/all.network").write_text("[Match]\nName=*\n\n[Network]\nDHCP=yes\n")
    assert "all.network" in patient.checks()["systemd-networkd links"].detail
