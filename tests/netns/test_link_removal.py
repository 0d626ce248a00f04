"""Links are removed without waiting for acknowledgements, but never without an end."""

from __future__ import annotations

import contextlib
import socket
import subprocess

from linkspan.core.states.host import Bridge
from linkspan.kernel.drivers.links import LinkDriver, Removal
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.netlink import DELLINK, Socket
from linkspan.kernel.io.sockets import Sockets


def test_a_deletion_that_is_not_answered_ends_in_an_error(machine: str) -> None:
    """The kernel never completes the deletions: each link is reported, by its key and name."""
    removal = Removal(threads=0)
    failed = removal.remove({17: (("Veth", "lsr1"), "lsr1"), 18: (("Veth", "lsr2"), "lsr2")}, 0.05)
    assert set(failed) == {("Veth", "lsr1"), ("Veth", "lsr2")}
    assert failed["Veth", "lsr1"].message == "delete link lsr1: no answer of the kernel in 0.05 s"
    removal.close()


def test_what_is_gone_already_is_removed(machine: str) -> None:
    """A link is removed at its notification, and an index that nobody has is done."""
    subprocess.run(["ip", "link", "add", "lsr1", "type", "veth", "peer", "name", "x"], check=True)
    removal = Removal(threads=2)
    index = socket.if_nametoindex("lsr1")
    assert removal.remove({index: (("Veth", "lsr1"), "lsr1"), index + 100: (("Veth", "lsr2"), "lsr2")}) == {}
    assert "lsr1" not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    removal.close()


def test_a_link_that_does_not_make_way_for_another_is_an_error_soon(machine: str) -> None:
    """An attach may wait for it on the agent's loop; the kernel never completes the deletion."""
    subprocess.run(["ip", "link", "add", "lsr1", "type", "veth", "peer", "name", "x"], check=True)
    subprocess.run(["ip", "link", "property", "add", "dev", "lsr1", "altname", "linkspan:1:eth9"], check=True)
    sockets = Sockets(Namespaces())
    driver, bridge = LinkDriver(sockets, removal_threads=0), Bridge("lsr1", bytes.fromhex("0200000000aa"), 1500)
    failed = driver.apply([bridge], [])
    assert failed[bridge.key].message == "delete link lsr1: no answer of the kernel in 0.5 s"
    driver.close()
    sockets.close()


def test_the_kernel_keeps_other_changes_of_links_from_a_removal(machine: str) -> None:
    """An attach makes eight of them; each would wake up the thread that waits for a link's end."""
    with contextlib.closing(Socket(groups=[1])) as told:
        told.only(DELLINK)
        for words in ("add lsr1 type veth peer name x", "set lsr1 up", "del lsr1"):
            subprocess.run(["ip", "link", *words.split()], check=True)
        kinds = []
        with contextlib.suppress(BlockingIOError):
            while True:
                kinds += [kind for kind, _, _ in told.receive()]
    assert set(kinds) == {DELLINK}
