"""Ports of the host and their endpoints, also while a thread looks up listening processes."""

from __future__ import annotations

import asyncio

import pytest

from linkspan.core.errors import Conflict, Exhausted
from linkspan.core.model import Endpoint, Port, PortRange
from linkspan.core.ports import Listeners, PortTable
from support.records.listeners import NoListener, SlowListeners

WEB = Port("", 8080, 80, "tcp")
RANGE = PortRange("", 9000, 9002, 80, "tcp")


def _endpoint(container: str, ifname: str, *ports: Port) -> Endpoint:
    return Endpoint(id=container, ifname=ifname, network=f"net-{ifname}", ports=ports)


def _reserve(table: PortTable, endpoint: Endpoint, *ranges: PortRange) -> tuple[Port, ...]:
    return asyncio.run(table.reserve(endpoint, ranges))


def _table(listeners: Listeners | None = None) -> PortTable:
    return PortTable(listeners or NoListener())


def test_interfaces_of_one_container_hold_a_port_together() -> None:
    """It is free when the last of them is gone, and not before."""
    table, first, second = _table(), _endpoint("c1", "eth0", WEB), _endpoint("c1", "eth1", WEB)
    _reserve(table, first)
    _reserve(table, second)
    table.release(first)
    with pytest.raises(Conflict, match="8080/tcp is in use by endpoint c1 of network net-eth1"):
        _reserve(table, _endpoint("c2", "eth0", WEB))
    table.release(second)
    _reserve(table, _endpoint("c2", "eth0", WEB))


def test_one_container_cannot_lead_a_port_to_two_places() -> None:
    """Its second interface must publish the very same; another port of the container's is a conflict."""
    table = _table()
    _reserve(table, _endpoint("c1", "eth0", WEB))
    with pytest.raises(Conflict, match="in use by endpoint c1"):
        _reserve(table, _endpoint("c1", "eth1", Port("", 8080, 81, "tcp")))


def test_what_could_not_be_had_is_given_back() -> None:
    """If one of several ports is in use by another, all are released, and the other interface keeps shared ones."""
    table, other = _table(), Port("", 9090, 90, "tcp")
    _reserve(table, _endpoint("c1", "eth0", WEB))
    _reserve(table, _endpoint("c2", "eth0", other))
    with pytest.raises(Conflict, match="9090/tcp"):
        _reserve(table, _endpoint("c1", "eth1", WEB, other))
    with pytest.raises(Conflict, match="8080/tcp"):
        _reserve(table, _endpoint("c2", "eth1", WEB))


def test_the_loop_goes_on_while_processes_are_searched_and_nobody_else_gets_the_port() -> None:
    """The port is held first: a second endpoint that asks meanwhile is refused."""

    async def attach_two() -> None:
        slow = SlowListeners()
        table = _table(slow)
        first = asyncio.create_task(table.reserve(_endpoint("c1", "eth0", WEB)))
        await slow.asked.wait()  # by the loop, which is free therefore
        with pytest.raises(Conflict, match="in use by endpoint c1"):
            await table.reserve(_endpoint("c2", "eth0", WEB))
        slow.let()
        assert await first == (WEB,)

    asyncio.run(attach_two())


def test_a_port_at_which_a_process_listens_is_given_back() -> None:
    """The error names the process, and the endpoint holds none of its ports."""

    async def attach() -> None:
        slow, free = SlowListeners(8080), Port("", 9090, 90, "tcp")
        slow.let()
        table = _table(slow)
        with pytest.raises(Conflict, match="8080/tcp is in use by process 8080"):
            await table.reserve(_endpoint("c1", "eth0", free, WEB))
        assert (table.holder(free), table.holder(WEB)) == ("", "")
        assert slow.looks == [(9090, 8080)]

    asyncio.run(attach())


def test_a_cancelled_attach_gives_its_ports_back() -> None:
    """Its runtime may have ended while the processes were searched."""

    async def attach() -> None:
        slow = SlowListeners()
        table = _table(slow)
        first = asyncio.create_task(table.reserve(_endpoint("c1", "eth0", WEB)))
        await slow.asked.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert table.holder(WEB) == ""

    asyncio.run(attach())


def test_a_busy_range_is_one_look() -> None:
    """A second check names the process that uses its first port."""

    async def attach() -> None:
        slow = SlowListeners(9000, 9001, 9002)
        slow.let()
        with pytest.raises(Exhausted, match=r"9000-9002/tcp is free.*9000 is in use by process 9000"):
            await _table(slow).reserve(_endpoint("c1", "eth0"), (RANGE,))
        assert slow.looks == [(9000, 9001, 9002), (9000,)]

    asyncio.run(attach())


def test_two_that_ask_for_a_port_of_one_range_get_two() -> None:
    """Both looks found the same port free; the second endpoint looks at those that are left."""

    async def attach_two() -> None:
        slow = SlowListeners(9000)
        table = _table(slow)
        both = asyncio.gather(*(table.reserve(_endpoint(id_, "eth0"), (RANGE,)) for id_ in ("c1", "c2")))
        await slow.asked.wait()
        slow.let()
        assert {ports[0].host_port for ports in await both} == {9001, 9002}

    asyncio.run(attach_two())


def test_an_endpoint_keeps_its_ports_until_it_has_others() -> None:
    """The old one stays reserved until the new one is certain; without the new one, it stays."""

    async def publish() -> None:
        slow, old, new = SlowListeners(9090), _endpoint("c1", "eth0", WEB), Port("", 9090, 80, "tcp")
        table = _table(slow)
        table.restore(old)
        change = asyncio.create_task(table.reserve(_endpoint("c1", "eth0", new), instead=old))
        await slow.asked.wait()
        with pytest.raises(Conflict, match="in use by endpoint c1"):
            await table.reserve(_endpoint("c2", "eth0", WEB))
        slow.let()
        with pytest.raises(Conflict, match="9090/tcp is in use by process 9090"):
            await change
        assert "endpoint c1" in table.holder(WEB)
        assert table.holder(new) == ""

    asyncio.run(publish())


def test_an_endpoint_may_publish_its_ports_otherwise() -> None:
    """The same host port may lead to another port, or be one of a range; a port no longer published is free."""

    async def publish() -> None:
        table, other = _table(), Port("", 9090, 90, "tcp")
        before = _endpoint("c1", "eth0", WEB, other)
        table.restore(before)
        changed = _endpoint("c1", "eth0", Port("", 8080, 81, "tcp"))
        ports = await table.reserve(changed, (PortRange("", 9090, 9091, 90, "tcp"),), instead=before)
        assert ports == (Port("", 8080, 81, "tcp"), other)
        table.release(_endpoint("c1", "eth0", *ports))
        assert (table.holder(WEB), table.holder(other)) == ("", "")

    asyncio.run(publish())
