"""Founding, as a part of the agent: it runs what a voter runs, and carries out `cluster init`, `join` and `forget`.

All of it is for linkspan's own etcd. The agent takes a new store by a restart, so init and join end with one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from linkspan.agent import installation
from linkspan.agent.settings_file import keep_store
from linkspan.cluster.founding import etcd_service, join_token
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.join_token import JoinToken, TokenRecord
from linkspan.cluster.founding.signer import TOKENS, Signer, serving
from linkspan.cluster.founding.snapshots import Keeper, Taken, take
from linkspan.cluster.founding.store_move import move, pending
from linkspan.cluster.founding.trust_files import RECORDS_PREFIX, TrustFiles, Voter
from linkspan.core.addresses import prefix
from linkspan.core.config import Config
from linkspan.core.errors import Conflict, Invalid, LinkspanError, NotFound
from linkspan.core.model import Host
from linkspan.core.states.programs import File
from linkspan.core.store_url import etcd_parts, told
from linkspan.core.supervise import ended, lasting
from linkspan.runtimes import systemd
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_wire import Members, Range
from linkspan.store.vault import TRIES, Vault, contended

if TYPE_CHECKING:
    from linkspan.cluster.founding.restoration import Restored

log = logging.getLogger("linkspan.agent.founding")

Restart = Callable[[Config], None]
AGAIN = 5.0
"""Seconds until the signer's port is tried again."""
MOVE_AGAIN = 1.0
"""Seconds until a move of the own store that failed is tried again."""
ETCD_UNIT = f"{systemd.UNITS}/{etcd_service.UNIT_NAME}"
ETCD_USER = "etc/sysusers.d/linkspan-etcd.conf"
MOST_USES = 1_000_000


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
        self._service: EtcdService | None = None
        """This host's etcd, on a voter while the agent runs."""
        self._turn = asyncio.Lock()
        """One init, join or forget at a time: each goes on if its command ends, and a repeated one comes beside it."""
        self.problem = ""
        """Why the own store is not moved into etcd yet."""
        self.keeper: Keeper | None = None
        """Who takes automatic snapshots, on a voter."""

    @property
    def own(self) -> bool:
        """Return whether this host's store is an etcd that linkspan runs."""
        return self.files.owns(self._config.store)

    def voter(self) -> Voter | None:
        """Return this host's part as a voter of its cluster, None if it is a client, or has no such cluster."""
        return self.files.voter() if self.own else None

    @contextlib.asynccontextmanager
    async def running(self, host: str) -> AsyncIterator[None]:
        """Run etcd on a voter, before the agent opens its store."""
        await self._end_trials(host)
        voter = self.voter()
        if voter is None:
            yield
            return
        self._service = EtcdService(self.files.state_dir, host, voter)
        keeping = lasting("keeping etcd alive", self._service.keep)
        try:
            yield
        finally:
            await ended(keeping)
            self._service.close()

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
        return self.voter() is not None and pending(self.files.state_dir)

    async def moved(self, waiting: contextlib.AbstractAsyncContextManager[None]) -> None:
        """Move the own store into etcd if it ``moves``; ``waiting`` is entered while that fails.

        Without its records the host would start as a new one.
        """
        voter = self.voter()
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
    async def snapshots(self, host: str) -> AsyncIterator[None]:
        """Take a snapshot every twelve hours, on a voter."""
        voter = self.voter()
        if voter is None:
            yield
            return
        self.keeper = Keeper(self.files.state_dir, host, partial(_vault, self.files, voter))
        task = lasting("taking snapshots", self.keeper.follow)
        try:
            yield
        finally:
            await ended(task)

    @contextlib.asynccontextmanager
    async def signing(self, cluster: str) -> AsyncIterator[None]:
        """Let hosts join, on a voter."""
        voter = self.voter()
        if voter is None:
            yield
            return
        endpoints = etcd_parts(self._config.store).endpoints

        async def sign() -> None:
            folder = etcd_service.folder(self.files.state_dir, voter)
            async with _vault(self.files, voter) as vault:
                signer = Signer(self.files, vault, endpoints, cluster)
                while True:
                    try:
                        async with serving(signer, voter.signer, folder / "server.pem", folder / "server.key"):
                            await asyncio.Event().wait()
                    except OSError as error:
                        log.warning("no host can join now: port %s: %s", voter.signer, error.strerror)
                    await asyncio.sleep(AGAIN)

        task = lasting("letting hosts join", sign)
        try:
            yield
        finally:
            await ended(task)

    async def init(self, host: Host, advertise: str) -> tuple[JoinToken, bool]:
        """Make a cluster with this host as its voter; return a token for the others, and whether the agent restarts.

        A repeated init takes up what the last one made, and makes one more token. Raises LinkspanError.
        """
        async with self._turn:
            if self.own and self.files.voter() is None:
                raise Conflict("this host has joined a cluster already", "linkspan cluster members shows its voter")
            if self._config.store and not self.own:
                raise Conflict(
                    f"this host's store is {told(self._config.store)}, which linkspan did not start and does not touch",
                    "hosts whose agents have the same etcd as `store` are a cluster already; for linkspan's own etcd, "
                    "take `store` out of the agent's settings first",
                )
            voter = self._chosen(host, advertise)
            from linkspan.cluster.founding import (
                foundation,  # cryptography: 10 MB, and the agent starts again soon
            )

            with self._etcd(host.id, voter) as service:
                install = partial(_install, self.files.state_dir, service, voter)
                url, token = await foundation.found(self.files, service, voter, host.id, host.name, install)
            return token, self._use(url)

    async def snapshot(self, file: Path) -> Taken:
        """Write a snapshot of etcd to a file. Raises Conflict if this host is no voter, and Unavailable."""
        async with _vault(self.files, self._required("take a snapshot")) as vault:
            await vault.ready()  # without a quorum etcd would give what it had
            return await take(vault.gateway, file)

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
            await self._refuse_living(host.id, recovers=snapshot is None)
            voter = self._required("recover") if snapshot is None else self._chosen(host, "")
            from linkspan.cluster.founding import restoration  # cryptography, as above

            with self._etcd(host.id, voter) as service:
                install = partial(_install, self.files.state_dir, service, voter)
                aim = restoration.Aim(
                    self.files, service, voter, host.id, host.name, cluster, known, install, self._config.store
                )
                made = await (restoration.recover(aim) if snapshot is None else restoration.restore(aim, snapshot))
            return made, self._use(made.url)

    async def _refuse_living(self, host: str, *, recovers: bool) -> None:
        """Raise Conflict if the cluster's etcd answers, and would go on beside the restored one."""
        if not self.own:
            return
        names = await answering(self._config.store)
        others = sorted(name.removeprefix(etcd_service.VOTER) for name in names)
        if not names:
            return
        if recovers:
            raise Conflict("the cluster's etcd answers, so its quorum is not lost", "linkspan cluster members")
        if others != [host]:
            raise Conflict(
                f"the cluster's etcd answers, on {', '.join(others)}: it would go on beside the restored one",
                "restore on its voter; if there are several, demote the others first (linkspan cluster members)",
            )

    @contextlib.contextmanager
    def _etcd(self, host: str, voter: Voter) -> Iterator[EtcdService]:
        """Give this host's etcd: the one that runs, or one that the first init starts."""
        if self._service is not None:
            yield self._service
            return
        with contextlib.closing(EtcdService(self.files.state_dir, host, voter)) as service:
            yield service

    def _chosen(self, host: Host, advertise: str) -> Voter:
        """Return this host's part as a voter: where its servers listen. Raises Invalid or Conflict."""
        known = self.files.voter()
        found = {prefix(one).address for one in (host.underlay.addresses if host.underlay else ())}
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
        return Voter(address or min(found, key=lambda one: (":" in one, one)), systemd.restarts())

    async def join(self, host: Host, text: str, known: str) -> str:
        """Join the token's cluster, and return its id; then the agent restarts. What broke off can be repeated.

        ``known`` is the id of the cluster in which this host has networks, '' if it has none. Raises LinkspanError.
        """
        token = join_token.parsed(text)
        async with self._turn:
            if self.files.voter() is not None:
                raise Conflict(
                    "this host began a cluster of its own (`linkspan cluster init`)",
                    "join with the other hosts; to give this one up: linkspan uninstall",
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
        hosts = ", ".join(one.rpartition(":")[0] for one in etcd_parts(self._config.store).endpoints)
        raise Conflict(f"{what}: only a voter can do that", f"run the command on the voter, {hosts}")

    async def create_token(self, seconds: float, uses: int, *, member: bool) -> tuple[JoinToken, TokenTold]:
        """Make a token. Raises Conflict if this host is no voter, and Invalid."""
        voter = self._required("create a token")
        if not 0 < seconds <= join_token.LONGEST_SECONDS or not 0 <= uses <= MOST_USES:
            raise Invalid("a token is good for up to 366 days, and for up to a million hosts", "give less")
        from linkspan.cluster.founding.foundation import create_token

        async with _vault(self.files, voter) as vault:
            token = await create_token(
                self.files, vault, [voter.signer], seconds=seconds, uses=uses, member=member
            )
            record, _ = await vault.get(TOKENS + token.id, TokenRecord)
        assert record is not None
        return token, _told(token.id, record)

    async def tokens(self) -> list[TokenTold]:
        """Return all tokens, the newest first. Raises Conflict if this host is no voter."""
        async with _vault(self.files, self._required("list tokens")) as vault:
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
        async with _vault(self.files, self._required("revoke a token")) as vault:
            for _ in range(TRIES):
                record, revision = await vault.get(TOKENS + id_, TokenRecord)
                assert record is not None
                if await vault.put({TOKENS + id_: (msgspec.structs.replace(record, revoked=True), revision)}):
                    return await self.token(id_)
        raise contended(f"token {id_}")

    async def forget(self, word: str, here: str, known: Callable[[str], bool]) -> tuple[str, str]:
        """Shut a host out, by its name or id; return its id and its name. ``here`` is this host's id.

        ``known`` says of a host's id whether it has anything among the records.
        Raises NotFound, and Conflict if this host is no voter or the host is one.
        """
        voter = self._required(f"forget host {word}")
        from linkspan.cluster.founding import exclusion

        async with self._turn, _vault(self.files, voter) as vault:
            id_, host = await exclusion.meant(vault, word, here)
            with self._etcd(here, voter) as service:
                await exclusion.exclude(self.files, vault, service, id_, known=known(id_))
        return id_, host.name


@contextlib.asynccontextmanager
async def _vault(files: TrustFiles, voter: Voter) -> AsyncIterator[Vault]:
    vault = Vault(files.root_url([voter.clients]), RECORDS_PREFIX)
    try:
        yield vault
    finally:
        await vault.close()


async def answering(url: str) -> list[str]:
    """Return the names of the members of an etcd that has a quorum, none if it does not answer."""
    store = EtcdStore(url)
    try:
        await store.gateway.ask("/v3/kv/range", {"key": f"{store.url.prefix}.cluster".encode()}, Range)
        found = await store.gateway.ask("/v3/cluster/member/list", {}, Members)
    except LinkspanError:
        return []
    finally:
        await store.close()
    return [one.name for one in found.members]


def _told(id_: str, record: TokenRecord) -> TokenTold:
    now = time.time()
    return TokenTold(id_, record.state(now), record.created, record.expires, record.uses, record.used, record.member)


def _install(state_dir: Path, service: EtcdService, voter: Voter) -> None:
    """Install etcd's unit and its user if systemd runs it. Raises LinkspanError."""
    if not voter.systemd:
        return
    installation.put(state_dir, unit_files(service))
    for words in (
        ("systemd-sysusers", f"/{ETCD_USER}"),
        ("systemctl", "daemon-reload"),
        ("systemctl", "enable", etcd_service.UNIT_NAME),
    ):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LinkspanError(f"{' '.join(words)}: {done.stderr.strip() or f'it ended with {done.returncode}'}")


def unit_files(service: EtcdService) -> Iterator[File]:
    """Return etcd's user and its unit, for systemd. Raises NotFound if there is no etcd."""
    yield File(f"/{ETCD_USER}", etcd_service.sysusers().encode())
    yield File(f"/{ETCD_UNIT}", etcd_service.unit(" ".join(map(systemd.quoted, service.argv()))).encode())
