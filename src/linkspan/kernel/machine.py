"""Machine: this host's drivers and reconciler, and what is observed with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.desired import Desired
from linkspan.core.errors import NotFound
from linkspan.core.host_view import Facts
from linkspan.core.model import Endpoint, Underlay
from linkspan.core.program import Program
from linkspan.core.reconcile import Reconciler
from linkspan.kernel.drivers import (
    egress_addresses,
    ipip_table,
    ipsec,
    links,
    neighbours_and_fdb,
    nftables_links,
    nftables_objects,
    processes,
    sysctl,
    tunnels,
    wireguard,
)
from linkspan.kernel.drivers.routes import default_link, foreign_routes, uplink_mtu
from linkspan.kernel.facts import observe_facts
from linkspan.kernel.io.namespaces import NOBODY, Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.kinds import kinds
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe import underlay
from linkspan.kernel.used_kinds import UsedKinds

Found = TypeVar("Found", bound=Program)


class Machine:
    """Everything below is used by one thread at a time; ``Worker`` controls access.

    Any thread may use ``namespaces``, ``enter`` and ``leave``.
    """

    def __init__(self, state_dir: Path) -> None:
        self.namespaces = Namespaces()
        self.sockets = Sockets(self.namespaces)
        self._host = host = LocalHost(state_dir, kinds(), self.namespaces, self.sockets)
        self._finders: dict[type[Program], Callable[[LocalHost, Desired], Any]] = {
            program: find for kind in host.kinds for program, find in kind.finds.items()
        }
        self.sysctls = host.driver(sysctl.driver)
        self.links = host.driver(links.driver)
        self.tunnels = host.driver(tunnels.driver)
        self.neighbours = host.driver(neighbours_and_fdb.driver)
        self.tunnel_table = host.driver(ipip_table.driver)
        self.wireguard = host.driver(wireguard.driver)
        self.firewall = host.driver(nftables_objects.driver)
        self.processes = host.driver(processes.driver)
        self.egress = host.driver(egress_addresses.driver)
        self.ike = ipsec.control(host)
        """The control socket of strongSwan's daemon."""
        served = [(kind, host.driver(kind.driver)) for kind in host.kinds if kind.driver is not None]
        self.used_kinds = UsedKinds(state_dir, host.kinds)
        self.reconciler = Reconciler(served, self.sockets.release, self.used_kinds.note, self.sockets.one_look)

    def close(self) -> None:
        """Close sockets and threads; the kernel keeps everything."""
        self.links.close()
        self.firewall.close()
        self.sysctls.close()
        self.sockets.close()
        self.namespaces.close()

    def keep_rules(self) -> None:
        """Keep the last agent's firewall rules, if it left any, until a resync replaces them in one transaction.

        A new version's chains would otherwise be in force before their sets are filled, and drop packets. New
        elements of sets that the last agent had are put at once, before the devices and routes that need them: an
        address to close, or one more encrypted network, is not without its guard. Only chains that the last
        agent did not have (of a newer version, or the first encrypted network) are in force no sooner than that
        resync. An unreachable route keeps that network's packets off the default route meanwhile.
        """
        if self.firewall.has_tables:
            rules = (kind.state for kind in (*nftables_objects.KINDS, *nftables_links.KINDS))
            self.reconciler.leave(rules, nftables_objects.alone)

    def release(self) -> None:
        """Close the sockets that were opened in containers."""
        self.sockets.release()

    def enter(self, endpoint: Endpoint) -> None:
        """Remember the path of an endpoint's namespace, if it has one.

        A namespace with an unknown cookie is not entered by its inode, which may be another container's by
        now.
        """
        if endpoint.netns:
            unknown = NOBODY if self.namespaces.tells_apart else 0
            self.namespaces.register(endpoint.netns, endpoint.netns_path, endpoint.netns_cookie or unknown)

    def leave(self, endpoint: Endpoint, every: Iterable[Endpoint]) -> None:
        """Forget the path of an endpoint's namespace; if another one of ``every`` is in it, remember that one's.

        A path is known at every moment in between: otherwise a thread that opens the namespace then would accept any
        with its inode.
        """
        left = [one for one in every if one.netns == endpoint.netns and one.identity != endpoint.identity]
        if left:
            self.enter(max(left, key=lambda one: bool(one.netns_cookie)))
        else:
            self.namespaces.forget(endpoint.netns)

    def reached(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint with a present path of its namespace, and with the namespace's cookie.

        Its pair identifies the namespace, because another one may have its inode by now. If the pair does not
        lead to the namespace with the inode, return the endpoint unchanged.
        """
        if not endpoint.netns:
            return endpoint
        try:
            fd, path = self.namespaces.lookup(endpoint.netns, endpoint.netns_path)
        except NotFound:
            return endpoint
        try:
            if not self.links.leads_into(endpoint.host_ifname, fd):
                return endpoint
            cookie = self.namespaces.cookie(fd)
        finally:
            os.close(fd)
        return msgspec.structs.replace(endpoint, netns_path=path, netns_cookie=cookie)

    def alive(self, endpoint: Endpoint) -> bool:
        """Return whether an endpoint's namespace still exists and can be entered; one with its inode is not enough."""
        if self.namespaces.tells_apart and not endpoint.netns_cookie:
            return bool(self.reached(endpoint).netns_cookie)
        try:
            os.close(self.namespaces.lookup(endpoint.netns, endpoint.netns_path, endpoint.netns_cookie)[0])
        except NotFound:
            return False
        return True

    def facts(self) -> Facts:
        """Observe what backends must know."""
        found = (self.program(kind) for kind in self._finders)
        programs = tuple(program for program in found if program is not None)
        return msgspec.structs.replace(observe_facts(self.sysctls), programs=programs)

    def program(self, kind: type[Found]) -> Found | None:
        """Look for a program that may serve this host."""
        found: Found | None = self._finders[kind](self._host, self.reconciler.desired)
        return found

    def ports(self) -> frozenset[int]:
        """Return the ports of the sockets that change the host: events recognise our own changes by them."""
        return frozenset({self.sockets.port, *self.links.ports})

    def routes(self) -> dict[Prefix, str]:
        """Return the host's own routes: destination to how it continues."""
        return foreign_routes(self.sockets)

    def underlay(self, choice: str, advertise: tuple[str, ...] = ()) -> Underlay | None:
        """Return the underlay that ``choice`` names (``underlay.observe``), '' for the default route's link."""
        return underlay.observe(self.sockets, choice or default_link(self.sockets), advertise)

    def mtu(self) -> int:
        """Return the MTU of the link of the host's default route, 1500 if it has none."""
        return uplink_mtu(self.sockets)
