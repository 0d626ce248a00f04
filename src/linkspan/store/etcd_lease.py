"""Standing lease of a connection to etcd: records that are tied to it exist for as long as it is kept.

To keep it costs etcd no raft entry, and no watch tells of it. All members take keepalives; the leader alone knows how
old a lease is, so a follower whose leader does not answer lets a keepalive wait for seven seconds. So each try has
TRY seconds, and after it the next member is asked at once.
"""

from __future__ import annotations

import asyncio

from linkspan.core.contracts import LIFE
from linkspan.store.etcd_gateway import Failed, Gateway, Stream
from linkspan.store.etcd_wire import Grant, Kept, decode, lease_of

TRY = 1.0
"""Seconds that one member has for one answer."""


class StandingLease:
    """A lease that is granted when it is first needed, and again when it has ended."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._id = ""
        self._granting = asyncio.Lock()
        self._stream: Stream | None = None

    async def granted(self) -> str:
        """Return the lease's id; etcd grants it where there is none. Raises Unavailable."""
        async with self._granting:
            if not self._id:
                self._id = (await self._gateway.ask("/v3/lease/grant", lease_of(LIFE), Grant, TRY)).ID
            return self._id

    def forget(self) -> None:
        """Record that the lease has ended."""
        self._id = ""

    async def keep(self) -> float:
        """Keep the lease; return for how many seconds from now on, 0 if there is none, or none exists any more.

        Raises Unavailable, with each member's reason, where no member answers. The member that does is the first to be
        asked by other calls, too.
        """
        lease, failures = self._id, dict[str, Failed]()
        if not lease:
            return 0.0
        # A stream that broke tells nothing of its member, which may have begun again: that one is tried once more.
        old = self._stream.endpoint if self._stream is not None else ""
        order = self._gateway.order()
        first = order.index(old) + 1 if old else 0
        for endpoint in (*([old] if old else []), *order[first:], *order[:first]):
            answered = False
            try:
                async with asyncio.timeout(TRY):
                    seconds = await self._ask(endpoint, lease)
                answered = True
            except TimeoutError as error:
                failures[endpoint] = self._gateway.failure(endpoint, error, TRY)
            except Failed as error:
                failures[endpoint] = error
            finally:
                if not answered:  # what comes late must not be taken for the answer to the next keepalive
                    self.close()
            if answered:
                self._gateway.endpoint = endpoint
                if not seconds and self._id == lease:
                    self.forget()
                return seconds
        raise await self._gateway.unavailable(failures)

    async def _ask(self, endpoint: str, lease: str) -> float:
        """Return for how many seconds one member keeps the lease. Raises Unavailable."""
        message = {"ID": lease}
        if self._stream is None:
            self._stream = await self._gateway.stream(endpoint, "/v3/lease/keepalive", message, TRY)
        else:
            self._stream.send(message)
        line = await self._stream.next()
        told = decode(line, Kept)
        if told.result is None:
            why = told.error.message if told.error else line[:200].decode(errors="replace")
            why = why.removeprefix("etcdserver: ")
            raise Failed(f"etcd {endpoint}: {why}", "etcdctl endpoint status and its log tell more", sent=False)
        return float(told.result.TTL)

    def close(self) -> None:
        """Close the stream; the lease ends unless another one is opened for it."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
