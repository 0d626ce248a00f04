from __future__ import annotations

import pytest

from linkspan.core.addresses import mac, prefix
from linkspan.core.errors import KernelError
from linkspan.kernel.probe.gratuitous_arp import announce
from support.netns.machine_fixtures import inside, joined, run
from support.polling import until

NEW = "02:00:00:00:00:77"


@pytest.mark.parametrize("address", ["10.99.1.2", "fd99:1::2"])
def test_a_neighbour_that_knew_the_old_owner_learns_the_new_one(
    machine: str, container: str, address: str
) -> None:
    """The neighbour entry of an address that is given again is overwritten at once."""
    joined(container, "c0", 1)
    run("ip", "neigh", "replace", address, "lladdr", "02:00:00:00:00:01", "dev", "c0", "nud", "stale")
    with inside(container):
        run("ip", "link", "set", "eth0", "address", NEW)
        announce("eth0", mac(NEW), [prefix(address)])
    until(lambda: NEW in run("ip", "neigh", "show", address), "the neighbour's new MAC", 40)


def test_a_device_that_is_gone_is_named(machine: str) -> None:
    """The error says which device."""
    with pytest.raises(KernelError, match="lsp9"):
        announce("lsp9", mac(NEW), [prefix("10.0.0.1")])
