"""The seams: what a backend and a driver must be. Everything else in linkspan is one of a kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from linkspan.core.errors import LinkspanError
from linkspan.core.model import Endpoint, Facts, Host, HostView, Lease, Network, Peer
from linkspan.core.needs import Need
from linkspan.core.states.host import Key, State
from linkspan.core.states.programs import Program


class Support(msgspec.Struct, frozen=True):
    """How this machine serves a driver: ``by`` is "kernel", "user space" or "" with the reason in ``why_not``."""

    by: str
    why_not: str = ""


class Backend(Protocol):
    """A pure function, in parts, from what a host knows to states. It does no I/O."""

    name: str
    summary: str
    """For people, in a sentence: how a packet crosses; '' where none does."""
    crosses_hosts: bool
    """Whether endpoints of several hosts are in one network, so that hosts need leases in it."""
    overhead: Mapping[int, int]
    """Bytes off the underlay's MTU, by the family of the outer header; 0 where nothing is wrapped."""
    families: tuple[int, ...]
    """The address families of the networks that it carries."""
    neighbours: bool
    """Whether it reaches peers on the same segment only: its routes lead to their own addresses."""
    learns: bool
    """Whether the routes to peers come from a speaker, and not from ``peer``'s states."""
    encrypts: bool
    """Whether all that crosses hosts is encrypted and authenticated: its networks are sealed (``seal``)."""
    programs: tuple[tuple[str, str], ...]
    """The programs that it runs, each with Debian's package of it."""
    has_settings: bool
    """Whether hosts have settings for it, each called ``NAME.KEY``."""
    watches: tuple[type[Program], ...]
    """Facts that change without an event: while a network of this backend is there, they are looked at each second."""

    def check(self, network: Network) -> None:
        """Refuse, by Invalid, options that this backend does not know or pools that it cannot serve."""

    def check_settings(self, host: Host) -> None:
        """Refuse, by Invalid, a host's settings (``NAME.KEY``) that mean nothing."""

    def check_host(self, host: Host) -> None:
        """Refuse, by Invalid, what this host could not use of another's record: it was read from the store."""

    def completed(self, network: Network, others: Iterable[Network]) -> Network:
        """Return the network with what had to be chosen for it among the others.

        Raises Conflict, naming the other network, where what was given is in use.
        """

    def claims(self, network: Network) -> tuple[str, ...]:
        """Return what only one network of a cluster may have, as ``kind/value``."""

    def announce(self, view: HostView, network: Network) -> Mapping[str, str] | None:
        """Return what peers need to send to this host (it goes into the lease); None: nothing crosses hosts."""

    def check_offer(self, lease: Lease, offer: Mapping[str, str]) -> None:
        """Refuse, by Invalid, what the lease's host cannot have announced: it was read from the store."""

    def lacks(self, facts: Facts) -> str:
        """Return what this machine's kernel lacks, so that a program carries the packets; '' where it lacks nothing."""

    def troubles(self, view: HostView) -> Iterable[str]:
        """Return a sentence for each thing that is wrong on this host, though what carries packets goes on."""

    def host(self, view: HostView) -> Iterable[State]:
        """Return what serves all networks of this backend together: it follows from all of them and all peers.

        Raises Unavailable where this host cannot have it.
        """

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return what this host needs for the network, whatever its endpoints and peers are."""

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return what this host needs to reach one peer, and to take packets from it.

        Raises Unavailable, naming the peer and why, where this backend cannot reach it.
        """

    def needs(self, view: HostView, network: Network, peer: Peer) -> Iterable[Need]:
        """Return what must get over the underlay to the peer; ``doctor --peers`` tries each, whatever it is.

        They follow from what both hosts know of each other, so the peer expects the same. Raises Unavailable as
        ``peer`` does.
        """

    def endpoint(self, network: Network, endpoint: Endpoint) -> Iterable[State]:
        """Return what one endpoint on this host needs, on both sides of its veth pair."""


class Driver(Protocol):
    """Reads and writes some kinds of state on the real machine. Runs in the worker thread only."""

    def probe(self) -> Support:
        """Tell whether the machine can do it."""

    def observe(self, netns: int) -> Iterable[State]:
        """Return the states of these kinds in a namespace that are ours, as they are now, values normalised.

        ``netns`` 0 is the host's. Kinds that live on the host only yield nothing for others.
        Raises LinkspanError where the kernel does not answer; NotFound where the namespace is gone.
        """

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Make and change ``put``, then take away ``delete``; go on past errors and return them by key.

        A put is idempotent, and so is a delete of what is gone already.
        """


class Record(msgspec.Struct, frozen=True):
    """A record of the store; ``revision`` is that of its last change, and grows with every change of the store."""

    key: str
    value: bytes
    revision: int


class Batch(msgspec.Struct, frozen=True):
    """The changes of one revision (or of several, in order): puts, and keys that were deleted."""

    revision: int
    puts: tuple[Record, ...] = ()
    deletes: tuple[str, ...] = ()


JOIN = "to join another cluster: `linkspan uninstall` here, and start its agent again"
"""What an operator does with a host that has networks of a cluster, and is to be in another one."""


class Store(Protocol):
    """What all hosts share. Every call raises Unavailable, naming the store and why, where it does not answer."""

    cluster: str
    """The cluster's id, made with its first record; another one is another cluster."""

    async def get(self, key: str) -> Record | None:
        """Return a record, None where there is none."""

    async def list(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records whose keys begin with ``prefix``, and the revision at which that was so."""

    async def transaction(
        self,
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        absent: Sequence[str] = (),
        unchanged: Mapping[str, int] | None = None,
        ttl: float = 0,
    ) -> int:
        """Put and delete all, and return the revision of that; or nothing, 0, where a condition does not hold.

        The keys of ``absent`` must not exist, those of ``unchanged`` must have these revisions. With ``ttl``
        (seconds) what is put goes by itself unless it is put again.
        """

    def watch(self, prefix: str, revision: int) -> AsyncIterator[Batch]:
        """Yield what changes after ``revision``, over reconnections, for as long as it is iterated.

        Raises NotFound where the revision is no longer kept (compaction) or lies in the future (a store that
        was restored): the caller lists anew.
        """

    async def services(self) -> tuple[str, ...]:
        """Return HOST:PORT of each TCP service that the store has; none where it is files. Never raises."""

    def renew(self) -> None:
        """Use no connection that there is now: the address that it is from may be gone."""

    async def close(self) -> None:
        """Let go of it."""
