"""Egress by the IPIP helper on the real kernel: packets go to the holder by their source, only it sends answers."""

from __future__ import annotations

import json

import pytest

from linkspan.core.addresses import prefix
from linkspan.ipip_endpoint import drops
from linkspan.kernel.drivers.egress_addresses import EgressAddressDriver
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.probe import arp
from support.netns.forgery import Listener, datagram, send
from support.netns.leaving import EXIT, leaving, source
from support.netns.machine_fixtures import joined, run
from support.netns.overlay import Cluster, network
from support.polling import until

OUTSIDE = "192.0.2.9"
DEMO = network("demo", 77, "ipip")


def test_a_network_of_ipip_leaves_by_the_holder(trio: Cluster) -> None:
    """From every host; what another host sends in the outside's name is dropped, and so is what begins there."""
    trio.joined([DEMO])
    running = [host.machine.processes._living()["ipip"].pid for host in trio.hosts]
    with leaving(trio, DEMO, 3):
        for number in (1, 2, 3):
            until(lambda n=number: source(trio, f"c{n}", "x", OUTSIDE) == EXIT, f"c{number} leaves by h3", 40)
            assert trio.hosts[number - 1].differs() == []
        table = trio.hosts[1].machine.tunnel_table.path
        listener = Listener(trio)
        before = drops(table)["stranger"]
        for name in ("h1", "h3"):
            send(trio, name, datagram("198.51.100.1"), udp=False)
            assert not listener.heard(), f"what {name} sends for the outside does not come in"
        assert drops(table)["stranger"] == before + 1, "the helper takes what the holder sends, a rule refuses it"
        listener.close()
        assert trio.pings(1, 2, DEMO)
    until(lambda: source(trio, "c1", "x", OUTSIDE) == "192.0.2.1", "c1 leaves by its own host again", 40)
    assert "lsipip" not in trio.world.sh("h1", "ip route show table all | grep 'table 77' || true")
    assert running != [host.machine.processes._living()["ipip"].pid for host in trio.hosts]


@pytest.mark.parametrize("family", [4, 6])
def test_whoever_has_an_address_already_answers(spaces: Namespaces, container: str, family: int) -> None:
    """By ARP or neighbour solicitation; nobody answers for a free address, and the host itself does not."""
    joined(container, "up0", 1)
    taken, free = ("10.99.1.2", "10.99.1.9") if family == 4 else ("fd99:1::2", "fd99:1::9")
    mac = json.loads(run("ip", "-j", "link", "show", "eth0", netns=container))[0]["address"]
    driver = EgressAddressDriver(Sockets(spaces))
    asked = driver.asking([prefix(taken), prefix(free), prefix("198.51.100.1")])
    assert asked.keys() == {"up0"}
    assert asked["up0"].keys() == {prefix(taken).packed, prefix(free).packed}

    def answered() -> bool:
        found = arp.answering("up0", asked["up0"], 2, 0.3)
        return {address: one.hex(":") for address, one in found.items()} == {prefix(taken).packed: mac}

    until(answered, "the one that has it answers, once the new link is ready", 10)
