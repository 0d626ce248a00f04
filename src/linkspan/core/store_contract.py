"""Contract of stores: what a module that keeps the records of all hosts must provide."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

import msgspec


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
