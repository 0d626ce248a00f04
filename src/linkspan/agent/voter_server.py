"""Servers of a voter: its etcd, which is kept alive, and its signer, which lets hosts join."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from linkspan.cluster.founding import etcd_service
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.handover import Handover
from linkspan.cluster.founding.signer import Signer, serving
from linkspan.cluster.founding.trust_files import RECORDS_PREFIX, TrustFiles, Voter
from linkspan.core.supervise import ended, lasting
from linkspan.store.vault import Vault

log = logging.getLogger("linkspan.agent.voter_server")

Places = Callable[[], tuple[str, ...]]
AGAIN = 5.0
"""Seconds until the signer's port is tried again."""


class VoterServer:
    """What runs on a voter while its agent does; etcd goes on without the agent."""

    def __init__(self, files: TrustFiles, host: str, voter: Voter, places: Places) -> None:
        """``places`` returns HOST:PORT of etcd on all voters, as this host knows them now."""
        self._files = files
        self.voter = voter
        self._places = places
        self.service = EtcdService(files.state_dir, host, voter)
        self.vault = Vault(files.root_url(self._order()), RECORDS_PREFIX)
        """As etcd's root, at this host's own etcd first."""
        self._keeping = lasting("keeping etcd alive", self.service.keep)
        self._signing: asyncio.Task[None] | None = None
        self._stopped = False

    def _order(self) -> tuple[str, ...]:
        places = self._places()
        own = [one for one in places if one == self.voter.clients]
        return (*own, *(one for one in places if one not in own)) or (self.voter.clients,)

    def follow(self) -> None:
        """Use the voters that this host knows now."""
        if set(order := self._order()) != set(self.vault.gateway.url.endpoints):
            self.vault.gateway.follow(order)

    def sign(self, cluster: str) -> None:
        """Let hosts join the cluster with this id, from now on."""
        if self._signing is None:
            self._signing = lasting("letting hosts join", lambda: self._sign(cluster))

    async def _sign(self, cluster: str) -> None:
        folder = etcd_service.folder(self._files.state_dir, self.voter)
        signer = Signer(self._files, self.vault, self._places, cluster)
        more = Handover(self._files, self.vault).handlers()
        own = (folder / "server.pem", folder / "server.key")
        while True:
            try:
                async with serving(signer, self.voter.signer, self._files.authority, *own, more):
                    await asyncio.Event().wait()
            except OSError as error:
                log.warning("no host can join now: port %s: %s", self.voter.signer, error.strerror)
            await asyncio.sleep(AGAIN)

    async def stop(self) -> None:
        """End the signer, and let etcd go on by itself; a second time does nothing."""
        if self._stopped:
            return
        self._stopped = True
        await ended(self._signing)
        await ended(self._keeping)
        await self.vault.close()
        self.service.close()
