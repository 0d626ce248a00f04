"""Founding, as a part of the agent: it runs what a voter runs, and carries out `cluster init`, `join` and `forget`.

All of it is for linkspan's own etcd. The agent takes a new store by a restart, so init and join end with one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial

from linkspan.agent import host_identity
from linkspan.agent.etcd_unit import EtcdUnit
from linkspan.agent.join_tokens import JoinTokens
from linkspan.agent.own_cluster import OwnCluster
from linkspan.agent.voter_server import VoterServer
from linkspan.agent.voters import Voters
from linkspan.cluster.founding import authority_rotation, etcd_service, handover, join_token, member_list
from linkspan.cluster.founding.authority_rotation import RotationProgress
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.join_token import JoinToken
from linkspan.cluster.founding.renewal import HeldCertificate, Renewal
from linkspan.cluster.founding.revocation import Revocation, interrupted
from linkspan.cluster.founding.store_move import move, pending
from linkspan.cluster.founding.trust_files import Voter
from linkspan.cluster.founding.voter_control import VoterControl, change_settings
from linkspan.cluster.hosts import Hosts
from linkspan.core.config import Config
from linkspan.core.errors import Conflict, Denied, LinkspanError, Unavailable
from linkspan.core.model import Host
from linkspan.core.store_contract import Store
from linkspan.store.etcd import EtcdStore
from linkspan.store.factory import OWN
from linkspan.store.snapshot import SNAPSHOT

log = logging.getLogger("linkspan.agent.founding")

MOVE_AGAIN = 1.0
"""Seconds until a move of the own store that failed is tried again."""


class Founding:
    """Founds, joins and leaves a cluster, and runs this host's part of it."""

    def __init__(self, cluster: OwnCluster, unit: EtcdUnit, tokens: JoinTokens) -> None:
        self._cluster = cluster
        self._unit = unit
        self._files = cluster.files
        self._tokens = tokens
        self._server: VoterServer | None = None
        """What a voter runs, before ``voters`` follows the members."""
        self.voters: Voters | None = None
        """Follows etcd's members, once the agent has its records."""
        self._renewal: Renewal | None = None
        self.problem = ""
        """Why the own store is not moved into etcd yet."""

    @contextlib.asynccontextmanager
    async def running(self, host: str) -> AsyncIterator[None]:
        """Run etcd on a voter, before the agent opens its store, and renew this host's certificates."""
        await self._end_trials(host)
        if not self._cluster.own:
            yield
            return
        life = self._cluster.config.certificate_life
        self._renewal = renewal = Renewal(self._files, host, lambda: self._cluster.places, self._serving, life)
        if (voter := self._cluster.voter()) is not None:
            await self._sign_due(host, voter)
            if not await self._is_replaced(host, voter):
                self._server = VoterServer(self._files, host, voter, lambda: self._cluster.places, life, renewal.soon)
        renewal.start()
        try:
            yield
        finally:
            await renewal.stop()
            if (server := self._serving()) is not None:
                await server.stop()

    async def _sign_due(self, host: str, voter: Voter) -> None:
        """Sign a voter's certificates whose time has come, before etcd starts: they may have expired."""
        assert self._renewal is not None
        service = EtcdService(self._files.state_dir, host, voter)
        with contextlib.closing(service), contextlib.suppress(LinkspanError):  # the next try, soon, tells the reason
            await asyncio.to_thread(self._renewal.sign_due, voter, service)

    def certificates(self) -> list[HeldCertificate]:
        """Return this host's certificates for linkspan's own etcd, with what is wrong with them."""
        return [] if self._renewal is None else self._renewal.held()

    def changed(self, keys: frozenset[str]) -> None:
        """Follow changed records: other authorities may be there."""
        if authority_rotation.HINT in keys:
            self.renew()

    def running_etcd(self) -> EtcdService | None:
        """Return the etcd of this host, None if it is no voter."""
        return None if (server := self._serving()) is None else server.service

    def _serving(self) -> VoterServer | None:
        return self.voters.server if self.voters is not None else self._server

    async def _is_replaced(self, host: str, voter: Voter) -> bool:
        """Return whether the other voters go on without this one; then it is a client from now on.

        It is asked before etcd is started: after `cluster recover` or `restore` on another host, the data here are of a
        cluster that must not begin again.
        """
        others = [one for one in self._cluster.places if one != voter.clients]
        if not await member_list.is_replaced(self._files, others, host, voter.address):
            return False
        from linkspan.cluster.founding import promotion

        log.warning("the cluster goes on without this voter's etcd: this host is a client from now on")
        with contextlib.closing(EtcdService(self._files.state_dir, host, voter)) as service:
            await promotion.retire(self._files, service)
        await asyncio.to_thread(self._unit.uninstall)
        return True

    async def _end_trials(self, host: str) -> None:
        """Remove what a restore left that was killed: an etcd that nobody reaches, and its folder."""
        state_dir, voter = self._files.state_dir, Voter("", systemd=self._unit.systemd)
        if not etcd_service.beside(etcd_service.folder(state_dir, voter)).exists():
            return
        from linkspan.cluster.founding.restored_data import RestoredData  # cryptography, as below

        with contextlib.ExitStack() as open_:
            service = open_.enter_context(contextlib.closing(EtcdService(state_dir, host, voter)))
            data = open_.enter_context(contextlib.closing(RestoredData(service, host)))
            try:
                await data.discard()
            except LinkspanError as error:
                log.warning("what a restore left is not removed: %s", error.told)

    def moves(self) -> bool:
        """Return whether this host is a voter whose own store must be moved into etcd before the agent reads it."""
        return self._founder() is not None and pending(self._files.state_dir)

    def _founder(self) -> Voter | None:
        """Return this host's part as the voter that began its cluster: the own store of any other one is not moved."""
        voter = self._cluster.voter()
        return voter if voter is not None and not voter.joins else None

    async def moved(self, waiting: contextlib.AbstractAsyncContextManager[None]) -> None:
        """Move the own store into etcd if it ``moves``; ``waiting`` is entered while that fails.

        Without its records the host would start as a new one.
        """
        voter = self._founder()
        if voter is None or await self._has_moved(voter):
            return
        async with waiting:
            while True:
                await asyncio.sleep(MOVE_AGAIN)
                if await self._has_moved(voter):
                    return

    async def _has_moved(self, voter: Voter) -> bool:
        try:
            await move(self._files, voter)
        except LinkspanError as error:
            if self.problem != error.told:
                self.problem = error.told
                log.warning("the own store is not moved into etcd yet: %s", error.told)
            return False
        self.problem = ""
        return True

    @contextlib.asynccontextmanager
    async def following(self, hosts: Hosts, store: Store, tell: Callable[[str], None]) -> AsyncIterator[None]:
        """Follow etcd's members, and let hosts join on a voter; ``tell`` takes a sentence for the operator."""
        if not self._cluster.own:
            yield
            return
        assert isinstance(store, EtcdStore)
        assert self._renewal is not None

        self.voters = Voters(
            self._cluster, self._unit, store.gateway, store.cluster, hosts, self._server, tell, self._renewal.soon
        )
        self.voters.start()
        try:
            yield
        finally:
            await self.voters.stop()

    @contextlib.contextmanager
    def etcd_as(self, host: str, voter: Voter) -> Iterator[EtcdService]:
        """Give this host's etcd: the one that runs, or one that is not kept alive yet."""
        if (server := self._serving()) is not None:
            yield server.service
            return
        with contextlib.closing(EtcdService(self._files.state_dir, host, voter)) as service:
            yield service

    async def init(
        self, host: Host, advertise: str, voters: int | None = None, replace_after: float | None = None
    ) -> tuple[JoinToken, bool]:
        """Make a cluster with this host as its voter; return a token for the others, and whether the agent restarts.

        ``voters`` is how many voters the cluster should have (0: by its number of hosts), ``replace_after`` how many
        seconds a dead one is waited for; None leaves it as it is. A repeated init takes up what the last one made, and
        makes one more token. Raises LinkspanError.
        """
        async with self._cluster.turn:
            if self._cluster.own and self._files.voter() is None:
                raise Conflict("this host has joined a cluster already", "linkspan cluster members shows its voters")
            self._cluster.refuse_foreign(
                "hosts whose agents have the same etcd as `store` are a cluster already; for linkspan's own etcd, "
                "take `store` out of the agent's settings first"
            )
            voter = self._cluster.chosen(host, advertise)
            if self._cluster.own:
                async with self._cluster.vault() as vault:
                    await change_settings(vault, voters=voters, replace_after=replace_after)
                return await self._tokens.new(uses=0, member=True), False
            from linkspan.cluster.founding import (
                foundation,  # cryptography: 10 MB, and the agent starts again soon
            )

            with contextlib.closing(EtcdService(self._files.state_dir, host.id, voter)) as service:
                install = partial(self._unit.install, voter, service)
                wish = partial(change_settings, voters=voters, replace_after=replace_after)
                life = self._cluster.config.certificate_life
                url, token = await foundation.found(
                    self._files, service, voter, host.id, host.name, install, wish, life
                )
            return token, self._cluster.use(url)

    async def join(self, host: Host, text: str, known: str) -> str:
        """Join the token's cluster, and return its id; then the agent restarts. What broke off can be repeated.

        ``known`` is the id of the cluster in which this host has networks, '' if it has none. Raises LinkspanError.
        """
        token = join_token.parsed(text)
        async with self._cluster.turn:
            if self._files.voter() is not None:
                raise Conflict(
                    "this host began a cluster of its own (`linkspan cluster init`), or is a voter of one",
                    "join with the other hosts; to give this one up: linkspan cluster leave, or uninstall",
                )
            self._cluster.refuse_foreign("take `store` out of the agent's settings first")
            from linkspan.cluster.founding import entry  # cryptography, as above

            url, cluster = await entry.enter(self._files, token, host.id, host.name, known)
            self._cluster.use(url, always=True)
            return cluster

    def renew(self) -> None:
        """Look soon whether this host's certificates must be renewed: its authorities may be others."""
        if self._renewal is not None:
            self._renewal.soon()

    async def rotate(
        self, kinds: Sequence[str], without: Sequence[str], names: Mapping[str, str]
    ) -> RotationProgress:
        """Begin to replace authorities, or go on; leave hosts out, by names or ids. Raises LinkspanError.

        ``names`` are the hosts' names by their ids.
        """
        self._cluster.required("rotate authorities")
        async with self._cluster.vault() as vault:
            return await authority_rotation.begin(self._files, vault, kinds, without, names)

    async def rotation(self) -> RotationProgress:
        """Return how far the rotation of authorities is. Raises Conflict if this host is no voter, or Unavailable."""
        self._cluster.required("show the rotation of authorities")
        async with self._cluster.vault() as vault:
            return await authority_rotation.progress(vault)

    async def forget(
        self, word: str, here: str, known: Callable[[str], bool], remove: Callable[[str], Awaitable[None]]
    ) -> tuple[str, str, bool]:
        """Shut a host out, by its name or id; return its id and name, and whether it had records.

        ``here`` is this host's id, ``known`` says of a host's id whether it has anything among the records, and
        ``remove`` removes that. A voter is taken out of etcd first. Meanwhile the voters stay who they are. Raises
        NotFound, and Conflict if this host is no voter, or the others would have no quorum without that voter.
        """
        control, revocation = self._control(f"forget host {word}")
        from linkspan.cluster.founding import exclusion

        async with self._cluster.turn, self._cluster.vault() as vault:
            id_, name = await control.forgettable(word)
            if id_ == here:
                hint = "linkspan cluster leave; or type it on another voter, if there is one"
                raise Conflict(f"host {word} is the voter that you ask", hint)
            async with control.steady(id_):
                await control.take_out(id_, name)
                publish = partial(revocation.everywhere, control, partial(self._interruption, revocation))
                await exclusion.exclude(vault, id_, publish, known=known(id_))
                if removed := known(id_):
                    await remove(id_)
        return id_, name, removed

    def _interruption(self, revocation: Revocation) -> LinkspanError | None:
        """Return why a voter's part does no more, None if it is this host's: an address that changes ends it, too."""
        part = self.voters
        if part is not None and part.revocation is revocation:
            return None
        return interrupted(voter=part is not None and part.server is not None)

    async def promote(self, word: str) -> str:
        """Let a host become a voter next, by its name or id; return its id. Raises Conflict or NotFound."""
        control, _ = self._control(f"promote host {word}")
        await self._cluster.require_quorum()
        return await control.choose(word)

    async def demote(self, word: str) -> str:
        """Let a voter be a client from now on, by its host's name or id; return its id. Raises Conflict or NotFound."""
        control, _ = self._control(f"demote host {word}")
        await self._cluster.require_quorum()
        return await control.demote(word)

    def _control(self, what: str) -> tuple[VoterControl, Revocation]:
        self._cluster.required(what)
        part = self.voters
        if part is None or part.control is None or part.revocation is None:
            raise Unavailable(f"{what}: this voter has not begun yet", "try again in some seconds")
        return part.control, part.revocation

    async def leave(self, host: Host, vacate: Callable[[], Awaitable[None]], *, force: bool) -> None:
        """Leave the cluster: this host is alone afterwards, as a new one; then the agent restarts.

        ``vacate`` ends the host's containers and gives back its records. With ``force`` a cluster that does not answer
        is left, too: then it must be told to forget the host. What broke off can be repeated. Raises Conflict if the
        others could change nothing any more, or Unavailable.
        """
        if not self._cluster.own:
            where = "take `store` out of the agent's settings" if self._cluster.config.store else "it is alone already"
            raise Conflict("this host is in no cluster that linkspan founded", where)
        async with self._cluster.turn:
            if not self._files.left.exists():
                await self._part(host, vacate, force=force)
                if self.voters is not None:
                    await self.voters.stop()
                self._files.put(self._files.left, b"")
            self._cluster.drop()
            self._cluster.restart()

    async def _part(self, host: Host, vacate: Callable[[], Awaitable[None]], *, force: bool) -> None:
        """Let the cluster know that this host leaves it.

        While the others can say whether a voter may go, no ``force`` spares it their answer: it would be a dead voter.
        """
        member = self._cluster.voter() is not None
        try:
            control = self._control("leave the cluster")[0] if member else None
            await self._cluster.require_quorum()
            if control is not None:
                await control.take_out(host.id, host.name)
                member = False
            await vacate()
            signers = member_list.signers(self._cluster.places)
            await handover.ask(self._files, signers, "/v1/leave", handover.Nothing(), handover.Nothing)
        except (Unavailable, Denied) as error:  # denied: an earlier try broke off, or the host was forgotten
            kind = Denied if isinstance(error, Denied) else Unavailable
            stays = member and kind is Unavailable and await self._cluster.has_quorum()
            if stays or not force:
                anyway = "linkspan cluster leave --force leaves it all the same; then forget this host on a voter"
                if stays:
                    anyway = f"linkspan cluster demote {host.id} on another voter; then leave"
                hint = f"{error.hint}. Or: {anyway}" if kind is Unavailable and error.hint else anyway
                raise kind(f"the cluster does not let this host leave: {error.message}", hint) from error
            with contextlib.suppress(Unavailable, Denied):  # a voter may have failed before its containers ended
                await vacate()

    async def cleared(self, host: str) -> Config:
        """Forget the cluster that this host left, before anything is read: it is a new host. Raises LinkspanError.

        Return the settings to go on with. A leave may have broken off before it took the store out of the file.
        """
        if not self._files.left.exists():
            return self._cluster.config
        self._cluster.drop()
        if (voter := self._files.voter()) is not None:
            with contextlib.closing(EtcdService(self._files.state_dir, host, voter)) as service:
                from linkspan.cluster.founding import promotion

                await promotion.retire(self._files, service)
            await asyncio.to_thread(self._unit.uninstall)
        for name in (SNAPSHOT, host_identity.FILE):
            (self._files.state_dir / name).unlink(missing_ok=True)
        shutil.rmtree(self._files.state_dir / OWN, ignore_errors=True)  # it had no network when it joined, only its id
        self._files.forget_cluster()
        self._files.left.unlink()
        return self._cluster.config

