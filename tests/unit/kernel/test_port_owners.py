"""Owners of host ports: many ports cost one read of the sockets and one walk over the processes."""

from __future__ import annotations

import pytest

from linkspan.kernel.probe import port_owners


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have a listener at each of the ports 9000 to 9099, and note each look at sockets and processes."""
    noted: list[str] = []

    def table(protocol: str) -> list[port_owners.Row]:
        noted.append(protocol)
        return [(bytes(4), port, "0A", str(port)) for port in range(9000, 9100)]

    def processes(inodes: set[str]) -> dict[str, str]:
        noted.append("processes")
        return {inode: f"process {inode}" for inode in inodes}

    monkeypatch.setattr(port_owners._Look, "taken", lambda _look, asked: 9000 <= asked[2] < 9100)
    monkeypatch.setattr(port_owners, "_table", table)
    monkeypatch.setattr(port_owners, "_processes", processes)
    return noted


def test_a_hundred_busy_ports_are_one_look(looks: list[str]) -> None:
    """Each port's process is still named."""
    asked: list[port_owners.Asked] = [("tcp", "", port) for port in range(8999, 9101)]
    found = port_owners.holders(asked)
    assert found == {("tcp", "", port): f"process {port}" for port in range(9000, 9100)}
    assert looks == ["tcp", "processes"]


def test_the_free_port_of_a_range_is_found_without_naming_anybody(looks: list[str]) -> None:
    """The processes are not walked over."""
    assert port_owners.first_free([("tcp", "", port) for port in range(9000, 9102)]) == ("tcp", "", 9100)
    assert port_owners.first_free([("tcp", "", port) for port in range(9000, 9100)]) is None
    assert looks == ["tcp", "tcp"]


def test_a_server_of_ours_is_in_the_way_of_its_own_address_only(looks: list[str]) -> None:
    """An endpoint that publishes the port at every address may have it."""
    ours = [(bytes(4), 9000)]
    assert port_owners.holders([("tcp", "", 9000)], ours) == {}
    assert port_owners.holders([("tcp", "0.0.0.0", 9000)], ours) == {("tcp", "0.0.0.0", 9000): "process 9000"}
