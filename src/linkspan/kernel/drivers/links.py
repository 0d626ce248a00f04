"""Links: bridges, veth pairs, and the containers' ends of them.

A veth pair is created with its peer already in the container's namespace, its alternative name, its master
and hairpin set, and up, by one send of four messages: no kill of the agent can fall between them. A link is
ours by an alternative name that begins with ``linkspan:``; it names the namespace and interface of the other
end.
"""

from __future__ import annotations

import errno
import os
import queue
import select
import shlex
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from linkspan.core.addresses import mac_text
from linkspan.core.driver_contract import Support
from linkspan.core.errors import Conflict, Exhausted, KernelError, LinkspanError
from linkspan.core.kinds import Event, Kind, Link, Sort, named
from linkspan.core.shell import Shell
from linkspan.core.states.host import ALTNAME, HOST, Bridge, Interface, Key, State, Veth
from linkspan.kernel.drivers.link_attributes import BORN_BRIDGE, amiss, other_mac, repairs
from linkspan.kernel.io import link_messages
from linkspan.kernel.io.link_messages import (
    ADDRESS,
    ALT_IFNAME,
    BRPORT_HAIRPIN,
    IFINFO,
    IFNAME,
    INFO_DATA,
    INFO_KIND,
    INFO_SLAVE_DATA,
    INFO_SLAVE_KIND,
    LINK_NETNSID,
    LINKINFO,
    MASTER,
    MTU,
    NESTED,
    NET_NS_FD,
    PROP_LIST,
    VETH_PEER,
    ifinfo,
)
from linkspan.kernel.io.netlink import (
    DELLINK,
    F_CREATE,
    F_EXCL,
    NEWLINK,
    NEWLINKPROP,
    SETLINK,
    Message,
    Socket,
    attr,
    attributes,
    text,
    u32,
)
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost

_LINK_GROUP = 1  # RTNLGRP_LINK
_GETNSID = 90  # linux/rtnetlink.h
_NETNSA_NSID, _NETNSA_FD = 1, 3  # linux/net_namespace.h
LEAVING = 5.0
"""Seconds after which a link that was to be deleted does not count as leaving any more, whatever has become of it."""
Leaving = dict[int, float]
"""The links that are being deleted, by index, and since when (monotonic clock); one counts for LEAVING seconds."""
BRIDGE_PORTS = 1023
"""Ports that a bridge takes: BR_MAX_PORTS in net/bridge/br_private.h, less the number that is never used."""


def _like(there: link_messages.Link, state: Bridge | Veth) -> bool:
    """Return whether kind and MAC are the state's; our MACs follow from names, so foreign links differ."""
    kind = "bridge" if isinstance(state, Bridge) else "veth"
    return there.kind == kind and there.mac == state.mac


class LinkDriver:
    """Bridge, Veth and Interface."""

    def __init__(self, sockets: Sockets, removal_threads: int = 16) -> None:
        self._sockets = sockets
        self._removal = Removal(removal_threads)

    def close(self) -> None:
        """End the removal threads."""
        self._removal.close()

    @property
    def ports(self) -> set[int]:
        """Return the ports of the sockets that delete links, by which events recognise our own changes."""
        return self._removal.ports

    @property
    def leaving(self) -> Leaving:
        """Return the links that are being deleted; events take out those that are gone."""
        return self._removal.leaving

    def probe(self) -> Support:
        """Return support: every kernel that runs containers has bridges and veth pairs."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return our bridges and veth pairs on the host; in a container, every veth end."""
        links = self._sockets.links(netns)
        if netns != HOST:
            return [state for state in (_interface(netns, link) for link in links) if state]
        names = link_messages.names_of(links)
        return [state for state in (_host_link(link, names) for link in links) if state]

    def interface(self, netns: int, name: str) -> Interface | None:
        """Return a container's end by its name, None if there is none."""
        found = (s for s in self.observe(netns) if isinstance(s, Interface) and s.name == name)
        return next(found, None)

    def leads_into(self, name: str, fd: int) -> bool:
        """Return whether the other end of the host's link with this name is in an open namespace."""
        there = self._sockets.find(HOST, name)
        if there is None or LINK_NETNSID not in there.found:
            return False
        question = Message(_GETNSID, 0, bytes(4) + u32(_NETNSA_FD, fd), "find the number of a namespace")
        answer = attributes(self._sockets.at(HOST).get(question), 4)
        # The kernel gave the namespace a number when it reported the other end's namespace.
        return answer.get(_NETNSA_NSID) == there.found[LINK_NETNSID]

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Make, repair and remove links; a foreign link with the same name is a Conflict."""
        failed: dict[Key, LinkspanError] = {}
        self._sockets.forget_indexes()
        for state in put:
            try:
                match state:
                    case Bridge():
                        self._put_bridge(state)
                    case Veth():
                        self._put_veth(state)
                    case Interface():
                        self._put_interface(state)
            except LinkspanError as error:
                failed[state.key] = error
        failed.update(self._remove([s for s in delete if isinstance(s, Bridge | Veth)]))
        return failed

    def _remove(self, states: Iterable[Bridge | Veth]) -> dict[Key, LinkspanError]:
        """Remove links; one that is gone, or not ours, counts as removed."""
        found: dict[int, tuple[Key, str]] = {}
        failed: dict[Key, LinkspanError] = {}
        for state in states:
            try:
                there = self._sockets.find(HOST, state.name)
            except KernelError as error:
                failed[state.key] = error
            else:
                if there and (there.ours or _like(there, state)):
                    found[there.number] = (state.key, state.name)
        return failed | (self._removal.remove(found) if found else {})

    def _put_bridge(self, state: Bridge) -> None:
        body = text(IFNAME, state.name) + attr(ADDRESS, state.mac)
        info = text(INFO_KIND, "bridge") + attr(INFO_DATA | NESTED, BORN_BRIDGE)
        kind = attr(LINKINFO | NESTED, info)
        # Created with another MTU: only a later change keeps the bridge from following its ports' MTUs
        # (br_change_mtu).
        born = ifinfo() + body + u32(MTU, state.mtu - 1) + kind
        birth = Message(NEWLINK, F_CREATE | F_EXCL, born, f"add bridge {state.name}")
        finish = ifinfo(up=True) + text(IFNAME, state.name) + u32(MTU, state.mtu)
        self._create(state, birth, [Message(SETLINK, 0, finish, f"set bridge {state.name} up")])

    def _put_veth(self, state: Veth) -> None:
        name = text(IFNAME, state.name)
        body = name + u32(MTU, state.mtu)
        body += u32(MASTER, self._sockets.index(HOST, state.master) if state.master else 0)
        way = "up" if state.up else "down"
        finish = [Message(SETLINK, 0, ifinfo(state.up) + body, f"set link {state.name} {way}")]
        if state.master:
            hairpin = attr(BRPORT_HAIRPIN, b"\1" if state.hairpin else b"\0")
            slave = text(INFO_SLAVE_KIND, "bridge") + attr(INFO_SLAVE_DATA | NESTED, hairpin)
            port = ifinfo() + name + attr(LINKINFO | NESTED, slave)
            finish.append(Message(NEWLINK, 0, port, f"set hairpin on port {state.name}"))
        fd = self._sockets.namespaces.open(state.peer_netns)
        try:
            peer = ifinfo() + text(IFNAME, state.peer_name) + u32(NET_NS_FD, fd) + u32(MTU, state.mtu)
            info = text(INFO_KIND, "veth") + attr(INFO_DATA | NESTED, attr(VETH_PEER | NESTED, peer))
            what = f"add veth pair {state.name} to {state.peer_name}"
            born = ifinfo() + body + attr(ADDRESS, state.mac) + attr(LINKINFO | NESTED, info)
            birth = Message(NEWLINK, F_CREATE | F_EXCL, born, what)
            self._create(state, birth, finish)
        except KernelError as error:
            raise self._explained(state, error) from error
        finally:
            os.close(fd)

    def _create(self, state: Bridge | Veth, birth: Message, finish: list[Message]) -> None:
        """Create a link and finish it, in one send; if it exists and is ours, only finish it.

        The driver looks for it first: if the creation fails, the other messages of the send would change a
        foreign link. A link with our kind and our MAC, but no alternative name, is ours too: somebody removed
        the name.
        """
        names = (
            ifinfo() + text(IFNAME, state.name) + attr(PROP_LIST | NESTED, text(ALT_IFNAME, state.altname))
        )
        altname = Message(NEWLINKPROP, F_CREATE | F_EXCL, names, f"name link {state.name} {state.altname}")
        batch = [birth, altname, *finish]
        if there := self._sockets.find(HOST, state.name):
            known = there.altnames
            wrong = [*other_mac(state.name, state.mac, there.found), *_repairs(there, state)]
            if state.altname in known:
                batch = [*finish, *wrong]
            elif not there.ours and _like(there, state):
                batch = [altname, *finish, *wrong]
            else:
                self._remove_stale(state, there)
        elif renamed := self._sockets.find(HOST, state.altname, ALT_IFNAME):
            # It has the container's end, or the bridge's ports.
            self._replace(state, renamed)
        for error in self._sockets.at(HOST).batch(batch):
            if error is not None:
                raise error

    def _remove_stale(self, state: Bridge | Veth, there: link_messages.Link) -> None:
        """Remove a link of ours that has the name but leads elsewhere; a foreign link is a Conflict."""
        if not there.ours:
            raise Conflict(
                f"link {state.name} exists and is not linkspan's", f"remove or rename it: ip link del {state.name}"
            )
        self._replace(state, there)

    def _replace(self, state: Bridge | Veth, there: link_messages.Link) -> None:
        """Remove a link of ours that is in the way of a state; raises if it stays."""
        for error in self._removal.remove({there.number: (state.key, state.name)}, REPLACED).values():
            raise error

    def _explained(self, state: Veth, error: KernelError) -> LinkspanError:
        """Return an error that explains more than the kernel's number."""
        if error.errno == errno.EEXIST:
            return Conflict(
                f"interface {state.peer_name} exists in the container's namespace already",
                "detach it first, or choose another name with --ifname",
            )
        if error.errno in (errno.EXFULL, errno.EBUSY) and state.master:
            return Exhausted(
                f"bridge {state.master} has no port left (a bridge takes {BRIDGE_PORTS:,})",
                "use a network with --opt mode=routed, which has no such limit",
            )
        return error

    def _put_interface(self, state: Interface) -> None:
        """Set the container's end up, and lo: packets from a container to its own address use lo."""
        name = text(IFNAME, state.name)
        there = self._sockets.link(state.netns, state.name)
        body = name + u32(MTU, state.mtu)
        results = self._sockets.at(state.netns).batch(
            [
                *other_mac(state.name, state.mac, there.found),
                Message(SETLINK, 0, ifinfo(up=True) + body, f"set {state.name} up in the container"),
                Message(SETLINK, 0, ifinfo(up=True) + text(IFNAME, "lo"), "set lo up in the container"),
            ]
        )
        for error in results:
            if error is not None:
                raise error


def _repairs(there: link_messages.Link, state: Bridge | Veth) -> Iterator[Message]:
    if isinstance(state, Veth) and not state.master:
        there = there._replace(found=there.found | {LINKINFO: b""})  # it stops being a port with that
    return repairs(state.name, amiss(there, arp=True, master=isinstance(state, Veth)), arp=True)


def _host_link(link: link_messages.Link, names: Mapping[int, str]) -> Bridge | Veth | None:
    ours = [name for name in link.altnames if name.startswith(ALTNAME)]
    if not ours:
        return None
    kind, name = link.kind, names[link.number]
    wrong = amiss(link, arp=True, master=kind == "veth")
    if kind == "bridge":
        return Bridge(name, link.mac, link.mtu, link.up, wrong)
    inode, _, peer = ours[0].removeprefix(ALTNAME).partition(":")
    if kind != "veth" or not peer or not inode.isdigit():
        return None
    master = names.get(link.master, "?") if link.master else ""
    hairpin = link.bridge_port.get(BRPORT_HAIRPIN) == b"\1"
    return Veth(name, link.mac, link.mtu, master, int(inode), peer, hairpin, link.up, wrong)


def _interface(netns: int, link: link_messages.Link) -> Interface | None:
    if link.kind != "veth":
        return None
    return Interface(netns, link.name, link.mac, link.mtu, link.up)


PATIENCE = 5.0
"""Seconds without any answer: the kernel needs 0.02 s for a link (measured). Only the worker thread waits this long."""
REPLACED = 0.5
"""The same for a link that another one replaces: an attach may wait for it on the agent's event loop."""

_Answer = tuple[int, LinkspanError | None]
_Work = tuple[int, str, "queue.SimpleQueue[_Answer]"]


class Removal:
    """Deletes links without waiting for the kernel's acknowledgement.

    The acknowledgement comes after 16-20 ms (an RCU grace period), while the notification that the link is
    gone comes after 0.4 ms, and its name is free by then. So a small pool of threads sends the deletions, and
    the caller waits for whichever comes first: the notification, or the error. Links are identified by their
    index, which is never used again, because another link may get the name at once.
    """

    def __init__(self, threads: int) -> None:
        self._events = Socket(groups=[_LINK_GROUP])
        self._events.only(DELLINK)  # others, some for each attach and each removal, would only be read and dropped
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self.leaving: Leaving = {}
        self._requests = [Socket() for _ in range(threads)]
        self.ports = {requests.port for requests in self._requests}
        self._threads = [threading.Thread(target=self._run, args=(r,), daemon=True) for r in self._requests]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads after their current work."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._events.close()

    def remove(self, links: Mapping[int, tuple[Key, str]], patience: float = PATIENCE) -> dict[Key, LinkspanError]:
        """Remove the links with these indexes; "gone already" counts as done; return errors by key.

        Links that the kernel neither removes nor refuses for ``patience`` seconds, while it answers for no
        other, are errors as well: the next resync removes what is left.
        """
        for _ in self._gone():
            pass
        answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        waiting = dict(links)
        self._forget_left()
        for index, (_, name) in links.items():
            self._work.put((index, name, answers))
        failed: dict[Key, LinkspanError] = {}
        left, deadline = len(waiting), time.monotonic() + patience
        while waiting and time.monotonic() < deadline:
            if len(waiting) < left:
                left, deadline = len(waiting), time.monotonic() + patience
            select.select([self._events], [], [], 0.001)
            for index in self._gone():
                waiting.pop(index, None)
            while not answers.empty():
                index, error = answers.get()
                if (found := waiting.pop(index, None)) and error is not None:
                    failed[found[0]] = error
                    self.leaving.pop(index, None)
        for index, (key, name) in waiting.items():
            failed[key] = KernelError(f"delete link {name}: no answer of the kernel in {patience:g} s")
            self.leaving.pop(index, None)
        return failed

    def _forget_left(self) -> None:
        """Forget the links of whose end no event was read."""
        over = time.monotonic() - LEAVING
        for index in [index for index, since in self.leaving.copy().items() if since < over]:
            self.leaving.pop(index, None)

    def _run(self, requests: Socket) -> None:
        while (work := self._work.get()) is not None:
            index, name, answers = work
            body = IFINFO.pack(0, 0, index, 0, 0)
            # Now, because of many links the last is deleted seconds after the first; and before the kernel tells of
            # what it takes away with the link.
            self.leaving[index] = time.monotonic()
            error = requests.batch([Message(DELLINK, 0, body, f"delete link {name}")])[0]
            answers.put((index, None if error is not None and error.errno == errno.ENODEV else error))
        requests.close()

    def _gone(self) -> Iterator[int]:
        try:
            while True:
                for kind, _, body in self._events.receive():
                    if kind == DELLINK and body[0] == 0:
                        yield IFINFO.unpack_from(body)[2]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # events were lost; the acknowledgement ends the wait
                raise


def driver(host: LocalHost) -> LinkDriver:
    """Return the driver of bridges and veth pairs."""
    return LinkDriver(host.sockets)


def _add_bridge(state: Bridge, _shell: Shell) -> tuple[str, ...]:
    name = shlex.quote(state.name)
    return (
        f"ip link add {name} address {mac_text(state.mac)} type bridge group_fwd_mask 0x4000",
        f"ip link property add dev {name} altname {shlex.quote(state.altname)}",
        # With an MTU at creation the bridge would still follow its ports' MTUs (br_change_mtu).
        f"ip link set {name} mtu {state.mtu}{' up' if state.up else ''}",
    )


def _add_veth(state: Veth, shell: Shell) -> tuple[str, ...]:
    name, peer = shlex.quote(state.name), shlex.quote(state.peer_name)
    target = shlex.quote(shell.name(state.peer_netns) or shell.paths(state.peer_netns))
    return (
        f"ip link add {name} mtu {state.mtu} address {mac_text(state.mac)} "
        f"type veth peer name {peer} mtu {state.mtu} netns {target}",
        f"ip link property add dev {name} altname {shlex.quote(state.altname)}",
        *([f"ip link set {name} master {shlex.quote(state.master)}"] if state.master else []),
        *([f"bridge link set dev {name} hairpin on"] if state.hairpin else []),
        *([f"ip link set {name} up"] if state.up else []),
    )


def _set_interface(state: Interface, shell: Shell) -> tuple[str, ...]:
    ip, up = shell.ip(state.netns), " up" if state.up else ""
    name = shlex.quote(state.name)
    return f"{ip} link set lo up", f"{ip} link set {name} address {mac_text(state.mac)} mtu {state.mtu}{up}"


def _ends(state: Veth) -> tuple[Link, ...]:
    return (HOST, state.name), (state.peer_netns, state.peer_name)


def _master(state: Veth) -> tuple[Link, ...]:
    return ((HOST, state.master),) if state.master else ()


def _shut(state: Veth) -> Veth:
    return msgspec.structs.replace(state, up=False)


_EVENTS = frozenset({Event.LINK})

KINDS = (
    Kind(
        state=Bridge,
        rank=39,
        driver=driver,
        known_by="an alternative name `linkspan:NAME`",
        purpose="a switch in the kernel, to which containers are connected",
        sort=Sort.LINK,
        commands=_add_bridge,
        makes=named,
        events=_EVENTS,
        names=("ls-*",),
        forms={"ls-.+": frozenset({"bridge"})},
        resolves=True,
    ),
    Kind(
        state=Veth,
        rank=41,
        driver=driver,
        known_by="an alternative name `linkspan:INODE:NAME`, of the other end's namespace and interface",
        purpose="a virtual cable: one end on the host, the other in the container",
        sort=Sort.LINK,
        commands=_add_veth,
        on=_master,
        makes=_ends,
        shut=_shut,
        events=_EVENTS,
        names=("lsr*", "lsp*"),
        forms=dict.fromkeys(("lsr[0-9a-f]{12}", "lsp[0-9a-f]{12}"), frozenset({"veth"})),
        resolves=True,
    ),
    Kind(
        state=Interface,
        rank=42,
        driver=driver,
        known_by="its veth pair",
        purpose="the container's end of the cable, set up",
        commands=_set_interface,
        on=named,
    ),
)
