"""A journal that is lost, empty, damaged or of an older backup disconnects no container."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from linkspan.core.errors import Conflict
from support.agent.agent_host import Host, World, clean, first_ip, ids, pings, refused, run
from support.agent.damage import endpoints, forget_records, inside, missing, published
from support.agent.traffic import answers, serving
from support.polling import until

POOLS = ("10.201.0.0/24", "fd00:201::/64")
PORTS = [
    {"host_ip": "", "host_port": 8080, "port": 80, "protocol": "tcp"},
    {"host_ip": "198.51.100.1", "host_port": 8053, "port": 53, "protocol": "udp", "sources": ["198.51.100.0/24"]},
]
BANDWIDTH = {"ingressRate": 8_000_000, "ingressBurst": 8 * 65536, "egressRate": 8_000_000, "egressBurst": 8 * 65536}
LABELS = {"linkspan.io/dns-aliases": "db", "tier": "back"}


def journal(host: Host) -> Path:
    """Return the journal's file."""
    return host.state_dir / "journal.db"


def moved_away(host: Host) -> None:
    """Truncate the journal, read the error of the start, and do what its hint says."""
    with sqlite3.connect(journal(host)) as database:  # all is in the log beside it, where an agent was killed
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    with journal(host).open("r+b") as file:
        file.truncate(file.seek(0, 2) - 4096)
    said = refused(host)
    assert f"{journal(host)} is corrupt" in said
    assert "containers keep their network" in said
    command = said.partition("move it away (")[2].partition(")")[0]
    run(*command.split())
    assert not journal(host).exists()


def emptied(host: Host) -> None:
    """Leave a file of no bytes."""
    journal(host).write_bytes(b"")


LOSSES = [missing, moved_away, emptied]


def outline(host: Host) -> str:
    """Return our rules and their elements, and the links' queueing disciplines."""
    return "".join(sorted(run("nft", "list", "ruleset", netns=host.netns).splitlines(keepends=True)))


def told(host: Host) -> list[str]:
    """Return what the events say of a recovery."""
    events = [json.loads(line) for line in host.client.lines("/v1/events")]
    return [e["what"] for e in events if e["type"] == "recover"]


@pytest.fixture(params=[{}, {"mode": "routed"}], ids=["bridged", "routed"])
def used(request: pytest.FixtureRequest, world: World) -> Any:
    """Return a host with three containers, one of them in two networks, and all that an endpoint may have."""
    host = Host(world)
    host.outside()
    host.start()
    host.network("demo", *POOLS, options=request.param)
    host.network("back", "10.202.0.0/24", options=request.param)
    names = [world.namespace() for _ in range(3)]
    host.attach(names[0], ports=PORTS, labels=LABELS, bandwidth=BANDWIDTH, name="one")
    host.attach(names[1], mac="02:00:00:00:00:77", ips=["10.201.0.77"])
    host.attach(names[1], "back", ifname="net1")
    host.attach(names[2])
    host.containers = names
    published(host, 4)
    try:
        yield host
    finally:
        host.close()


@pytest.mark.parametrize("lose", LOSSES)
def test_a_lost_journal_disconnects_no_container(used: Host, lose: Callable[[Host], None], world: World) -> None:
    """All containers keep their network, whatever happened to the file, and the next address is an unused one."""
    names = used.containers
    before, rules = {name: inside(name) for name in names}, outline(used)
    known = endpoints(used)
    used.stop(signal.SIGKILL)
    lose(used)
    used.start()
    assert {name: inside(name) for name in names} == before
    assert outline(used) == rules
    after = endpoints(used)
    assert {i: {k: v for k, v in e.items() if k != "netns_path"} for i, e in after.items()} == {
        i: {k: v for k, v in e.items() if k != "netns_path"} for i, e in known.items()
    }
    clean(used)
    found = used.client.call("GET", "/v1/status")
    assert (found["rebuilt"]["endpoints"], found["rebuilt"]["unnamed"], found["orphans"]) == (4, [], [])
    assert "4 endpoints were rebuilt" in used.cli("status")
    assert any("4 from the store's records" in what for what in told(used))
    held = {first_ip(e) for e in known.values()}
    assert not {first_ip(used.attach(world.namespace())) for _ in range(20)} & held
    for name in names:
        assert pings(name, "10.201.0.1")
    used.restart(signal.SIGKILL)
    assert endpoints(used).keys() >= known.keys()
    assert used.client.call("GET", "/v1/status")["rebuilt"]["endpoints"] == 0
    for name in names:
        assert used.detach(name) > 0
    assert not any(e["id"] in names for e in used.client.call("GET", "/v1/endpoints"))


@pytest.mark.parametrize("lose", LOSSES)
def test_without_the_store_s_records_the_kernel_tells(
    used: Host, lose: Callable[[Host], None], world: World
) -> None:
    """Addresses, MACs, ports and the limit of the host's end are the kernel's; so is the id of a named namespace."""
    names = used.containers
    before, known = {name: inside(name) for name in names}, endpoints(used)
    used.stop(signal.SIGKILL)
    lose(used)
    forget_records(used)
    used.start()
    assert {name: inside(name) for name in names} == before
    after = endpoints(used)
    kept = ("addresses", "mac", "gateways", "host_ifname", "ports", "mtu", "network")
    assert {i: [sorted(map(str, e[k])) if k == "ports" else e[k] for k in kept] for i, e in after.items()} == {
        i: [sorted(map(str, e[k])) if k == "ports" else e[k] for k in kept] for i, e in known.items()
    }
    clean(used)
    held = {first_ip(e) for e in known.values()}
    assert not {first_ip(used.attach(world.namespace())) for _ in range(20)} & held


def test_a_container_whose_id_nobody_knows_keeps_its_network(host: Host, world: World) -> None:
    """It is known by its pair's name, in `status` too, until its runtime's next call says the id."""
    host.network("demo", *POOLS)
    one, two = world.namespace(), world.namespace()
    first, second = host.attach(one, id="c0ffee"), host.attach(two, id="decaf")
    published(host, 2)
    host.stop(signal.SIGKILL)
    missing(host)
    forget_records(host)
    host.start()
    assert ids(host) == {first["host_ifname"], second["host_ifname"]}
    assert set(host.client.call("GET", "/v1/status")["rebuilt"]["unnamed"]) == ids(host)
    assert "its container's id is unknown" in host.cli("status")
    assert pings(one, first_ip(second))
    clean(host)
    assert host.detach("c0ffee") == 1
    assert first["host_ifname"] not in host.links()
    with pytest.raises(Conflict, match="attached already"):
        host.attach(two, id="decaf", ifname="eth0")
    assert ids(host) == {"decaf"}
    assert pings(two, "10.201.0.1")


def test_a_container_that_died_meanwhile_holds_nothing(host: Host, world: World) -> None:
    """Its record is in the store, and its pair is not in the kernel: it is not rebuilt, and its address is free."""
    host.network("demo", "10.201.0.0/29")
    stays, dies = world.namespace(), world.namespace()
    host.attach(stays)
    gone = host.attach(dies)
    published(host, 2)
    host.stop(signal.SIGKILL)
    missing(host)
    world.delete(dies)
    until(lambda: gone["host_ifname"] not in host.links(), "the pair went with its namespace")
    host.start()
    assert ids(host) == {stays}
    clean(host)
    published(host, 1)
    assert first_ip(gone) in {first_ip(host.attach(world.namespace())) for _ in range(4)}


def test_a_journal_of_an_older_backup_takes_nothing_back(host: Host, world: World) -> None:
    """A container stays detached that left since, goes on if it came since, and keeps the address that it got since."""
    host.network("demo", "10.201.0.0/24")
    left, stays, moved, comes = (world.namespace() for _ in range(4))
    for name in (left, stays, moved):
        host.attach(name)
    published(host, 3)
    host.stop()
    backup = host.folder / "backup.db"
    shutil.copy(journal(host), backup)
    host.start()
    host.detach(left)
    host.detach(moved)
    host.attach(comes)
    new = host.attach(moved)
    published(host, 3)
    before = {name: inside(name) for name in (left, stays, moved, comes)}
    host.stop()
    missing(host)
    shutil.copy(backup, journal(host))
    host.start()
    assert ids(host) == {stays, moved, comes}
    assert endpoints(host)[moved, "eth0"]["addresses"] == new["addresses"]
    assert {name: inside(name) for name in before} == before
    clean(host)
    assert any("is older than the last agent" in what for what in told(host))


@contextlib.contextmanager
def orphaned_for(world: World, seconds: float) -> Iterator[Host]:
    """Give a host whose agent runs, and removes an orphan after this time."""
    host = Host(world)
    host.config.write_text(f"{host.config.read_text()}orphans_after = {seconds}\n")
    host.start()
    try:
        yield host
    finally:
        host.close()


def test_an_orphan_stays_for_a_grace_time_that_is_shown(world: World) -> None:
    """A pair of which nobody says whose it is goes when its time has come, and not at the start."""
    with orphaned_for(world, 3.0) as host:
        host.network("demo", "10.201.0.0/24")
        name = world.namespace()
        gone = host.attach(name)
        host.stop(signal.SIGKILL)
        missing(host)
        forget_records(host)
        run("nft", "delete", "table", "bridge", "linkspan", netns=host.netns)
        host.start()
        (orphan,) = host.client.call("GET", "/v1/status")["orphans"]
        assert orphan["link"] == gone["host_ifname"]
        assert 0 < orphan["removed_in"] <= 3.0
        assert "is an orphan, and is removed in" in host.cli("status", code=3)
        assert gone["host_ifname"] in host.links()
        assert any("is an orphan" in what for what in told(host))
        until(lambda: gone["host_ifname"] not in host.links(), "the orphan went", 10)
        assert host.client.call("GET", "/v1/status")["orphans"] == []
        clean(host)


def test_policies_change_while_there_is_an_orphan(world: World) -> None:
    """Their rules are no orphan's: a changed one counts at once, and a deleted one is gone."""
    with orphaned_for(world, 60.0) as host:
        host.network("demo", "10.201.0.0/24")
        host.network("far", "10.202.0.0/24", options={"mode": "routed"})
        names = [world.namespace() for _ in range(3)]
        host.attach(names[0])
        target = first_ip(host.attach(names[1], "far", name="web"))
        host.attach(names[2], "far", name="client")
        policy = host.folder / "policy.yaml"
        policy.write_text("policy: web\nselect: {name: web}\ningress: []\n")
        host.cli("policy", "apply", str(policy))
        host.stop(signal.SIGKILL)
        missing(host)
        forget_records(host)
        run("nft", "delete", "table", "bridge", "linkspan", netns=host.netns)
        host.start()
        assert len(host.client.call("GET", "/v1/status")["orphans"]) == 1
        with serving(names[1], 80):
            policy.write_text("policy: web\nselect: {network: far}\ningress: [{ports: [81]}]\n")
            host.cli("policy", "apply", str(policy))
            assert not answers(names[2], target, 80)
            host.cli("policy", "delete", "web")
            assert answers(names[2], target, 80)
        assert "policy_in" not in run("nft", "list", "ruleset", netns=host.netns)


def test_when_everything_is_lost_containers_go_on_for_the_grace_time(world: World) -> None:
    """Journal, store and snapshot: nobody knows a network, and bridge, rules and pairs stay until the time is over."""
    with orphaned_for(world, 20.0) as host:
        host.network("demo", "10.201.0.0/24")
        one, two = world.namespace(), world.namespace()
        address, _ = first_ip(host.attach(one)), host.attach(two)
        rules = sorted(run("nft", "list", "ruleset", netns=host.netns).splitlines())
        before = {name: inside(name) for name in (one, two)}
        host.stop(signal.SIGKILL)
        missing(host)
        shutil.rmtree(host.state_dir / "store")
        (host.state_dir / "replica.json").unlink()
        host.start()
        assert len(host.client.call("GET", "/v1/status")["orphans"]) == 2
        assert {name: inside(name) for name in (one, two)} == before
        assert sorted(run("nft", "list", "ruleset", netns=host.netns).splitlines()) == rules
        assert pings(two, address)
        assert pings(two, "10.201.0.1")
        host.network("demo", "10.201.0.0/24")  # the same again: its containers are known by that
        until(lambda: ids(host) == {one, two}, "both are endpoints of the network")
        assert host.client.call("GET", "/v1/status")["orphans"] == []
        assert {name: inside(name) for name in (one, two)} == before
        assert pings(two, address)
        clean(host)


def lose_networks(host: Host) -> None:
    """Kill the agent, take the store and the snapshot away, and start: the journal has endpoints of no network."""
    host.stop(signal.SIGKILL)
    shutil.rmtree(host.state_dir / "store")
    (host.state_dir / "replica.json").unlink()
    host.start()


def test_a_journal_of_networks_that_nobody_knows_ends_no_container(host: Host, world: World) -> None:
    """Nothing says that their network was deleted: containers continue, and are what the journal says with it again."""
    host.network("demo", *POOLS)
    one, two = world.namespace(), world.namespace()
    address, _ = first_ip(host.attach(one, id="c0ffee", name="web", labels=LABELS)), host.attach(two, id="decaf")
    before, known = {name: inside(name) for name in (one, two)}, endpoints(host)
    lose_networks(host)
    assert len(host.client.call("GET", "/v1/status")["orphans"]) == 2
    assert {name: inside(name) for name in (one, two)} == before
    assert pings(two, address)
    host.network("demo", *POOLS)
    until(lambda: ids(host) == {"c0ffee", "decaf"}, "both are endpoints of the network")
    assert endpoints(host) == known
    assert host.client.call("GET", "/v1/status")["orphans"] == []
    host.restart(signal.SIGKILL)
    assert endpoints(host) == known
    assert {name: inside(name) for name in (one, two)} == before
    assert pings(two, address)
    clean(host)
    assert host.detach("c0ffee") == 1


def test_a_journal_forgets_an_orphan_that_was_removed(world: World) -> None:
    """Its network came back too late: the container can be attached again by the same id, to the same network."""
    with orphaned_for(world, 3.0) as host:
        host.network("demo", "10.201.0.0/24")
        name = world.namespace()
        gone = host.attach(name, id="c0ffee")
        lose_networks(host)
        assert [one["link"] for one in host.client.call("GET", "/v1/status")["orphans"]] == [gone["host_ifname"]]
        until(lambda: gone["host_ifname"] not in host.links(), "the orphan went", 10)
        host.network("demo", "10.201.0.0/24")
        host.attach(name, id="c0ffee")
        assert ids(host) == {"c0ffee"}
        assert pings(name, "10.201.0.1")
        clean(host)


def test_ports_on_the_host_s_own_network_stay_taken(host: Host, world: World) -> None:
    """Such an endpoint has no pair: only the store's record shows it, and its port is not given to another."""
    host.client.call("POST", "/v1/networks", {"name": "own", "backend": "host"})
    port = {"host_ip": "", "host_port": 8080, "port": 8080, "protocol": "tcp"}
    wish = {"id": "web", "network": "own", "ifname": "eth0", "namespace_fd": -1, "namespace_path": "", "ports": [port]}
    host.client.call("POST", "/v1/attach", wish)
    published(host, 1)
    host.stop(signal.SIGKILL)
    missing(host)
    host.start()
    assert ids(host) == {"web"}
    assert host.client.call("GET", "/v1/endpoints")[0]["ports"] == [port]


def test_a_queued_removal_counts_for_what_was_rebuilt(host: Host, world: World) -> None:
    """A removal that the plugin queued while no agent ran is done, though the journal was lost meanwhile."""
    host.network("demo", "10.201.0.0/24")
    name = world.namespace()
    made = host.attach(name, id="pod1")
    published(host, 1)
    host.stop(signal.SIGKILL)
    missing(host)
    forget_records(host)
    removal = {
        "container_id": "pod1",
        "ifname": "eth0",
        "network": "demo",
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    }
    (host.socket.parent / "queue" / "one.json").write_text(json.dumps(removal))
    host.start()
    until(lambda: made["host_ifname"] not in host.links(), "it is detached", 5)
    assert ids(host) == set()
