"""Routes to container prefixes on a real FRR, by a real sshd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import State
from linkspan.core.states.openflow import RouterRoute
from linkspan.kernel.drivers.frr import KINDS, FrrDriver
from linkspan.lab.sockets import inside
from support.routers import frr_router
from support.routers.frr_router import FrrRouter

pytestmark = pytest.mark.skipif(bool(frr_router.missing()), reason="needs FRR and openssh-server: apt install them")


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrrRouter]:
    """Give a router that runs."""
    folder = tmp_path_factory.mktemp("frr")
    for path in (folder, *list(folder.parents)[:2]):
        path.chmod(0o755)  # FRR's user looks for its sockets there
    found = FrrRouter(folder, f"lst-frr{os.getpid()}")
    try:
        found.start()
        yield found
    finally:
        found.stop()


def _route(target: str, via: str) -> RouterRoute:
    return RouterRoute(prefix(target), prefix(via).packed)


WANTED = [
    _route("10.244.1.0/24", "192.0.2.1"), _route("10.244.2.0/24", "192.0.2.2"), _route("10.244.2.77/32", "192.0.2.1"),
    _route("fd00:244:0:1::/64", "2001:db8:1::1"),
]  # fmt: skip


def _driver(router: FrrRouter, address: str = "") -> FrrDriver:
    return FrrDriver("r1", address or router.address, router.ssh)


def _engine(router: FrrRouter, address: str = "") -> Reconciler:
    driver = _driver(router, address)
    return Reconciler((kind, driver) for kind in KINDS)


def _put(engine: Reconciler, states: list[RouterRoute]) -> set[State]:
    engine.desired.replace(("test",), states)
    assert engine.resync().failed == {}
    return set(engine.observed((RouterRoute,)))


def test_routes_come_change_and_go_and_others_stay(router: FrrRouter) -> None:
    """The kernel has them; a prefix that moves leads only to its new host; an operator's own route stays."""
    router.vtysh("configure terminal", "ip route 203.0.113.0/24 192.0.2.9", "ip route 203.0.113.128/25 192.0.2.9 tag 7")
    engine = _engine(router)
    with inside(router.name):
        assert _put(engine, WANTED) == set(WANTED)
        router.awaited(lambda: "10.244.1.0/24 " in router.routes() and "fd00:244:0:1::/64" in router.routes(6))
        assert "via 192.0.2.1" in router.routes()
        moved = [_route("10.244.1.0/24", "192.0.2.2"), *WANTED[1:]]
        assert _put(engine, moved) == set(moved)
        assert router.vtysh("show running-config").count("10.244.1.0/24") == 1
        assert _put(engine, []) == set()
    config = router.vtysh("show running-config")
    assert "203.0.113.0/24" in config
    assert "203.0.113.128/25" in config
    assert "10.244" not in config


def test_what_an_operator_takes_away_is_put_back(router: FrrRouter) -> None:
    """And a router that starts again, with none, gets all; here the controller runs on the router itself."""
    engine = _engine(router, f"vtysh:{router.folder}/run")
    _put(engine, WANTED)
    router.vtysh("configure terminal", "no ip route 10.244.1.0/24 192.0.2.1")
    report = engine.resync()
    assert [heal.what for heal in report.heals] == ["added"]
    router.end_daemons()
    with pytest.raises(Unavailable, match="router r1 at vtysh:"):
        engine.resync()
    router.daemons()
    assert len(engine.resync().heals) == len(WANTED)
    assert _put(engine, []) == set()


def test_a_router_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With its address, and a fix; an invalid address is refused."""
    nobody = FrrDriver("r9", "ssh:root@127.0.0.1:1", {})
    assert "router r9 at ssh:root@127.0.0.1:1" in nobody.probe().why_not
    with pytest.raises(Unavailable, match="router r8 at vtysh:"):
        list(FrrDriver("r8", f"vtysh:{tmp_path}", {}).observe(0))
    with pytest.raises(Invalid, match="not understood"):
        FrrDriver("r7", "telnet:192.0.2.1", {})
