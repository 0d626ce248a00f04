"""This machine, as the agent has it: the drivers, their reconciler, and the turn by which one thread uses them."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.errors import LinkspanError, NotFound
from linkspan.core.model import Endpoint, Facts
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.ipsec import CHARON, IKE_PORTS, LIBIPSEC, LIBIPSEC_FOLDERS, Strongswan
from linkspan.core.states.programs import BGP_PORT, BIRD, Bird, located
from linkspan.core.states.wireguard import Tools, WireguardPeer
from linkspan.kernel.drivers import (
    ipip_table,
    ipsec,
    ipsec_links,
    links,
    neighbours,
    nftables_objects,
    processes,
    shaper,
    sysctl,
    tunnels,
    wireguard,
)
from linkspan.kernel.drivers.routes import foreign_routes, uplink_mtu
from linkspan.kernel.io.namespaces import NOBODY, Namespaces
from linkspan.kernel.io.netlink import Sockets
from linkspan.kernel.kinds import kinds
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe import keys
from linkspan.kernel.probe.facts import observe_facts
from linkspan.kernel.probe.port_owners import holder, listeners
from linkspan.kernel.used_kinds import UsedKinds

SPEAKER = "bgp"
"""The folder of the BGP speaker's files in the state folder."""

P = ParamSpec("P")
R = TypeVar("R")


def ipip_helper(table: Path) -> tuple[str, ...]:
    """Return how to start the user-space IPIP endpoint, without its addresses.

    An agent starts a helper again whose argv is another one. So this stays as it is, or an upgrade cuts every tunnel.
    """
    # By its file and isolated: it needs the standard library only, and starts in 20 ms whatever is installed.
    program = Path(__file__).parents[1] / "ipip_endpoint.py"
    return sys.executable, "-IS", str(program), "--table", str(table)


class Machine:
    """Everything below is used by one thread at a time; ``Worker`` is the way in."""

    def __init__(self, state_dir: Path) -> None:
        self.namespaces = Namespaces()
        self.sockets = Sockets(self.namespaces)
        host = LocalHost(state_dir, kinds(), self.namespaces, self.sockets)
        self.sysctls = host.driver(sysctl.driver)
        self.links = host.driver(links.driver)
        self.tunnels = host.driver(tunnels.driver)
        self.neighbours = host.driver(neighbours.driver)
        self.tunnel_table = host.driver(ipip_table.driver)
        self.wireguard = host.driver(wireguard.driver)
        self.firewall = host.driver(nftables_objects.driver)
        self.shaper = host.driver(shaper.driver)
        self.processes = host.driver(processes.driver)
        self.ipsec_links = host.driver(ipsec_links.driver)
        self.ike = ipsec.control(host)
        """The control socket of strongSwan's daemon."""
        self._speaker_folder = state_dir / SPEAKER
        served = [(kind, host.driver(kind.driver)) for kind in host.kinds if kind.driver is not None]
        self.used_kinds = UsedKinds(state_dir, host.kinds)
        self.reconciler = Reconciler(served, self.sockets.release, self.used_kinds.note, self.sockets.one_look)

    def close(self) -> None:
        """Let go of sockets and threads; what is in the kernel stays."""
        self.links.close()
        self.firewall.close()
        self.sysctls.watch.close()
        self.sockets.close()

    def enter(self, endpoint: Endpoint) -> None:
        """Remember the way into an endpoint's namespace, where it has one.

        One whose cookie is not known is not entered by its inode: that may be another container's by now.
        """
        if endpoint.netns:
            unknown = NOBODY if self.namespaces.tells_apart else 0
            self.namespaces.register(endpoint.netns, endpoint.netns_path, endpoint.netns_cookie or unknown)

    def leave(self, endpoint: Endpoint, every: Iterable[Endpoint]) -> None:
        """Forget the way into an endpoint's namespace, unless another one of ``every`` is in it."""
        self.namespaces.forget(endpoint.netns)
        for other in every:
            if other.netns == endpoint.netns and other.identity != endpoint.identity:
                self.enter(other)

    def reached(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint with a path that leads to its namespace now, and with the namespace's cookie.

        Its pair says which namespace that is: another one may have its inode by now. Where the pair does not lead to
        the one with the inode, the endpoint is returned as it is.
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
        """Tell whether an endpoint's namespace still exists and can be entered; one with its inode is not enough."""
        if self.namespaces.tells_apart and not endpoint.netns_cookie:
            return bool(self.reached(endpoint).netns_cookie)
        try:
            os.close(self.namespaces.lookup(endpoint.netns, endpoint.netns_path, endpoint.netns_cookie)[0])
        except NotFound:
            return False
        return True

    def facts(self) -> Facts:
        """Observe what backends must know."""
        found = msgspec.structs.replace(
            observe_facts(self.sysctls),
            bird=self._bird(),
            strongswan=self._strongswan(),
            wireguard=self.tools(),
        )
        if self.tunnels.ipip().by == "kernel":
            return found
        return msgspec.structs.replace(found, ipip_helper=ipip_helper(self.tunnel_table.path))

    def _bird(self) -> Bird | None:
        """Return the BGP speaker's programs, and who listens at its port while it does not run itself."""
        speaker, client = shutil.which("bird"), shutil.which("birdc")
        if speaker is None or client is None:
            return None
        others = () if self.processes.pid(BIRD) else tuple(listeners("tcp", BGP_PORT))
        return Bird(speaker, client, str(self._speaker_folder), others)

    def _strongswan(self) -> Strongswan | None:
        """Return strongSwan's daemon, and who holds IKE's ports while it does not run itself."""
        daemon = located("charon-systemd")
        if daemon is None:
            return None
        holders: list[tuple[int, str]] = []
        if not self.processes.pid(CHARON):
            found = ((port, holder("udp", "", port)) for port in IKE_PORTS)
            holders = [(port, who) for port, who in found if who]
        plugin = any(Path(folder, LIBIPSEC).exists() for folder in LIBIPSEC_FOLDERS)
        return Strongswan(daemon, str(self.ike.parent), self.ipsec_links.kernel(), plugin, tuple(holders))

    def tools(self) -> Tools:
        """Return what there is for WireGuard; nothing is run where nothing has changed."""
        kernel = self.tunnels.wireguard()
        if shutil.which("wg") is None:
            why = "the program wg is not installed on this host"
            return Tools(problem=why, hint="install the package wireguard-tools")
        if not kernel.by:
            return Tools(problem=kernel.why_not)
        if kernel.by == "user space" and shutil.which("wireguard-go") is None:
            why = "the kernel has no WireGuard, and wireguard-go is not installed"
            return Tools(problem=why, hint="install the package wireguard-go")
        try:
            self.wireguard.prepare()
        except LinkspanError as error:
            return Tools(problem=error.message, hint=error.hint)
        found = keys.look(self.wireguard.keys)
        file = str(self.wireguard.keys.folder / keys.PRIVATE)
        peers = self.reconciler.desired.states((WireguardPeer,)).values()
        return Tools(
            found.public,
            found.next,
            file,
            self.wireguard.program(),
            unusable=found.problem,
            unshared=keys.amiss({s.shared_file for s in peers if isinstance(s, WireguardPeer)}),
            hint=found.hint,
        )

    def ports(self) -> frozenset[int]:
        """Return the ports of the sockets by which the host is changed: events tell our own changes by them."""
        return frozenset({self.sockets.port, self.shaper.port, *self.links.ports})

    def routes(self) -> dict[Prefix, str]:
        """Return the host's own routes: destination to how it leads on."""
        return foreign_routes(self.sockets)

    def mtu(self) -> int:
        """Return the MTU of the link of the host's default route, 1500 where it has none."""
        return uplink_mtu(self.sockets)


class Worker:
    """The machine, which one thread at a time may use: the worker's own, or briefly the loop's."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kernel")
        self._using = threading.Lock()
        self._waiting = 0
        self.machine: Machine

    async def start(self, state_dir: Path) -> None:
        """Make the machine in the thread."""
        self.machine = await self.run(Machine, state_dir)

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function in the worker thread and return what it returns; calls are served in order of coming."""

        def alone() -> R:
            with self._using:
                return function(*args, **kwargs)

        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, alone)
        finally:
            self._waiting -= 1

    async def run_brief(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function of a millisecond or two: here and now where the machine is free, else as ``run`` does.

        The way to another thread and back would cost a quarter of an attach.
        """
        if self._waiting or not self._using.acquire(blocking=False):
            return await self.run(function, *args, **kwargs)
        try:
            return function(*args, **kwargs)
        finally:
            self._using.release()

    async def stop(self) -> None:
        """Finish what is under way, close the machine and end the thread."""
        if hasattr(self, "machine"):
            await self.run(self.machine.close)
        self._pool.shutdown(wait=False)
