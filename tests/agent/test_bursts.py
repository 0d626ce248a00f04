"""Many at once: all of them succeed or are refused, and none leaves anything."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from linkspan.core.errors import LinkspanError
from support.agent.agent_host import Host, World, first_ip

AT_ONCE = 200


def ids(host: Host) -> set[str]:
    """Return the ids of what is attached."""
    return {e["id"] for e in host.client.call("GET", "/v1/endpoints")}


def clean(host: Host) -> None:
    """Nothing leaks and nothing differs."""
    assert host.check() == {"ok": True, "leaked": [], "duplicate": [], "orphaned": []}
    assert host.differences() == []


def test_two_hundred_at_once(host: Host, world: World) -> None:
    """200 attachments at a time all succeed with addresses of their own, and are all detached at once."""
    host.network("demo", "10.201.0.0/16", "fd00:201::/64")
    before = host.links()
    names = [world.namespace() for _ in range(4)]
    wishes = [(names[n % 4], f"c{n}", f"net{n // 4}") for n in range(AT_ONCE)]

    def attach(wish: tuple[str, str, str]) -> dict[str, Any]:
        return host.attach(wish[0], id=wish[1], ifname=wish[2])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        endpoints = list(pool.map(attach, wishes))
    addresses = [a for e in endpoints for a in e["addresses"]]
    assert len(set(addresses)) == 2 * AT_ONCE
    assert len({e["mac"] for e in endpoints}) == AT_ONCE
    clean(host)
    host.restart(signal.SIGKILL)
    clean(host)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert sum(pool.map(host.detach, [wish[1] for wish in wishes])) == AT_ONCE
    clean(host)
    assert host.links() == before
    assert ids(host) == set()


def test_one_identity_is_attached_once(host: Host, container: Callable[[], str]) -> None:
    """Of twenty attaches of one interface at a time one wins, and the others are refused without a trace."""
    host.network("demo", "10.201.0.0/24")
    name = container()

    def attach(_: int) -> str:
        try:
            return first_ip(host.attach(name, ifname="eth0"))
        except LinkspanError as error:
            return error.code

    with ThreadPoolExecutor(20) as pool:
        answers = sorted(pool.map(attach, range(20)))
    assert answers[1:] == ["conflict"] * 19
    clean(host)
    held = [h for h in host.client.call("GET", "/v1/addresses") if h["state"] == "held"]
    assert [h["address"] for h in held] == answers[:1]


def test_a_network_that_goes_while_containers_come(host: Host, world: World) -> None:
    """Deleting a network by force in a burst of attaches leaves no endpoint without a network."""
    names = [world.namespace() for _ in range(4)]
    for _ in range(3):
        host.network("demo", "10.201.0.0/24")

        def attach(number: int) -> bool:
            try:
                host.attach(names[number % 4], id=f"c{number}", ifname=f"net{number}")
            except LinkspanError:
                return False
            return True

        def delete(_: int) -> bool:
            host.client.call("DELETE", "/v1/networks/demo?force")
            return False

        with ThreadPoolExecutor(24) as pool:
            list(pool.map(lambda n: delete(n) if n == 12 else attach(n), range(24)))
        assert ids(host) == set()
        clean(host)
        assert host.links() == set()
