"""Own cluster: this host's part in a cluster that linkspan founded, as the settings and the trust files have it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from linkspan.agent.settings_file import drop_store, keep_store
from linkspan.cluster.founding import quorum
from linkspan.cluster.founding.trust_files import RECORDS_PREFIX, TrustFiles, Voter
from linkspan.core.addresses import prefix
from linkspan.core.config import Config
from linkspan.core.errors import Conflict, Invalid
from linkspan.core.model import Host
from linkspan.core.store_url import etcd_parts, told
from linkspan.runtimes import systemd
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.upkeep import Allowed
from linkspan.store.vault import Vault

Restart = Callable[[Config], None]


def addresses(host: Host) -> frozenset[str]:
    """Return a host's own addresses on the underlay."""
    return frozenset(prefix(one).address for one in (host.underlay.addresses if host.underlay else ()))


def preferred(address: str) -> tuple[bool, str]:
    """Return how good an address is for a voter's servers, the least first: IPv4 before IPv6."""
    return ":" in address, address


class OwnCluster:
    """This host's part in its cluster: whether linkspan runs the etcd, where the voters are, whether this is one."""

    def __init__(self, config: Config, file: Path, restart: Restart) -> None:
        """``file`` is the agent's settings file; ``restart`` makes the agent start again with other settings."""
        self.config = config
        self.files = TrustFiles(Path(config.state_dir))
        self.turn = asyncio.Lock()
        """One init, join, forget, leave or restore at a time: each goes on if its command ends, and a repeated one
        comes beside it."""
        self._file = file
        self._restart = restart

    @property
    def own(self) -> bool:
        """Return whether this host's store is an etcd that linkspan runs."""
        return self.files.owns(self.config.store)

    def url(self) -> str:
        """Return the store's URL, with the voters as this host knows them now."""
        return self.config.store or f"sqlite://{self.config.state_dir}/store"

    @property
    def upkeep(self) -> Allowed:
        """What the agents may do to keep etcd small: everything to one that linkspan runs, unless the setting is none.

        The voters' agents do it there (``keeps_store``).
        """
        return "all" if self.own and self.config.store_upkeep != "none" else self.config.store_upkeep

    def keeps_store(self) -> bool:
        """Return whether this host's agent may take part in that: in an etcd that linkspan runs, only voters' do."""
        return not self.own or self.voter() is not None

    def voter(self) -> Voter | None:
        """Return this host's part as a voter of its cluster, None if it is a client, or has no such cluster."""
        return self.files.voter() if self.own else None

    @property
    def places(self) -> tuple[str, ...]:
        """Return HOST:PORT of etcd on all voters, as this host knows them now."""
        return etcd_parts(self.config.store).endpoints if self.own else ()

    def required(self, what: str) -> Voter:
        """Return this host's part as a voter. Raises Conflict with what it cannot do otherwise."""
        if (voter := self.voter()) is not None:
            return voter
        if not self.own:
            where = "an etcd of your own has its own users" if self.config.store else "linkspan cluster init makes one"
            raise Conflict(f"{what}: this host is in no cluster that linkspan founded", where)
        hosts = ", ".join(one.rpartition(":")[0] for one in self.places)
        raise Conflict(f"{what}: only a voter can do that", f"run the command on a voter: {hosts}")

    def refuse_foreign(self, fix: str) -> None:
        """Raise Conflict, with the fix, if this host's store is another one than an etcd that linkspan runs."""
        if self.config.store and not self.own:
            where = told(self.config.store)
            raise Conflict(f"this host's store is {where}, which linkspan did not start and does not touch", fix)

    def chosen(self, host: Host, advertise: str) -> Voter:
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

    def follow(self, places: tuple[str, ...], host: str) -> None:
        """Take over where the voters' etcd is, for the host with this id, also for the next start.

        Raises LinkspanError if the settings file cannot be written; the agent itself goes on with the new places.
        """
        url = self.files.url(places, host)
        self.config = msgspec.structs.replace(self.config, store=url)
        keep_store(self._file, url)

    def use(self, url: str, *, always: bool = False) -> bool:
        """Keep the store in the settings, and restart unless it is in use; return whether. Raises LinkspanError.

        ``always``: restart in any case, because certificate and password are others.
        """
        keep_store(self._file, url)
        if url == self.config.store and not always:
            return False
        self.config = msgspec.structs.replace(self.config, store=url)  # for whoever has the next turn
        self.restart()
        return True

    def drop(self) -> None:
        """Take linkspan's etcd out of the settings. Raises LinkspanError."""
        drop_store(self._file, self.files.owns)
        if self.own:
            self.config = msgspec.structs.replace(self.config, store="")

    def restart(self) -> None:
        """Let the agent start again with the settings as they are now."""
        self._restart(self.config)

    @contextlib.asynccontextmanager
    async def vault(self) -> AsyncIterator[Vault]:
        """Give the vault, as etcd's root, at any voter. Raises Unavailable at once if the voters have no quorum."""
        async with self._vault_at(self.places) as vault:
            await quorum.require(vault.gateway)
            yield vault

    @contextlib.asynccontextmanager
    async def root(self) -> AsyncIterator[Gateway]:
        """Give connections to the voters as etcd's root, on a voter; no quorum is needed before a login."""
        async with self._vault_at(self.places) as vault:
            yield vault.gateway

    async def require_quorum(self) -> None:
        """Raise Unavailable, with the cause and the fix, if the voters can change nothing now."""
        async with self._asking() as gateway:
            await quorum.require(gateway)

    async def has_quorum(self) -> bool:
        """Return whether a quorum of the voters answers, also while they have no leader."""
        async with self._asking() as gateway:
            return (await quorum.look(gateway)).has_quorum

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[Gateway]:
        """Give connections to the voters."""
        gateway = Gateway(etcd_parts(self.config.store))
        try:
            yield gateway
        finally:
            await gateway.close()

    @contextlib.asynccontextmanager
    async def vault_here(self, voter: Voter) -> AsyncIterator[Vault]:
        """Give the vault, as etcd's root, at this voter's own etcd."""
        async with self._vault_at((voter.clients,)) as vault:
            yield vault

    @contextlib.asynccontextmanager
    async def _vault_at(self, places: tuple[str, ...]) -> AsyncIterator[Vault]:
        vault = Vault(self.files.root_url(places), RECORDS_PREFIX)
        try:
            yield vault
        finally:
            await vault.close()
