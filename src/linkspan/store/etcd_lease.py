"""Standing lease of a connection to etcd: the records that are tied to it exist for as long as the agent keeps it.

To keep it costs etcd no raft entry, and no watch reports it. All members take keepalives, but only the leader knows
the age of a lease: if the leader does not answer, a follower lets a keepalive wait for seven seconds. So each member
gets TRY seconds, and then the next one is asked at once.

etcd asks for no user to renew a lease, and a login at its default cost takes 50 to 70 ms of a processor. After an
outage all hosts log in again at once, and those of some hundred take longer than a lease lives. So a keepalive needs
no login.
"""

from __future__ import annotations

import asyncio

from linkspan.core.store_contract import LIFE
from linkspan.store.etcd_errors import Failed
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_stream import Stream
from linkspan.store.etcd_wire import Grant, Kept, decode, lease_of

TRY = 1.0
"""Seconds that one member gets for one answer."""


class StandingLease:
    """An etcd lease that is granted at the first use, and again after it has ended."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._id = ""
        self._granting = asyncio.Lock()
        self._stream: Stream | None = None

    async def granted(self) -> str:
        """Return the lease's id; ask etcd for a lease if there is none. Raises Unavailable."""
        async with self._granting:
            if not self._id:
                self._id = (await self._gateway.ask("/v3/lease/grant", lease_of(LIFE), Grant, TRY)).ID
            return self._id

    def forget(self, lease: str) -> None:
        """Record that a lease has ended; the present one stays if it is another one."""
        if self._id == lease:
            self._id = ""

    async def keep(self) -> float:
        """Renew the lease; return for how many seconds it exists from now on, 0 if there is none (any more).

        Other calls then begin at the member that answered, unless it is doubted (`etcd_gateway.py`). If no member
        answers, raises Unavailable with the reason of each.
        """
        lease, failures = self._id, dict[str, Failed]()
        if not lease:
            return 0.0
        # That the stream broke says nothing about its member, which may have restarted: so it is tried once more.
        old = self._stream.endpoint if self._stream is not None else ""
        order = self._gateway.order()
        if old not in order:  # its member was taken out
            self.close()
            old = ""
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
                if not answered:  # a late answer must not count as the answer to the next keepalive
                    self.close()
            if answered:
                self._gateway.prefer(endpoint)
                if not seconds:
                    self.forget(lease)
                return seconds
        raise await self._gateway.unavailable(failures)

    async def _ask(self, endpoint: str, lease: str) -> float:
        """Return for how many seconds one member renewed the lease. Raises Unavailable."""
        message = {"ID": lease}
        if self._stream is None:
            path = "/v3/lease/keepalive"
            self._stream = await self._gateway.stream(endpoint, path, message, TRY, openly=True)
        else:
            self._stream.send(message)
        line = await self._stream.next()
        told = decode(line, Kept)
        if told.result is None:
            why = told.error.message if told.error else line[:200].decode(errors="replace")
            why = why.removeprefix("etcdserver: ")
            raise Failed(f"etcd {endpoint}: {why}", "`etcdctl endpoint status` and its log show more", sent=False)
        return float(told.result.TTL)

    def close(self) -> None:
        """Close the stream; the lease ends unless the next ``keep`` comes in time."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
