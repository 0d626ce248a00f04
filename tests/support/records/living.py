"""Parts of an agent that say that it lives, and know whether others do: on a store of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

from linkspan.cluster.hosts import Hosts
from linkspan.cluster.liveness import Liveness
from linkspan.cluster.own_record import OwnRecord
from linkspan.cluster.presence import Presence
from linkspan.core.model import Host
from linkspan.core.store_contract import Store
from linkspan.store.contact import STALE
from linkspan.store.replica import Replica

S = TypeVar("S", bound=Store)


class Living(Generic[S]):
    """One host."""

    def __init__(
        self, store: S, folder: Path, name: str, instance: str = "", promise: float = 0, *, shared: bool = True
    ) -> None:
        """``promise``: after how many seconds of silence all hosts give up what they have, 0: never."""
        self.store = store
        self.name = name
        self.instance = instance or f"{name}:1:1:boot"
        self.alone = 0
        """How often another agent by this id has ended."""
        self.told: list[frozenset[str]] = []
        """The keys of records that changed."""
        self.replica = Replica(store, folder / f"{name}.json", name, self._changed)
        self.hosts = Hosts(self.replica, OwnRecord(Host(id=name, name=name)))
        self.liveness = Liveness(folder, STALE, lambda _host: promise)
        self.presence = Presence(
            self.replica, self.hosts, self.liveness, self._alone_again, self.instance, shared=shared
        )

    async def _alone_again(self) -> None:
        self.alone += 1

    async def _changed(self, keys: frozenset[str]) -> None:
        self.told.append(keys)
        self.presence.changed(keys)

    async def start(self) -> None:
        """Begin as an agent does."""
        await self.replica.start()
        await self.presence.refuse_second()
        await self.presence.start()

    async def die(self) -> None:
        """End as by SIGKILL: what it put in the store is as it is then."""
        await self.presence.stop()

    async def stop(self) -> None:
        """End for good."""
        await self.presence.stop()
        await self.replica.stop()

    def lives(self, host: str) -> bool | None:
        """Tell whether this one takes another host for living."""
        return self.hosts.lives(host)
