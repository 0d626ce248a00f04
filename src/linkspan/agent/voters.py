"""Voters, as a part of the agent: which endpoints etcd has, and whether this host becomes a voter or stops being one.

Every host of a cluster that linkspan founded follows etcd's list of members: the store's endpoints are its voters. If
none answers, it looks for etcd where voters call it from (``voter_call``). A host that finds itself in the list as a
learner was chosen, and makes itself ready. A voter also looks after the others (``voter_control``), and after what is
revoked.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec

from linkspan.agent.etcd_unit import EtcdUnit
from linkspan.agent.own_cluster import OwnCluster, addresses, preferred
from linkspan.agent.voter_server import VoterServer
from linkspan.cluster.founding import member_list, promotion, voter_call
from linkspan.cluster.founding.etcd_service import VOTER, EtcdService
from linkspan.cluster.founding.revocation import Revocation
from linkspan.cluster.founding.trust_files import Voter
from linkspan.cluster.founding.voter_control import Living, VoterControl, chosen
from linkspan.cluster.hosts import Hosts
from linkspan.core.errors import LinkspanError, Rejected
from linkspan.core.supervise import ended, lasting
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_wire import Member

log = logging.getLogger("linkspan.agent.voters")

CLIENT_LOOK, VOTER_LOOK = 5.0, 2.0
"""Seconds between two looks at the members: etcd answers from its memory, in 0.2 ms."""
OTHERS_LOOK = 20.0
"""Seconds between two questions to each other voter, whether it goes on without this one: it may have been restored."""
MOVE_AFTER = 60.0
"""Seconds for which a voter's address is waited for: a lease of DHCP may end for a while, and an interface be down."""
CALL_EVERY, MOST_CALLED = 10.0, 256
"""Seconds between two calls of hosts that are silent, and how many of them are called at a time."""
SPREAD = 0.25
"""Fraction by which a wait may be longer, so that not all hosts ask at once."""


class LivingHosts(Living):
    """The hosts as the records know them."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def lives(self, host: str) -> bool | None:
        """Return whether a host's agent lives, None if nobody knows."""
        return self._hosts.lives(host)

    def known(self, host: str) -> bool:
        """Return whether a host has a record."""
        return host in self._hosts.ids()

    def names(self) -> Mapping[str, str]:
        """Return the hosts' names by their ids."""
        return self._hosts.names()

    def address(self, host: str) -> str:
        """Return a host's address to the others, '' if it has none, or takes nothing more (it is drained)."""
        found = self._hosts.record(host)
        if found is None or found.settings.get("drained"):
            return ""
        return min(addresses(found), key=preferred, default="")


def moved(voter: Voter, own: frozenset[str], missed: float) -> str:
    """Return the address that a voter's etcd must get instead of its own, '' if it stays where it is. Pure.

    ``own`` are the host's addresses, which lack the voter's for ``missed`` seconds. Hosts that know none but the former
    address find a voter only there. So it waits whether the address comes back, and goes back if it does later.
    """
    if voter.former in own:
        return voter.former
    if voter.address in own or missed < MOVE_AFTER:
        return voter.address if voter.moving else ""
    return min((one for one in own if (":" in one) == (":" in voter.address)), default="")


class Voters:
    """Follows etcd's members on one host."""

    def __init__(
        self,
        cluster: OwnCluster,
        unit: EtcdUnit,
        gateway: Gateway,
        cluster_id: str,
        hosts: Hosts,
        server: VoterServer | None,
        tell: Callable[[str], None],
        renewed: Callable[[], None],
    ) -> None:
        """``gateway`` and ``cluster_id`` are the store's; ``server`` runs on a voter.

        ``tell`` takes a sentence for the operator, and ``renewed`` is as ``VoterServer`` has it.
        """
        self._cluster = cluster
        self._files = cluster.files
        self._unit = unit
        self._gateway = gateway
        self._cluster_id = cluster_id
        self._hosts = hosts
        self.server = server
        self._tell = tell
        self._renewed = renewed
        self.control: VoterControl | None = None
        self.revocation: Revocation | None = None
        self._said = ""
        self._enrolled = False
        self._missed: float | None = None
        """Since when this host lacks its etcd's address (monotonic clock)."""
        self._ask_others = 0.0
        """When each of the other voters is asked next (monotonic clock)."""
        self._next_call = 0.0
        """When silent hosts are called next (monotonic clock)."""
        self._ear = voter_call.Ear()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow; on a voter, let hosts join."""
        if self.server is not None:
            self._serve(self.server)
        self._task = lasting("following the voters", self._follow)

    async def stop(self) -> None:
        """End; etcd goes on by itself."""
        await ended(self._task)
        self._ear.close()

    @property
    def _life(self) -> float:
        """Return for how many seconds new certificates are valid."""
        return self._cluster.config.certificate_life

    def _start(self, voter: Voter) -> None:
        """Run what a voter runs."""
        here, places = self._hosts.here.id, lambda: self._gateway.url.endpoints
        self.server = VoterServer(self._files, here, voter, places, self._life, self._renewed)
        self._serve(self.server)

    def _serve(self, server: VoterServer) -> None:
        server.sign(self._cluster_id)
        here = self._hosts.here.id
        self.control = VoterControl(server.vault, here, LivingHosts(self._hosts), self._tell)
        self.revocation = Revocation(self._files, server.vault, server.service, here)
        self._enrolled = False

    async def _follow(self) -> None:
        while True:
            try:
                await self.look()
                self._said = ""
                self._ear.close()
            except LinkspanError as error:  # the store may be away, which `status` says
                if error.message != self._said:
                    log.info("voters: %s", error.told)
                self._said = error.message
                if self.server is None and not isinstance(error, Rejected):
                    await self._seek()
            pause = VOTER_LOOK if self.server is not None else CLIENT_LOOK
            await asyncio.sleep(pause * (1 + random.uniform(0, SPREAD)))  # noqa: S311 - it spreads, and hides nothing

    async def look(self) -> None:
        """Follow the members once. Raises LinkspanError."""
        if self.server is not None and (address := self._moved(self.server.voter)):
            await self._move(self.server, address)
        members = await member_list.listed(self._gateway)
        self._use(member_list.endpoints(members))
        own = chosen(members, addresses(self._hosts.here), f"{VOTER}{self._hosts.here.id}")
        if own is not None:
            await self._become(members, own)
        elif self.server is not None:
            if await self._is_out(self.server.voter):
                await self._retire(self.server)
            else:
                await self._look_after(self.server, members)
        elif self._files.voters_left() and not self._cluster.turn.locked() and not await self._is_member():
            # A restore that makes a voter of this host has the turn.
            await self._be_client(self._files.voter() or Voter("", self._unit.systemd))  # what broke off left secrets

    async def _seek(self) -> None:
        """Look for etcd where voters call from, because none answers at the places that this host knows."""
        self._ear.open()
        for address in self._ear.callers():
            url = self._files.url([Voter(address).clients], self._hosts.here.id)
            if places := member_list.endpoints(await member_list.answering(url, member_list.LOOK)):
                self._use(places)
                self._tell(f"etcd was not found where it had been; the voter at {address} has called this host")
                return

    async def _call(self, server: VoterServer) -> None:
        """Call the hosts that are silent: they may know none of the voters' addresses."""
        if time.monotonic() < self._next_call:
            return
        self._next_call = time.monotonic() + CALL_EVERY
        silent = [host for id_, host in self._hosts.all().items() if self._hosts.lives(id_) is False]
        called = random.sample(silent, min(len(silent), MOST_CALLED))
        voter_call.call(server.voter.address, [one for host in called for one in sorted(addresses(host))])

    def _use(self, places: tuple[str, ...]) -> None:
        """Use the voters as the store's endpoints."""
        if not places or set(places) == set(self._gateway.url.endpoints):
            return
        self._gateway.follow(places)
        try:
            self._cluster.follow(places, self._hosts.here.id)
        except LinkspanError as error:
            self._tell(f"this host's next start may not find etcd: {error.told}")
        if self.server is not None:
            self.server.follow()
        log.info("etcd's voters are now %s", ", ".join(places))

    async def _become(self, members: tuple[Member, ...], own: Member) -> None:
        """Make this host the voter that it was chosen to be, unless that is done."""
        here = self._hosts.here.id
        voter = Voter(
            member_list.address(own), self._unit.systemd, promotion.joins(members, own, f"{VOTER}{here}")
        )
        if self.server is not None and promotion.has_joined(self.server.service, own):
            return
        if self.server is not None:
            await self.server.stop()
            self.server = None
        service = EtcdService(self._files.state_dir, here, voter)
        try:
            places = self._gateway.url.endpoints
            install = partial(self._unit.install, voter)
            await promotion.become(self._files, service, voter, own, places, install, self._life)
        finally:
            service.close()
        self._tell("this host becomes a voter of the cluster")
        self._start(voter)

    def _moved(self, voter: Voter) -> str:
        """Return the address that this host's etcd must get, '' if it stays where it is."""
        own, now = addresses(self._hosts.here), time.monotonic()
        if voter.address in own:
            self._missed = None
        elif self._missed is None:
            self._missed = now
        return moved(voter, own, 0 if self._missed is None else now - self._missed)

    async def _move(self, server: VoterServer, address: str) -> None:
        """Let this host's etcd listen at another address; the other voters are told once it answers."""
        known, here = server.voter, self._hosts.here.id
        if address not in (known.address, known.former) and len(self._gateway.url.endpoints) > 1:
            await member_list.listed(self._gateway, agreed=True)  # else nobody could be told, and no voter find another
        former = known.former or known.address
        voter = msgspec.structs.replace(
            known, address=address, former="" if former == address else former, moving=False
        )
        await server.stop()
        service = EtcdService(self._files.state_dir, here, voter)
        try:
            await promotion.move(self._files, service, voter, partial(self._unit.install, voter), self._life)
        finally:
            service.close()
            self._start(self._files.voter() or known)
        self._tell(f"this host's address has changed: its etcd is at {address} now")
        others = (one for one in self._gateway.url.endpoints if one != known.clients)
        self._use((*others, voter.clients))

    async def _is_out(self, voter: Voter) -> bool:
        """Return whether a quorum of the voters knows this host as no member any more."""
        if not await self._is_member():
            return True
        if time.monotonic() < self._ask_others:
            return False
        self._ask_others = time.monotonic() + OTHERS_LOOK
        others = [one for one in self._gateway.url.endpoints if one != voter.clients]
        return await member_list.is_replaced(self._files, others, self._hosts.here.id, voter.address)

    async def _is_member(self) -> bool:
        """Return whether a quorum of the voters has this host among etcd's members."""
        here = self._hosts.here
        return member_list.has(await member_list.listed(self._gateway, agreed=True), here.id, addresses(here))

    async def _retire(self, server: VoterServer) -> None:
        """Go on as a client; if that fails, each look tries it again."""
        self.server = self.control = self.revocation = None
        await server.stop()
        await self._be_client(server.voter)

    async def _be_client(self, voter: Voter) -> None:
        """Remove what only a voter has. Raises LinkspanError."""
        service = EtcdService(self._files.state_dir, self._hosts.here.id, voter)
        try:
            await promotion.retire(self._files, service)
        finally:
            service.close()
        await asyncio.to_thread(self._unit.uninstall)
        self._tell("this host is no voter of the cluster any more")

    async def _look_after(self, server: VoterServer, members: tuple[Member, ...]) -> None:
        """Do a voter's part: its user may write every record, the other voters are observed, the revoked refused.

        One part that fails, as on a full disk, keeps no other one from going on: nobody else may do it meanwhile.
        """
        server.follow()
        parts: list[Callable[[], Awaitable[None]]] = [
            partial(self._tell_address, server, members), self._enrol, partial(self._call, server),
        ]  # fmt: skip
        if self.revocation is not None:
            parts.append(self.revocation.look)
        if self.control is not None:
            parts.append(self.control.look)
        failed: list[LinkspanError] = []
        for part in parts:
            try:
                await part()
            except LinkspanError as error:
                failed.append(error)
        if failed:
            raise LinkspanError("; ".join(dict.fromkeys(one.message for one in failed)), failed[0].hint)

    async def _tell_address(self, server: VoterServer, members: tuple[Member, ...]) -> None:
        """Tell the other voters where this one is."""
        own = next((one for one in members if one.name == server.service.name), None)
        if own is None:
            return
        if member_list.address(own) != server.voter.address:
            await member_list.move(server.vault.gateway, own.id, server.voter.peers)
        elif server.voter.former and len(member_list.endpoints(members)) > 1:
            server.settled()

    async def _enrol(self) -> None:
        """Let this host's user write every record."""
        if self.server is not None and not self._enrolled:
            await self.server.vault.enrol(self._hosts.here.id)
            self._enrolled = True
