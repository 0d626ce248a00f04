"""Two hosts with one name: no command takes one of them by chance, and each is told of the other."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent.agent_host import Host, World
from support.polling import until

Pair = tuple[Host, Host]


@pytest.fixture
def pair(world: World, tmp_path: Path) -> Iterator[Pair]:
    """Two hosts of one cluster, whose ids were made, and whose name is the machine's."""
    hosts = Host(world), Host(world)
    try:
        for host in hosts:
            host.config.write_text(host.config.read_text() + f"store = 'sqlite://{tmp_path}/shared'\n")
            host.start()
        for host in hosts:
            until(lambda host=host: len(host.json("host", "list")) == 2, "each knows both")
        yield hosts
    finally:
        for host in hosts:
            host.close()


def id_of(host: Host) -> str:
    """Return a host's id."""
    return (host.state_dir / "host-id").read_text().strip()


def test_a_name_of_two_hosts_is_refused_and_an_id_is_taken(pair: Pair) -> None:
    """By every command that takes a host, and by trace; the output has the id."""
    host, name, ids = pair[0], socket.gethostname(), sorted(map(id_of, pair))
    for words in (
        ("host", "show", name),
        ("host", "drain", name),
        ("host", "undrain", name),
        ("host", "set", "wireguard.port=51821", "--host", name),
        ("host", "remove", name, "--force"),
        ("trace", f"host:{name}", "host:"),
    ):
        assert f"2 hosts have the name {name}: ids {ids[0]}, {ids[1]}; give one" in host.cli(*words, code=1), words
    assert host.cli("host", "drain", ids[1]) == f"host {name} (id {ids[1]}) takes no new containers\n"
    assert {one["id"]: one["state"] for one in host.json("host", "list")} == {ids[0]: "alive", ids[1]: "drained"}
    listed = host.cli("host", "list")
    assert all(f"{name} (id {id_})" in listed for id_ in ids)


def test_both_hosts_tell_of_it(pair: Pair) -> None:
    """The second at its start, and status and doctor on each."""
    name, ids = socket.gethostname(), sorted(map(id_of, pair))
    said = f"2 hosts have the name {name}: ids {ids[0]}, {ids[1]}"
    assert f"{said}, of which {id_of(pair[1])} is this host's id" in pair[1].cli("events")
    assert said in pair[1].log.read_text()
    for host in pair:
        assert said in host.cli("status")
        assert host.json("status")["namesakes"] == [{"name": name, "ids": ids}]
        assert [c["detail"] for c in host.json("doctor") if c["check"] == "host names"] == [said]


def test_uninstall_says_which_one_is_to_be_removed(pair: Pair) -> None:
    """By its id: the name would take the other one out."""
    host, own = pair[1], id_of(pair[1])
    words = ("--config", str(host.config), "--state-dir", str(host.state_dir))
    host.stop()
    assert f"linkspan host remove {own}" in host.cli("uninstall", "--dry-run", *words)
    assert f"linkspan host remove {own}" in host.cli("uninstall", "--yes", *words)
    pair[0].cli("host", "remove", own, "--force")
    assert [one["id"] for one in pair[0].json("host", "list") if one["state"] == "alive"] == [id_of(pair[0])]


def test_the_first_host_of_a_store_is_told_so(pair: Pair) -> None:
    """If other hosts should be there, the URL is wrong: its prefix was forgotten, for example."""
    first, second = (host.log.read_text() for host in pair)
    assert "this host is the first one in store sqlite:///" in first
    assert "this host is the first one" not in second
