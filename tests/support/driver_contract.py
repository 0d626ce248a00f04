"""The contract of drivers (core/driver_contract.py), held by the kernel's own and by the one in memory."""

from __future__ import annotations

import msgspec

from linkspan.core.addresses import mac, prefix
from linkspan.core.desired import Change
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import Address, Bridge, State

BRIDGE = Bridge("ls-demo", mac("02:00:00:00:00:01"), 1500)
ADDRESS = Address("ls-demo", prefix("10.244.0.1/24"))


def holds(reconciler: Reconciler) -> None:
    """Check that a put and a delete can be repeated, a put changes, and what is on a link goes with it."""

    def seen() -> set[State]:
        return set(reconciler.observed((Bridge, Address)))

    for _ in range(2):
        assert reconciler.apply(Change((BRIDGE, ADDRESS), ())) == {}
        assert seen() == {BRIDGE, ADDRESS}
    smaller = msgspec.structs.replace(BRIDGE, mtu=1400)
    assert reconciler.apply(Change((smaller,), ())) == {}
    assert seen() == {smaller, ADDRESS}
    for _ in range(2):
        assert reconciler.apply(Change((), (smaller,))) == {}
        assert seen() == set()
    assert reconciler.apply(Change((), (ADDRESS,))) == {}
