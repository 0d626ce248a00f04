"""Servers of a voter: its etcd, which is kept alive, and its signer, which lets hosts join."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from linkspan.cluster.founding import etcd_service
from linkspan.cluster.founding.authority_rotation import AuthorityRotation
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.handover import Handover
from linkspan.cluster.founding.reissue import Reissue
from linkspan.cluster.founding.signer import Signer
from linkspan.cluster.founding.signer_server import serving
from linkspan.cluster.founding.trust_files import RECORDS_PREFIX, TrustFiles, Voter
from linkspan.core.errors import LinkspanError
from linkspan.core.supervise import ended, lasting
from linkspan.kernel.io.durable_files import stamps
from linkspan.store.vault import Vault

log = logging.getLogger("linkspan.agent.voter_server")

Places = Callable[[], tuple[str, ...]]
AGAIN = 5.0
"""Seconds until the signer's port is tried again, or etcd after an error."""
LOOK = 1.0
"""Seconds until the signer uses certificates that were changed."""


class VoterServer:
    """The servers of a voter while its agent runs; etcd goes on without the agent."""

    def __init__(
        self, files: TrustFiles, host: str, voter: Voter, places: Places, life: float, renewed: Callable[[], None]
    ) -> None:
        """``places`` returns HOST:PORT of etcd on all voters, as this host knows them now.

        Certificates that it signs are valid for ``life`` seconds; ``renewed`` is called when it has other ones.
        """
        self._files = files
        self._host = host
        self._life = life
        self._renewed = renewed
        self.voter = voter
        self._places = places
        self.service = EtcdService(files.state_dir, host, voter)
        self.vault = Vault(files.root_url(self._order()), RECORDS_PREFIX)
        """As etcd's root, at this host's own etcd first."""
        self._keeping = lasting("keeping etcd alive", self.service.keep)
        self._sharing: asyncio.Task[None] | None = None
        self._signing: asyncio.Task[None] | None = None
        self._rotating: asyncio.Task[None] | None = None
        self._stopped = False

    def _order(self) -> tuple[str, ...]:
        places = self._places()
        own = [one for one in places if one == self.voter.clients]
        return (*own, *(one for one in places if one not in own)) or (self.voter.clients,)

    def follow(self) -> None:
        """Use the voters that this host knows now."""
        if set(order := self._order()) != set(self.vault.gateway.url.endpoints):
            self.vault.gateway.follow(order)

    def settled(self) -> None:
        """Note that the other voters know the address that this one has now. Raises Unavailable."""
        self.voter = msgspec.structs.replace(self.voter, former="")
        self._files.keep_voter(self.voter)

    def sign(self, cluster: str) -> None:
        """Let hosts join the cluster with this id, from now on."""
        if self._signing is None:
            self._sharing = lasting("granting what hosts share", self._share)
            self._signing = lasting("letting hosts join", lambda: self._sign(cluster))
            rotation = AuthorityRotation(
                self._files, self.vault, self.service, self.voter, self._host, self._life, self._renewed
            )
            self._rotating = lasting("rotating authorities", rotation.run)
            self._renewed()

    async def _share(self) -> None:
        while True:
            try:
                return await self.vault.share()
            except LinkspanError as error:
                log.debug("what hosts share is not granted yet: %s", error.message)
            await asyncio.sleep(AGAIN)

    async def _sign(self, cluster: str) -> None:
        folder = etcd_service.folder(self._files.state_dir, self.voter)
        signer = Signer(self._files, self.vault, self._places, cluster, self._life)
        reissue = Reissue(self._files, self.vault, self._life)
        more = {**Handover(self._files, self.vault).handlers(), **reissue.handlers()}
        own = (self._files.authority, folder / "server.pem", folder / "server.key")
        while True:
            seen = stamps(own)
            try:
                async with serving(signer, self.voter.signer, *own, more):
                    while stamps(own) == seen:  # noqa: ASYNC110 - files have no event
                        await asyncio.sleep(LOOK)
            except OSError as error:
                log.warning("no host can join now: port %s: %s", self.voter.signer, error.strerror)
                await asyncio.sleep(AGAIN)

    async def stop(self) -> None:
        """End the signer, and let etcd go on by itself; a second time does nothing."""
        if self._stopped:
            return
        self._stopped = True
        await ended(self._sharing)
        await ended(self._signing)
        await ended(self._rotating)
        await ended(self._keeping)
        await self.vault.close()
        self.service.close()
