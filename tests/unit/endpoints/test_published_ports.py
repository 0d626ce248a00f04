"""The elements of published ports are read back as the ports that they were made of."""

from __future__ import annotations

import msgspec
import pytest

from linkspan.core.model import Port
from linkspan.endpoints import published_ports
from linkspan.endpoints.published_ports import is_one, place
from support.records.one_host import endpoint, network

BOTH = network("demo", "10.1.0.0/24", "fd01::/64", routed=True)
TWO = endpoint(BOTH, "10.1.0.5", "fd01::5")
ONE = endpoint(BOTH, "10.1.0.5")


@pytest.mark.parametrize(
    "port",
    [
        Port("", 8080, 80, "tcp"),
        Port("0.0.0.0", 8080, 80, "tcp"),
        Port("::", 8080, 80, "udp"),
        Port("192.0.2.1", 53, 53, "udp"),
        Port("fd02::1", 5060, 5061, "sctp"),
        Port("", 8080, 80, "tcp", ("0.0.0.0/0", "2001:db8::/32")),
        Port("", 8080, 80, "tcp", ("192.0.2.7/32", "198.51.100.0/24")),
        Port("::", 8080, 80, "udp", ("2001:db8::1/128",)),
        Port("192.0.2.1", 53, 53, "udp", ("192.0.2.0/24",)),
    ],
)
def test_a_port_of_an_endpoint_with_both_families_is_read_as_it_was_made(port: Port) -> None:
    """At every address, at those of one family, and at one."""
    made = list(published_ports.states([(BOTH, msgspec.structs.replace(TWO, ports=(port,)))]))
    assert published_ports.read(made, {4, 6}) == (port,)
    assert {place(state)[2] for state in made if is_one(state) and state.data} == {str(port.port)}


def test_every_address_of_the_only_family_is_every_address() -> None:
    """An endpoint with IPv4 alone says nothing of the other family."""
    port = Port("0.0.0.0", 8080, 80, "tcp")
    made = list(published_ports.states([(BOTH, msgspec.structs.replace(ONE, ports=(port,)))]))
    assert published_ports.read(made, {4}) == (Port("", 8080, 80, "tcp"),)


def test_sources_of_a_family_that_the_endpoint_lacks_keep_the_port_closed() -> None:
    """Nobody comes in by IPv4, and what is read back is not open for everybody."""
    port = Port("", 8080, 80, "tcp", ("2001:db8::/32",))
    made = list(published_ports.states([(BOTH, msgspec.structs.replace(ONE, ports=(port,)))]))
    sets = [state.set for state in made if is_one(state)]
    assert sets == ["publish4", "limited4", "permitted6"]
    assert published_ports.read(made, {4}) == (port,)


def test_a_port_at_an_address_of_a_family_that_the_endpoint_lacks_leads_nowhere() -> None:
    """Such a port has no element in the sets of the rules."""
    made = published_ports.states([(BOTH, msgspec.structs.replace(ONE, ports=(Port("fd02::1", 80, 80, "tcp"),)))])
    assert not any(map(is_one, made))
