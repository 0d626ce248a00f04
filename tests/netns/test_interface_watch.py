"""A container's interface that somebody else changes: its values at the beginning, and after each change."""

from __future__ import annotations

import contextlib
import os

from linkspan.core.addresses import mac
from linkspan.kernel.io.namespaces import Namespaces, open_namespace
from linkspan.kernel.probe.interface_watch import InterfaceWatch
from support.netns.machine_fixtures import run
from support.polling import until

OLD, NEW = "02:00:00:00:00:66", "02:00:00:00:00:77"


def test_changes_of_the_interface_are_seen_and_those_of_others_are_not(container: str, spaces: Namespaces) -> None:
    """The values after the last change are returned once."""
    run("ip", "link", "add", "eth0", "address", OLD, "type", "veth", "peer", "name", "eth1", netns=container)
    fd = open_namespace(f"/run/netns/{container}")
    try:
        with contextlib.closing(InterfaceWatch(spaces, "eth0", fd)) as watch:
            assert watch.found == (mac(OLD), 1500)
            run("ip", "link", "set", "eth1", "mtu", "1300", netns=container)
            run("ip", "link", "set", "eth0", "address", NEW, netns=container)
            run("ip", "link", "set", "eth0", "mtu", "1400", netns=container)
            until(lambda: watch.changed() == (mac(NEW), 1400), "the interface's last values")
            assert watch.changed() is None
    finally:
        os.close(fd)


def test_an_interface_that_is_missing_has_no_values(container: str, spaces: Namespaces) -> None:
    """It may have been removed before the agent listens."""
    fd = open_namespace(f"/run/netns/{container}")
    try:
        with contextlib.closing(InterfaceWatch(spaces, "eth7", fd)) as watch:
            assert watch.found is None
    finally:
        os.close(fd)
