"""Contracts between the parts: what a backend, a driver and a store must provide."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from linkspan.core.errors import LinkspanError
from linkspan.core.model import Endpoint, Facts, Host, HostView, Lease, Network, Peer
from linkspan.core.needs import Need
from linkspan.core.program import Program
from linkspan.core.states.host import Key, State


class Support(msgspec.Struct, frozen=True):
    """Support of a driver on this machine: ``by`` is "kernel", "user space" or "" with the reason in ``why_not``."""

    by: str
    why_not: str = ""


HostPhase = Literal["before networks", "after peers"]
"""When the states of ``Backend.host`` are put: before the networks have anything, or once the peers are known."""


class Backend(Protocol):
    """A pure function, in parts, from a host's knowledge to states. It does no I/O."""

    name: str
    summary: str
    """For people, in a sentence: how a packet crosses; '' where none does."""
    crosses_hosts: bool
    """Whether a network has endpoints on several hosts, so that hosts need leases in it."""
    overhead: Mapping[int, int]
    """Bytes off the underlay's MTU, by the family of the outer header; 0 where nothing is wrapped."""
    families: tuple[int, ...]
    """The address families of the networks that it carries."""
    neighbours: bool
    """Whether it reaches peers on the same segment only: its routes lead to their own addresses."""
    learns: bool
    """Whether a speaker adds the routes to peers, instead of ``peer``'s states."""
    encrypts: bool
    """Whether all traffic across hosts is encrypted and authenticated: its networks are sealed (``seal``)."""
    no_exit: str
    """Why its networks cannot have egress addresses, '' if they can: it carries packets of any address to a peer."""
    host_phase: HostPhase
    """When ``host`` is applied: before networks (a device for their addresses), or after peers (a speaker)."""
    programs: tuple[tuple[str, str], ...]
    """The programs that it runs, each with its Debian package."""
    has_settings: bool
    """Whether hosts have settings for it, each called ``NAME.KEY``."""
    watches: tuple[type[Program], ...]
    """Facts that change without an event: while a network of this backend is there, they are looked at each second."""

    def check(self, network: Network) -> None:
        """Refuse, by Invalid, options that this backend does not know, or pools that it cannot serve."""

    def check_settings(self, host: Host) -> None:
        """Refuse, by Invalid, a host's settings (``NAME.KEY``) that mean nothing."""

    def check_host(self, host: Host) -> None:
        """Refuse, by Invalid, what this host could not use of another's record: it was read from the store."""

    def completed(self, network: Network, others: Iterable[Network]) -> Network:
        """Return the network with values chosen that must differ from those of other networks.

        Raises Conflict with the other network's name if a given value is in use.
        """

    def claims(self, network: Network) -> tuple[str, ...]:
        """Return claims that only one network of a cluster may have, as ``kind/value``."""

    def announce(self, view: HostView, network: Network) -> Mapping[str, str] | None:
        """Return what peers need to send to this host (part of the lease); None if nothing crosses hosts."""

    def check_offer(self, lease: Lease, offer: Mapping[str, str]) -> None:
        """Refuse, by Invalid, an offer from the store that the lease's host cannot have made."""

    def lacks(self, facts: Facts) -> str:
        """Return what this machine's kernel lacks, so that a program carries the packets; '' if it lacks nothing."""

    def troubles(self, view: HostView) -> Iterable[str]:
        """Return a sentence for each thing that is wrong on this host, though what carries packets goes on."""

    def host(self, view: HostView) -> Iterable[State]:
        """Return the states that serve all networks of this backend; none if the view has none of these networks.

        They are the source ``("host", NAME)``, which is applied at ``host_phase``. They follow from ``view.peers`` only
        after the peers. Raises Unavailable if this host cannot have them.
        """

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return what this host needs for the network, apart from its endpoints and peers."""

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return what this host needs to reach one peer, and to accept its packets.

        Raises Unavailable with the peer and the reason if this backend cannot reach it.
        """

    def needs(self, view: HostView, network: Network, peer: Peer) -> Iterable[Need]:
        """Return the packets that must reach the peer over the underlay; ``doctor --peers`` tries each.

        They follow from what both hosts know of each other, so the peer expects the same. Raises Unavailable
        as ``peer`` does.
        """

    def fast_device(self, network: Network) -> str:
        """Return the tunnel device by which a network's packets may skip the rules (``core/fast_path``), '' if none."""

    def endpoint(self, network: Network, endpoint: Endpoint) -> Iterable[State]:
        """Return what one endpoint on this host needs, at both ends of its veth pair."""


class Driver(Protocol):
    """Reads and writes some kinds of state on the real machine. Runs in the worker thread only."""

    def probe(self) -> Support:
        """Return whether the machine supports the driver."""

    def observe(self, netns: int) -> Iterable[State]:
        """Return the observed states of these kinds in a namespace that are ours, with normalised values.

        ``netns`` 0 is the host's. Kinds that exist only on the host yield nothing for other namespaces.
        Raises LinkspanError if the kernel does not answer; NotFound if the namespace is gone.
        """

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Make and change ``put``, then remove ``delete``; continue past errors and return them by key.

        A put is idempotent, and so is a delete of an object that is gone already.
        """


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record of the store; ``revision`` is that of its last change, and grows with every change of the store."""

    key: str
    value: bytes
    revision: int


Page = tuple[list[Record], int]
"""Records of one answer, and a revision that they are not older than."""
PAGE = 1000
"""Records of the first answer. To decode it blocks the event loop for about 2 ms."""

LIFE = 3.0
"""Seconds after the last ``keep`` in which standing records do not end: `cluster/presence.py` says why so many."""

PROOF_SECONDS = 2.0
"""Seconds of quiet after which a watch proves that it lives."""


class Batch(msgspec.Struct, frozen=True):
    """The changes of one revision (or of several, in order): puts, and keys that were deleted.

    An empty one is a proof that the watch lives.
    """

    revision: int
    puts: tuple[Record, ...] = ()
    deletes: tuple[str, ...] = ()


JOIN = "to join another cluster: `linkspan uninstall` here, then start its agent again"
"""What an operator does to move a host with networks of one cluster into another cluster."""


class Store(Protocol):
    """The records that all hosts share. Every call raises Unavailable, with store and reason, if it does not answer."""

    @property
    def cluster(self) -> str:
        """The cluster's id, made with its first record; a store with another id is another cluster."""

    async def get(self, key: str) -> Record | None:
        """Return a record, None if there is none."""

    async def list(
        self, prefix: str, beside: str = "", each: Callable[[Record], Record] | None = None
    ) -> tuple[list[Record], int]:
        """Return the records whose keys begin with ``prefix``, and the revision of this snapshot.

        Those whose keys begin with ``beside`` are left out, unless it is empty. ``each`` is called with each record,
        perhaps while others are on their way, and its result is returned instead. If the store has to begin again, it
        is called once more for all of them.
        """

    def pages(self, prefix: str) -> AsyncIterator[Page]:
        """Yield the records whose keys begin with ``prefix``, in the order of keys, PAGE at a time at first.

        So nobody has to keep all of them. Later pages may be larger. A page is one snapshot, and the next page may be
        of a later one. If there is no record, there is one empty page.
        """

    async def transaction(
        self,
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        absent: Sequence[str] = (),
        unchanged: Mapping[str, int] | None = None,
        ttl: float = 0,
        standing: bool = False,
    ) -> int:
        """Put and delete all, and return the revision; or change nothing and return 0 if a condition fails.

        The keys of ``absent`` must not exist, those of ``unchanged`` must have these revisions. With ``ttl``
        (seconds) the records expire unless they are put again; ``standing`` records expire unless they are kept, or
        put again otherwise.
        """

    async def keep(self) -> float:
        """Keep the ``standing`` records of this connection, without any change that a watch could tell.

        Returns for how many seconds at least, counted from before the call; 0: they have ended, and must be put again.
        A record that somebody deletes is not kept, and one that somebody else puts over it is theirs. Call this each
        second. It waits a second for each part of the store, and then raises Unavailable.
        """

    async def full(self) -> bool:
        """Return whether the store has no room for anything new: then hosts whose records are missing may live.

        Costs the store no change. Raises Unavailable.
        """

    def watch(self, prefix: str, revision: int) -> AsyncIterator[Batch]:
        """Yield the changes after ``revision``, across reconnections, for as long as it is iterated.

        Without changes it yields an empty batch every PROOF_SECONDS, or a little later, as long as the store can be
        reached. Nobody has to write for that.

        Raises NotFound if the revision is no longer kept (compaction) or is in the future (a restored
        store): the caller then lists again.
        """

    async def services(self) -> tuple[str, ...]:
        """Return HOST:PORT of each TCP service of the store; none if the store is files. Never raises."""

    def renew(self) -> None:
        """Reconnect: the local address of open connections may be gone."""

    async def close(self) -> None:
        """Close the store."""
