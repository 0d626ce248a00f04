"""Sockets of a batch: one rtnetlink socket for each network namespace, and the links that each one sees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from linkspan.core.states.host import HOST
from linkspan.kernel.io import link_messages
from linkspan.kernel.io.link_messages import IFNAME, Link, names_of, own_of
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.netlink import Socket


class Sockets:
    """One rtnetlink socket for each namespace in a batch; those of containers only for its duration."""

    def __init__(self, namespaces: Namespaces) -> None:
        self.namespaces = namespaces
        self._open: dict[int, Socket] = {}
        self._indexes: dict[tuple[int, str], int] = {}
        """Of containers' links, for the duration of a batch: interface, addresses and routes each need it."""
        self._looking = False
        self._seen: list[Link] | None = None
        self._names: dict[int, str] | None = None
        """The names of these links by index."""

    @contextlib.contextmanager
    def one_look(self) -> Iterator[None]:
        """Let all readers of the host's links in this block see the same ones: they are listed once.

        Linkspan changes nothing within it. A change by others causes an event, and another observation.
        """
        self._looking, self._seen, self._names = True, None, None
        try:
            yield
        finally:
            self._looking, self._seen, self._names = False, None, None

    def at(self, netns: int) -> Socket:
        """Return the socket in the namespace, made if there is none; raises NotFound if the namespace is gone."""
        found = self._open.get(netns)
        if found is None:
            with self.namespaces.entered(netns):
                found = self._open[netns] = Socket()
        return found

    def index(self, netns: int, device: str) -> int:
        """Return a link's index; raises KernelError (ENODEV) with its name."""
        if (known := self._indexes.get((netns, device))) is not None:
            return known
        return self._noted(netns, device, link_messages.index_of(self.at(netns), device))

    def _noted(self, netns: int, device: str, index: int) -> int:
        if netns != HOST:
            self._indexes[netns, device] = index
        return index

    def forget_indexes(self) -> None:
        """Ask for links' indexes again: links are about to be made or removed."""
        self._indexes.clear()

    def mtu(self, netns: int, device: str) -> int:
        """Return a link's MTU; raises KernelError (ENODEV) with its name."""
        return self.link(netns, device).mtu

    def link(self, netns: int, device: str) -> Link:
        """Return a link; raises KernelError (ENODEV) with its name."""
        found = link_messages.by_name(self.at(netns), device)
        self._noted(netns, device, found.number)
        return found

    def find(self, netns: int, device: str, by: int = IFNAME) -> Link | None:
        """Return a link by its name or (``by`` ALT_IFNAME) its alternative name, None if there is none."""
        return link_messages.find(self.at(netns), device, by)

    def links(self, netns: int) -> list[Link]:
        """Return every link."""
        if netns != HOST or not self._looking:
            return link_messages.links(self.at(netns))
        if self._seen is None:
            self._seen = link_messages.links(self.at(netns))
        return self._seen

    def link_messages(self) -> list[bytes]:
        """Return the body of each message about a link of the host, unparsed."""
        return link_messages.bodies(self.at(HOST))

    def names(self, netns: int) -> dict[int, str]:
        """Return every link's name by its index; callers must not change it."""
        if netns != HOST or not self._looking:
            return names_of(self.links(netns))
        if self._names is None:
            self._names = names_of(self.links(HOST))
        return self._names

    def own_links(self) -> dict[int, str]:
        """Return the host's links that are ours, whatever others' links are called: names by index."""
        return own_of(self.links(HOST))

    def release(self) -> None:
        """Close the sockets of containers: an open one would keep a dead container's namespace alive."""
        self.forget_indexes()
        for netns in [n for n in self._open if n != HOST]:
            self._open.pop(netns).close()

    def close(self) -> None:
        """Close all."""
        self.release()
        if HOST in self._open:
            self._open.pop(HOST).close()

    @property
    def port(self) -> int:
        """Return the port of the host's socket, by which events recognise our own changes."""
        return self.at(HOST).port
