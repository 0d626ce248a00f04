"""Cluster guard: every transaction of a store in etcd first compares the cluster's id, a key beside the records.

So linkspan never writes into another cluster's store, and never counts a record as lost because it is missing there. If
the id is gone (an emptied store), the first host that knows it puts it back.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from linkspan.core.errors import Unavailable
from linkspan.core.store_contract import JOIN
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_wire import (
    Json,
    KeyValue,
    Range,
    Txn,
    decode,
    has_revision,
    has_value,
    puts_and_deletes,
    range_of,
)


class ClusterGuard:
    """Transactions with an etcd that is this cluster's; ``cluster`` is the id that it must have ('': any)."""

    def __init__(self, gateway: Gateway, cluster: str) -> None:
        self.cluster = cluster
        """The cluster's id; if it was not given, '' until etcd has answered once."""
        self.key = f"{gateway.url.prefix}.cluster"
        """The key with the id in etcd."""
        self._gateway = gateway
        self._meeting = asyncio.Lock()
        self._met = False

    async def carry_out(
        self, conditions: Sequence[Json], operations: Sequence[Json], seconds: float = 0
    ) -> tuple[Txn, bool]:
        """Carry out a transaction if the store is this cluster's; return also whether a failed try may have done so.

        Each endpoint gets ``seconds`` (0: the gateway's own time). Raises Unavailable if the store is another
        cluster's.
        """
        await self._meet()
        body = {
            "compare": [has_value(self.key, self.cluster), *conditions],
            "success": list(operations),
            "failure": [range_of(self.key)],
        }
        for _ in range(3):
            text, unsure = await self._gateway.call("/v3/kv/txn", body, seconds)
            answer = decode(text, Txn)
            if answer.succeeded:
                return answer, unsure
            if found := answer.range(0).kvs:
                self._refuse_other(found[0])
                return answer, unsure
            await self._name(self.cluster)
        raise Unavailable(f"store etcd {self._gateway.endpoint}: {self.key} is deleted again and again")

    async def _meet(self) -> None:
        """Learn the cluster's id, or give the store one, the first time that etcd answers."""
        if self._met:
            return
        async with self._meeting:
            if not self._met:
                read = {"key": self.key.encode()}
                found = await self._gateway.ask("/v3/kv/range", read, Range)
                if not found.kvs:  # read first: a full etcd refuses every put, even if the id exists
                    await self._name(self.cluster or uuid.uuid4().hex)
                    found = await self._gateway.ask("/v3/kv/range", read, Range)
                if not found.kvs:
                    raise Unavailable(f"store etcd {self._gateway.endpoint}: {self.key} was deleted")
                self.cluster = self.cluster or found.kvs[0].value.decode(errors="replace")
                self._refuse_other(found.kvs[0])
                self._met = True

    async def _name(self, cluster: str) -> None:
        """Give the store its cluster id, unless it has one."""
        put = puts_and_deletes({self.key: cluster.encode()}, [], "")
        body = {"compare": [has_revision(self.key, 0)], "success": put}
        await self._gateway.call("/v3/kv/txn", body)

    def _refuse_other(self, found: KeyValue) -> None:
        if found.value != self.cluster.encode():
            raise Unavailable(
                f"store etcd {self._gateway.endpoint}: {self._gateway.url.prefix} is cluster "
                f"{found.value.decode(errors='replace')}'s, and this host belongs to {self.cluster}",
                f"point `store` at the cluster's own etcd and prefix; {JOIN}; nothing was read or written",
            )
