"""A backend and two kinds of a package outside the tree, taken through everything that linkspan does with its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from linkspan.lab import agents, record
from support.lab.migration_runs import MigratingRun
from support.outside_package import PACKAGE, install
from support.polling import HEALED_WITHIN, until

POOL = "10.90.0.0/16"


def restart(cluster: MigratingRun, host: str) -> None:
    """Kill a host's agent and start it again, with the packages that this process's environment names."""
    cluster.run("break", host, "agent-kill")
    lab = record.load(cluster.name)
    agents.start(lab, [lab.host(host)])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MigratingRun]:
    """Give three hosts, of which h3 lacks the package, with a network of the package's backend and two containers."""
    folder = tmp_path_factory.mktemp("packages")
    install(folder)
    found, before = MigratingRun(), os.environ.get("PYTHONPATH")
    try:
        found.run("up", "--hosts 3 --containers-per-host 1")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
        for host in ("h1", "h2"):
            restart(found, host)
        found.exec("h1", f"linkspan network create over --backend overlay --pool {POOL}")
        found.joined("over", ("h1", "h2"))
        for host in ("h1", "h2"):
            found.run("attach", host, f"{host}x", "--network over")
        yield found
    finally:
        found.run("down")
        os.environ.pop("PYTHONPATH", None)
        if before is not None:
            os.environ["PYTHONPATH"] = before


def plan(cluster: MigratingRun, host: str, network: str = "over") -> list[dict[str, str]]:
    """Return the plan of a network on a host."""
    found: list[dict[str, str]] = json.loads(cluster.exec(host, f"linkspan plan --network {network} -o json"))
    return found


def device(cluster: MigratingRun, host: str, network: str = "over") -> str:
    """Return the name of a network's device on a host."""
    (name,) = {row["key"] for row in plan(cluster, host, network) if row["kind"] == "Overlay"}
    return name


def is_there(cluster: MigratingRun, host: str, name: str) -> bool:
    """Return whether a host has a link of this name."""
    return any(link["ifname"] == name for link in json.loads(cluster.ip(host, "-j link")))


def rules(cluster: MigratingRun, host: str) -> list[str]:
    """Return the rules of the host that have the package's number."""
    return [line for line in cluster.ip(host, "rule").splitlines() if line.endswith("proto 77")]


def crosses(cluster: MigratingRun, one: str = "h1x", other: str = "h2x") -> bool:
    """Return whether each of two containers reaches the other."""
    pairs = ((one, other), (other, one))
    return all(cluster.pings(source, cluster.address(target)) for source, target in pairs)


def test_containers_reach_each_other_across_hosts(cluster: MigratingRun) -> None:
    """By the package's device, and by a rule of its kind."""
    until(lambda: crosses(cluster), "both reach each other")
    for host in ("h1", "h2"):
        assert is_there(cluster, host, device(cluster, host))
        assert len(rules(cluster, host)) == 1
        assert cluster.exec(host, "linkspan diff").startswith("no drift")


def test_a_host_without_the_package_says_so_and_goes_on(cluster: MigratingRun) -> None:
    """It skips only that network: its containers of other networks are reached."""
    until(lambda: any(r["key"] == "networks/over" for r in cluster.status("h3")["records"]), "h3 names the network")
    (why,) = [r["why"] for r in cluster.status("h3")["records"] if r["key"] == "networks/over"]
    assert "backend 'overlay' does not exist on this host" in why
    assert cluster.pings("c1", cluster.address("c3"))


def test_what_somebody_broke_is_healed(cluster: MigratingRun) -> None:
    """A deleted device with everything on it, and a deleted rule, for which no event comes."""
    cluster.ip("h1", f"link del {device(cluster, 'h1')}")
    until(lambda: crosses(cluster), "the device is back", HEALED_WITHIN)
    cluster.ip("h1", "rule del pref 30077")
    until(lambda: len(rules(cluster, "h1")) == 1, "the rule is back", HEALED_WITHIN)
    kinds = {heal["kind"] for heal in cluster.status("h1")["heals"]}
    assert kinds >= {"Overlay", "HostRule", "FdbEntry", "Route"}


def test_a_trace_follows_the_tunnel(cluster: MigratingRun) -> None:
    """It reads the device's wire, and the other host's part unwraps it."""
    found = json.loads(cluster.exec("h1", f"linkspan trace h1x {cluster.address('h2x')} -o json"))
    assert found["verdict"] == "reachable"
    (wrapped,) = [hop for hop in found["hops"] if hop["action"] == "encapsulated"]
    assert wrapped["device"] == device(cluster, "h1")
    assert "udp 8473" in " ".join(next(hop for hop in found["hops"] if hop["action"] == "left")["headers"])


def test_the_plan_typed_by_hand_makes_what_the_agent_made(cluster: MigratingRun) -> None:
    """While no agent runs, the plan's commands bring back what was removed."""
    name = device(cluster, "h1")
    rows = plan(cluster, "h1")
    cluster.run("break", "h1", "agent-kill")
    try:
        cluster.ip("h1", f"link del {name}")
        cluster.ip("h1", "rule del pref 30077")
        assert cluster.silent("h1x", cluster.address("h2x"))
        for row in rows:  # what is left of the rest, the rules for example, stands already
            words = row["command"]
            if row["kind"] in ("Overlay", "HostRule") or f"dev {name}" in words or f"/{name}/" in words:
                cluster.inside("h1", words)
        until(lambda: crosses(cluster), "both reach each other")
        assert len(rules(cluster, "h1")) == 1
    finally:
        lab = record.load(cluster.name)
        agents.start(lab, [lab.host("h1")])
    assert cluster.exec("h1", "linkspan diff").startswith("no drift")


def test_a_network_migrates_from_the_package_s_backend(cluster: MigratingRun) -> None:
    """Its device goes with the old way, and containers reach each other by the new one."""
    cluster.exec("h1", "linkspan network create moving --backend overlay --pool 10.91.0.0/16")
    cluster.joined("moving", ("h1", "h2"))
    for host in ("h1", "h2"):
        cluster.run("attach", host, f"{host}m", "--network moving")
    until(lambda: crosses(cluster, "h1m", "h2m"), "both reach each other by overlay")
    name = device(cluster, "h1", "moving")
    cluster.migrate("vxlan", name="moving")
    cluster.ended("vxlan", ("h1", "h2"), "moving")
    until(lambda: not is_there(cluster, "h1", name), "the old device is gone")
    until(lambda: crosses(cluster, "h1m", "h2m"), "both reach each other by vxlan")
    assert len(rules(cluster, "h1")) == 1


def test_uninstall_takes_the_package_s_objects_away(cluster: MigratingRun) -> None:
    """Without the package it names what it cannot see."""
    folder, name = cluster.folder / "h2", device(cluster, "h2")
    words = f"linkspan uninstall --yes --force -o json --config {folder}/agent.toml --state-dir {folder}/state"
    with_package = os.environ.pop("PYTHONPATH")
    try:
        left = json.loads(cluster.run("exec", "h2", "--", words, code=-1).stdout)["left"]
    finally:
        os.environ["PYTHONPATH"] = with_package
    assert any("objects of kind Overlay" in one and PACKAGE in one for one in left)
    assert is_there(cluster, "h2", name)
    assert json.loads(cluster.exec("h2", words))["left"] == []
    assert not is_there(cluster, "h2", name)
    assert rules(cluster, "h2") == []
