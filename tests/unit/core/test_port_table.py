"""Which endpoint holds which port of the host, where a container has several interfaces."""

from __future__ import annotations

import pytest

from linkspan.core.errors import Conflict
from linkspan.core.model import Endpoint, Port
from linkspan.core.ports import PortTable

WEB = Port("", 8080, 80, "tcp")


def _endpoint(container: str, ifname: str, *ports: Port) -> Endpoint:
    return Endpoint(id=container, ifname=ifname, network=f"net-{ifname}", ports=ports)


def _table() -> PortTable:
    return PortTable(lambda _protocol, _address, _port: "")


def test_interfaces_of_one_container_hold_a_port_together() -> None:
    """It is free when the last of them is gone, and not before."""
    table, first, second = _table(), _endpoint("c1", "eth0", WEB), _endpoint("c1", "eth1", WEB)
    table.reserve(first)
    table.reserve(second)
    table.release(first)
    with pytest.raises(Conflict, match="8080/tcp is held by endpoint c1 of network net-eth1"):
        table.reserve(_endpoint("c2", "eth0", WEB))
    table.release(second)
    table.reserve(_endpoint("c2", "eth0", WEB))


def test_one_container_cannot_lead_a_port_to_two_places() -> None:
    """Its second interface must publish the very same; another port of the container's is a conflict."""
    table = _table()
    table.reserve(_endpoint("c1", "eth0", WEB))
    with pytest.raises(Conflict, match="held by endpoint c1"):
        table.reserve(_endpoint("c1", "eth1", Port("", 8080, 81, "tcp")))


def test_what_could_not_be_had_is_given_back() -> None:
    """Of several ports none stays held where one is another's, and the other interface keeps what it shares."""
    table, other = _table(), Port("", 9090, 90, "tcp")
    table.reserve(_endpoint("c1", "eth0", WEB))
    table.reserve(_endpoint("c2", "eth0", other))
    with pytest.raises(Conflict, match="9090/tcp"):
        table.reserve(_endpoint("c1", "eth1", WEB, other))
    with pytest.raises(Conflict, match="8080/tcp"):
        table.reserve(_endpoint("c2", "eth1", WEB))
