"""Founding, as a part of the agent: it runs what a voter runs, and carries out `cluster init`, `join` and `forget`.

All of it is for linkspan's own etcd. The agent takes a new store by a restart, so init and join end with one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from linkspan.agent import etcd_unit, host_identity
from linkspan.agent.settings_file import drop_store, keep_store
from linkspan.agent.voter_server import VoterServer
from linkspan.agent.voters import Voters, addresses, preferred
from linkspan.cluster.founding import authority_rotation, etcd_service, handover, join_token, member_list
from linkspan.cluster.founding.authority_rotation import RotationProgress
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.exclusion import end_token
from linkspan.cluster.founding.join_token import NEW_SECONDS, JoinToken, TokenRecord
from linkspan.cluster.founding.renewal import HeldCertificate, Renewal
from linkspan.cluster.founding.revocation import Revocation
from linkspan.cluster.founding.signer import TOKENS
from linkspan.cluster.founding.snapshots import Keeper, Taken, take
from linkspan.cluster.founding.store_move import move, pending
from linkspan.cluster.founding.trust_files import RECORDS_PREFIX, TrustFiles, Voter
from linkspan.cluster.founding.voter_control import VoterControl, change_settings
from linkspan.cluster.hosts import Hosts
from linkspan.core.addresses import prefix
from linkspan.core.config import Config
from linkspan.core.contracts import Store
from linkspan.core.errors import Conflict, Denied, Invalid, LinkspanError, NotFound, Unavailable
from linkspan.core.model import Host
from linkspan.core.store_url import etcd_parts, told
from linkspan.core.supervise import ended, lasting
from linkspan.runtimes import systemd
from linkspan.store.etcd import EtcdStore
from linkspan.store.factory import OWN
from linkspan.store.snapshot import SNAPSHOT
from linkspan.store.vault import Vault

if TYPE_CHECKING:
    from linkspan.cluster.founding.restoration import Restored

log = logging.getLogger("linkspan.agent.founding")

Restart = Callable[[Config], None]
MOVE_AGAIN = 1.0
"""Seconds until a move of the own store that failed is tried again."""
MOST_USES = 1_000_000
PATIENCE = 20.0
"""Seconds for the cluster's etcd to answer before it is restored."""


class TokenTold(msgspec.Struct, frozen=True):
    """A token as it is shown: all but the secret. Times are seconds since the epoch; ``uses`` 0: any number."""

    id: str
    state: str
    created: float
    expires: float
    uses: int
    used: tuple[str, ...]
    member: bool


class Founding:
    """What this host does as a voter, and how it becomes one or joins."""

    def __init__(self, config: Config, file: Path, restart: Restart) -> None:
        """``file`` is the agent's settings file; ``restart`` makes the agent start again with other settings."""
        self._config = config
        self._file = file
        self._restart = restart
        self.files = TrustFiles(Path(config.state_dir))
        self._server: VoterServer | None = None
        """What a voter runs, before ``voters`` follows the members."""
        self.voters: Voters | None = None
        """Follows etcd's members, once the agent has its records."""
        self._turn = asyncio.Lock()
        """One init, join or forget at a time: each goes on if its command ends, and a repeated one comes beside it."""
        self._renewal: Renewal | None = None
        self.problem = ""
        """Why the own store is not moved into etcd yet."""
        self.keeper: Keeper | None = None
        """Who takes automatic snapshots while this host is a voter."""

    @property
    def own(self) -> bool:
        """Return whether this host's store is an etcd that linkspan runs."""
        return self.files.owns(self._config.store)

    def url(self) -> str:
        """Return the store's URL, with the voters as this host knows them now."""
        return self._config.store or f"sqlite://{self._config.state_dir}/store"

    def voter(self) -> Voter | None:
        """Return this host's part as a voter of its cluster, None if it is a client, or has no such cluster."""
        return self.files.voter() if self.own else None

    @property
    def places(self) -> tuple[str, ...]:
        """Return HOST:PORT of etcd on all voters, as this host knows them now."""
        return etcd_parts(self._config.store).endpoints if self.own else ()

    @contextlib.asynccontextmanager
    async def running(self, host: str) -> AsyncIterator[None]:
        """Run etcd on a voter, before the agent opens its store, and renew this host's certificates."""
        await self._end_trials(host)
        if not self.own:
            yield
            return
        life = self._config.certificate_life
        self._renewal = renewal = Renewal(self.files, host, lambda: self.places, self._serving, life)
        if (voter := self.voter()) is not None:
            await self._sign_due(host, voter)
            if not await self._is_replaced(host, voter):
                self._server = VoterServer(self.files, host, voter, lambda: self.places, life, renewal.soon)
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
        service = EtcdService(self.files.state_dir, host, voter)
        with contextlib.closing(service), contextlib.suppress(LinkspanError):  # the next try, soon, tells the reason
            await asyncio.to_thread(self._renewal.sign_due, voter, service)

    def certificates(self) -> list[HeldCertificate]:
        """Return this host's certificates for linkspan's own etcd, with what is wrong with them."""
        return [] if self._renewal is None else self._renewal.held()

    def changed(self, keys: frozenset[str]) -> None:
        """Follow changed records: other authorities may be there."""
        if authority_rotation.HINT in keys and self._renewal is not None:
            self._renewal.soon()

    def etcd(self) -> EtcdService | None:
        """Return the etcd of this host, None if it is no voter."""
        return None if (server := self._serving()) is None else server.service

    def _serving(self) -> VoterServer | None:
        return self.voters.server if self.voters is not None else self._server

    async def _is_replaced(self, host: str, voter: Voter) -> bool:
        """Return whether the other voters go on without this one; then it is a client from now on.

        It is asked before etcd is started: after `cluster recover` or `restore` on another host, the data here are of a
        cluster that must not begin again.
        """
        others = [one for one in self.places if one != voter.clients]
        if not await member_list.is_replaced(self.files, others, host, voter.address):
            return False
        from linkspan.cluster.founding import promotion

        log.warning("the cluster goes on without this voter's etcd: this host is a client from now on")
        with contextlib.closing(EtcdService(self.files.state_dir, host, voter)) as service:
            await promotion.retire(self.files, service)
        await asyncio.to_thread(etcd_unit.uninstall, self.files.state_dir)
        return True

    async def _end_trials(self, host: str) -> None:
        """Remove what a restore left that was killed: an etcd that nobody reaches, and its folder."""
        state_dir, voter = self.files.state_dir, Voter("", systemd=systemd.restarts())
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
        return self._founder() is not None and pending(self.files.state_dir)

    def _founder(self) -> Voter | None:
        """Return this host's part as the voter that began its cluster: the own store of any other one is not moved."""
        voter = self.voter()
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
            await move(self.files, voter)
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
        if not self.own:
            yield
            return
        assert isinstance(store, EtcdStore)
        assert self._renewal is not None

        def keep(places: tuple[str, ...]) -> None:
            url = self.files.url(places, hosts.here.id)
            self._config = msgspec.structs.replace(self._config, store=url)
            try:
                keep_store(self._file, url)
            except LinkspanError as error:
                tell(f"this host's next start may not find etcd: {error.told}")

        self.voters = Voters(
            self.files,
            store.gateway,
            hosts,
            store.cluster,
            self._server,
            lambda voter: partial(etcd_unit.install, self.files.state_dir, voter=voter),
            partial(etcd_unit.uninstall, self.files.state_dir),
            keep,
            tell,
            self._config.certificate_life,
            self._renewal.soon,
            self._turn.locked,
            systemd=systemd.restarts(),
        )
        self.voters.start()
        try:
            yield
        finally:
            await self.voters.stop()

    @contextlib.asynccontextmanager
    async def snapshots(self, host: str) -> AsyncIterator[None]:
        """Take a snapshot every twelve hours while this host is a voter."""
        if not self.own:
            yield
            return
        self.keeper = Keeper(self.files.state_dir, host, self.voter, self._own_vault)
        task = lasting("taking snapshots", self.keeper.follow)
        try:
            yield
        finally:
            await ended(task)

    async def snapshot(self, file: Path) -> Taken:
        """Write a snapshot of etcd to a file. Raises Conflict if this host is no voter, and Unavailable."""
        async with self._own_vault(self._required("take a snapshot")) as vault:
            await vault.ready()  # without a quorum etcd would give what it had
            return await take(vault.gateway, file)

    @contextlib.asynccontextmanager
    async def _own_vault(self, voter: Voter) -> AsyncIterator[Vault]:
        """Give the vault, as etcd's root, at this host's own etcd."""
        vault = Vault(self.files.root_url([voter.clients]), RECORDS_PREFIX)
        try:
            yield vault
        finally:
            await vault.close()

    async def restore(
        self, host: Host, snapshot: Path | None, cluster: str, known: Mapping[str, str]
    ) -> tuple[Restored, bool]:
        """Make a cluster of one voter, this host: from a snapshot, or (None) from its own data.

        Also return whether the agent restarts. ``cluster`` is the id of the cluster to which this host belongs ('':
        any), and ``known`` has the names of the known hosts by their ids. What broke off can be repeated. Raises
        LinkspanError.
        """
        async with self._turn:
            if self._config.store and not self.own:
                raise Conflict(
                    f"this host's store is {told(self._config.store)}, which linkspan did not start and does not touch",
                    "restore an etcd of your own with etcdutl",
                )
            await self._refuse_living(host.id, known, recovers=snapshot is None)
            voter = self._required("recover") if snapshot is None else self._chosen(host, "")
            from linkspan.cluster.founding import restoration  # cryptography, as above

            with self._etcd(host.id, voter) as service:
                install = partial(etcd_unit.install, self.files.state_dir, service, voter=voter)
                aim = restoration.Aim(
                    self.files,
                    service,
                    voter,
                    host.id,
                    host.name,
                    cluster,
                    known,
                    install,
                    self._config.store,
                    self._config.certificate_life,
                )
                made = await (restoration.recover(aim) if snapshot is None else restoration.restore(aim, snapshot))
            if self._renewal is not None:
                self._renewal.soon()
            return made, self._use(made.url)

    async def _refuse_living(self, host: str, known: Mapping[str, str], *, recovers: bool) -> None:
        """Raise Conflict if the cluster's etcd answers, and would go on beside the restored one."""
        if not self.own:
            return
        ids = [*map(member_list.host_of, await member_list.answering(self._config.store, PATIENCE))]
        if not ids:
            return
        if recovers:
            raise Conflict("the cluster's etcd answers, so its quorum is not lost", "linkspan cluster members")
        if ids != [host]:
            names = ", ".join(sorted(known.get(one, one) for one in ids))
            raise Conflict(
                f"the cluster's etcd answers, on {names}: it would go on beside the restored one",
                "restore on its voter; if there are several, demote the others first (linkspan cluster members)",
            )

    @contextlib.contextmanager
    def _etcd(self, host: str, voter: Voter) -> Iterator[EtcdService]:
        """Give this host's etcd: the one that runs, or one that is not kept alive yet."""
        if (server := self._serving()) is not None:
            yield server.service
            return
        with contextlib.closing(EtcdService(self.files.state_dir, host, voter)) as service:
            yield service

    async def init(
        self, host: Host, advertise: str, voters: int | None = None, replace_after: float | None = None
    ) -> tuple[JoinToken, bool]:
        """Make a cluster with this host as its voter; return a token for the others, and whether the agent restarts.

        ``voters`` is how many voters the cluster should have (0: by its number of hosts), ``replace_after`` how many
        seconds a dead one is waited for; None leaves it as it is. A repeated init takes up what the last one made, and
        makes one more token. Raises LinkspanError.
        """
        async with self._turn:
            if self.own and self.files.voter() is None:
                raise Conflict("this host has joined a cluster already", "linkspan cluster members shows its voters")
            if self._config.store and not self.own:
                raise Conflict(
                    f"this host's store is {told(self._config.store)}, which linkspan did not start and does not touch",
                    "hosts whose agents have the same etcd as `store` are a cluster already; for linkspan's own etcd, "
                    "take `store` out of the agent's settings first",
                )
            voter = self._chosen(host, advertise)
            if self.own:
                async with self._vault() as vault:
                    await change_settings(vault, voters=voters, replace_after=replace_after)
                return await self._new_token(uses=0, member=True), False
            from linkspan.cluster.founding import (
                foundation,  # cryptography: 10 MB, and the agent starts again soon
            )

            with contextlib.closing(EtcdService(self.files.state_dir, host.id, voter)) as service:
                install = partial(etcd_unit.install, self.files.state_dir, service, voter=voter)
                wish = partial(change_settings, voters=voters, replace_after=replace_after)
                life = self._config.certificate_life
                url, token = await foundation.found(
                    self.files, service, voter, host.id, host.name, install, wish, life
                )
            return token, self._use(url)

    def _chosen(self, host: Host, advertise: str) -> Voter:
        """Return this host's part as a voter: where its servers listen. Raises Invalid or Conflict."""
        known = self.files.voter()
        found = addresses(host)
        address = prefix(advertise).address if advertise else ""
        if known is not None:
            if address not in ("", known.address):
                raise Conflict(
                    f"an earlier init on this host chose the address {known.address}", "leave out --advertise"
                )
            return known
        if not found:
            raise Invalid("this host has no address to the others", "set `underlay` in the agent's settings")
        if address and address not in found:
            raise Invalid(
                f"--advertise {address} is no address of this host's underlay", f"it has {', '.join(sorted(found))}"
            )
        return Voter(address or min(found, key=preferred), systemd.restarts())

    async def join(self, host: Host, text: str, known: str) -> str:
        """Join the token's cluster, and return its id; then the agent restarts. What broke off can be repeated.

        ``known`` is the id of the cluster in which this host has networks, '' if it has none. Raises LinkspanError.
        """
        token = join_token.parsed(text)
        async with self._turn:
            if self.files.voter() is not None:
                raise Conflict(
                    "this host began a cluster of its own (`linkspan cluster init`), or is a voter of one",
                    "join with the other hosts; to give this one up: linkspan cluster leave, or uninstall",
                )
            if self._config.store and not self.own:
                raise Conflict(
                    f"this host's store is {told(self._config.store)}", "take `store` out of the agent's settings first"
                )
            from linkspan.cluster.founding import entry  # cryptography, as above

            url, cluster = await entry.enter(self.files, token, host.id, host.name, known)
            self._use(url, always=True)
            return cluster

    def _use(self, url: str, *, always: bool = False) -> bool:
        """Keep the store in the settings, and restart unless it is in use; return whether. Raises LinkspanError.

        ``always``: restart in any case, because certificate and password are others.
        """
        keep_store(self._file, url)
        if url == self._config.store and not always:
            return False
        self._config = msgspec.structs.replace(self._config, store=url)  # for whoever has the next turn
        self._restart(self._config)
        return True

    def _required(self, what: str) -> Voter:
        """Return this host's part as a voter. Raises Conflict with what it cannot do otherwise."""
        if (voter := self.voter()) is not None:
            return voter
        if not self.own:
            where = "an etcd of your own has its own users" if self._config.store else "linkspan cluster init makes one"
            raise Conflict(f"{what}: this host is in no cluster that linkspan founded", where)
        hosts = ", ".join(one.rpartition(":")[0] for one in self.places)
        raise Conflict(f"{what}: only a voter can do that", f"run the command on a voter: {hosts}")

    async def create_token(self, seconds: float, uses: int, *, member: bool) -> tuple[JoinToken, TokenTold]:
        """Make a token. Raises Conflict if this host is no voter, and Invalid."""
        self._required("create a token")
        if not 0 < seconds <= join_token.LONGEST_SECONDS or not 0 <= uses <= MOST_USES:
            raise Invalid("a token is good for up to 366 days, and for up to a million hosts", "give less")
        token = await self._new_token(seconds=seconds, uses=uses, member=member)
        return token, await self.token(token.id)

    async def _new_token(self, *, seconds: float = NEW_SECONDS, uses: int, member: bool) -> JoinToken:
        """Make a token that names all voters."""
        from linkspan.cluster.founding.foundation import create_token

        signers = [*member_list.signers(self.places)]
        async with self._vault() as vault:
            authority = await authority_rotation.for_joiners(self.files, vault)
            return await create_token(vault, authority, signers, seconds=seconds, uses=uses, member=member)

    async def tokens(self) -> list[TokenTold]:
        """Return all tokens, the newest first. Raises Conflict if this host is no voter."""
        self._required("list tokens")
        async with self._vault() as vault:
            found = await vault.all(TOKENS, TokenRecord)
        return sorted((_told(id_, one) for id_, one in found.items()), key=lambda one: -one.created)

    async def token(self, id_: str) -> TokenTold:
        """Return a token. Raises NotFound."""
        found = [one for one in await self.tokens() if one.id == id_]
        if not found:
            raise NotFound(f"token {id_} does not exist", "linkspan cluster token list")
        return found[0]

    async def revoke_token(self, id_: str) -> TokenTold:
        """Let nobody join with a token any more; hosts that did stay. Raises NotFound."""
        await self.token(id_)
        async with self._vault() as vault:
            await end_token(vault, id_)
        return await self.token(id_)

    async def rotate(self, kinds: Sequence[str], without: Sequence[str]) -> RotationProgress:
        """Begin to replace authorities, or go on; leave hosts out, by names or ids. Raises LinkspanError."""
        self._required("rotate authorities")
        async with self._vault() as vault:
            return await authority_rotation.begin(self.files, vault, kinds, without)

    async def rotation(self) -> RotationProgress:
        """Return how far the rotation of authorities is. Raises Conflict if this host is no voter, or Unavailable."""
        self._required("show the rotation of authorities")
        async with self._vault() as vault:
            return await authority_rotation.progress(vault)

    async def forget(self, word: str, here: str, known: Callable[[str], bool]) -> tuple[str, str]:
        """Shut a host out, by its name or id; return its id and its name. ``here`` is this host's id.

        ``known`` says of a host's id whether it has anything among the records. A voter is taken out of etcd first.
        Raises NotFound, and Conflict if this host is no voter, or the others would have no quorum without that voter.
        """
        control, revocation = self._control(f"forget host {word}")
        from linkspan.cluster.founding import exclusion

        async with self._turn, self._vault() as vault:
            id_, host = await exclusion.meant(vault, word, here)
            await control.take_out(id_, host.name)
            publish = partial(revocation.everywhere, control.answering)
            await exclusion.exclude(vault, id_, publish, known=known(id_))
        return id_, host.name

    async def promote(self, word: str) -> str:
        """Let a host become a voter next, by its name or id; return its id. Raises Conflict or NotFound."""
        return await self._control(f"promote host {word}")[0].choose(word)

    async def demote(self, word: str) -> str:
        """Let a voter be a client from now on, by its host's name or id; return its id. Raises Conflict or NotFound."""
        return await self._control(f"demote host {word}")[0].demote(word)

    def _control(self, what: str) -> tuple[VoterControl, Revocation]:
        self._required(what)
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
        if not self.own:
            where = "take `store` out of the agent's settings" if self._config.store else "it is alone already"
            raise Conflict("this host is in no cluster that linkspan founded", where)
        async with self._turn:
            if not self.files.left.exists():
                await self._part(host, vacate, force=force)
                if self.voters is not None:
                    await self.voters.stop()
                self.files.put(self.files.left, b"")
            drop_store(self._file, self.files.owns)
            self._restart(msgspec.structs.replace(self._config, store=""))

    async def _part(self, host: Host, vacate: Callable[[], Awaitable[None]], *, force: bool) -> None:
        """Let the cluster know that this host leaves it."""
        try:
            if self.voter() is not None:
                await self._control("leave the cluster")[0].take_out(host.id, host.name)
            await vacate()
            signers = member_list.signers(self.places)
            await handover.ask(self.files, signers, "/v1/leave", handover.Nothing(), handover.Nothing)
        except (Unavailable, Denied) as error:  # denied: an earlier try broke off, or the host was forgotten
            if not force:
                hint = "linkspan cluster leave --force leaves it all the same; then forget this host on a voter"
                raise type(error)(f"the cluster does not let this host leave: {error.message}", hint) from error

    @contextlib.asynccontextmanager
    async def _vault(self) -> AsyncIterator[Vault]:
        """Give the vault, as etcd's root."""
        vault = Vault(self.files.root_url(self.places), RECORDS_PREFIX)
        try:
            yield vault
        finally:
            await vault.close()

    async def cleared(self, host: str) -> Config:
        """Forget the cluster that this host left, before anything is read: it is a new host. Raises LinkspanError.

        Return the settings to go on with. A leave may have broken off before it took the store out of the file.
        """
        if not self.files.left.exists():
            return self._config
        drop_store(self._file, self.files.owns)
        if self.own:
            self._config = msgspec.structs.replace(self._config, store="")
        if (voter := self.files.voter()) is not None:
            with contextlib.closing(EtcdService(self.files.state_dir, host, voter)) as service:
                from linkspan.cluster.founding import promotion

                await promotion.retire(self.files, service)
            await asyncio.to_thread(etcd_unit.uninstall, self.files.state_dir)
        for name in (SNAPSHOT, host_identity.FILE):
            (self.files.state_dir / name).unlink(missing_ok=True)
        shutil.rmtree(self.files.state_dir / OWN, ignore_errors=True)  # it had no network when it joined, only its id
        self.files.forget_cluster()
        self.files.left.unlink()
        return self._config


def _told(id_: str, record: TokenRecord) -> TokenTold:
    now = time.time()
    return TokenTold(id_, record.state(now), record.created, record.expires, record.uses, record.used, record.member)
