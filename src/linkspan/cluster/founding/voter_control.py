"""Control of the voters: one voter's agent decides, in steps that any other one can take up.

Every voter's agent observes all of them, so that a new one knows how long each has been healthy. The agent beside
etcd's leader decides; if it does not live, that of the first voter that answers. Each step begins with a change of one
record in the vault, on the condition that nobody changed it since this agent looked (``handover.Turn``).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import msgspec

from linkspan.cluster.founding import handover, member_list
from linkspan.cluster.founding.authority_plan import ROTATION, RotationRecord
from linkspan.cluster.founding.exclusion import forgettable, named
from linkspan.cluster.founding.handover import TURN, Turn
from linkspan.cluster.founding.signer import HOSTS, JoinedHost
from linkspan.cluster.founding.trust_files import Voter
from linkspan.cluster.founding.voting import (
    Add,
    Candidate,
    Clocks,
    Promote,
    Remove,
    Seen,
    Situation,
    VotingSettings,
    Wait,
    next_step,
    refusal,
)
from linkspan.core.errors import Conflict, Invalid, LinkspanError, NotFound
from linkspan.store.etcd_errors import Refused
from linkspan.store.etcd_maintenance import Maintenance
from linkspan.store.etcd_wire import Member
from linkspan.store.vault import TRIES, Vault, contended

log = logging.getLogger("linkspan.cluster.founding.voter_control")

SETTINGS = "voting/settings"
"""The vault's key of the cluster's settings of voting."""
RETRY_SECONDS = 600.0
"""Seconds after which a host that failed to become a voter may be chosen again."""
UNFIT = ("already exist", "URLs are invalid")
"""What etcd says of an address that no new member can have, as one that another member has."""
FORGETTING = "voting/forgetting/"
"""Prefix of the vault's keys of hosts that are forgotten now; the ids of the host and of that voter follow."""
FORGETTING_SECONDS = 150.0
"""Seconds after which voting goes on all the same: an agent may be killed while it forgets a host."""
QUOTA_AGE = 1e9
"""Seconds for which a known quota is used: nothing here needs it."""


class Forgetting(msgspec.Struct, frozen=True):
    """A host is forgotten now; ``by`` is the voter whose agent does it, as its key says."""

    by: str


class Living(Protocol):
    """The hosts as this agent knows them from their records."""

    def lives(self, host: str) -> bool | None:
        """Return whether a host's agent lives, None if nobody knows."""

    def address(self, host: str) -> str:
        """Return a host's address to the others, '' if it has none, or takes nothing more (it is drained)."""

    def known(self, host: str) -> bool:
        """Return whether a host has a record."""

    def names(self) -> Mapping[str, str]:
        """Return the hosts' names by their ids."""


class VoterControl:
    """Observes the voters, and changes them if it is this host's part to decide."""

    def __init__(self, vault: Vault, here: str, living: Living, tell: Callable[[str], None]) -> None:
        """Control the members of a vault's etcd; ``here`` is this host's id, ``tell`` takes a sentence for people."""
        self._vault = vault
        self._here = here
        self._living = living
        self._tell = tell
        self._clocks = Clocks()
        self._maintenance = Maintenance(vault.gateway, TURN)

    async def look(self) -> None:
        """Observe all members, and take one step if this host decides. Raises LinkspanError."""
        seen = await self.members()
        if self._decides(seen):
            await self._step(seen)

    async def members(self) -> tuple[Seen, ...]:
        """Return all members as they are now. Raises Unavailable."""
        listed = await member_list.listed(self._vault.gateway, agreed=True)
        told = {one.id: one for one in (await self._maintenance.status(QUOTA_AGE)).members}
        now, found = time.monotonic(), []
        self._clocks.keep(one.id for one in listed)
        for one in listed:
            status = told.get(one.id)
            answers = status is not None and not status.problem and status.led
            progress = (one.name, None if status is None else (status.applied, status.size))
            self._clocks.note(one.id, answers=answers, progress=progress, now=now)
            healthy, failing, still = self._clocks.times(one.id, now)
            found.append(
                Seen(id=one.id, host=member_list.host_of(one), learner=one.learner, healthy=healthy, failing=failing,
                     still=still, leader=status is not None and status.leader)
            )  # fmt: skip
        return tuple(found)

    async def answering(self) -> frozenset[str]:
        """Return the ids of the hosts whose voters answer now. Raises Unavailable."""
        return frozenset(one.host for one in await self.members() if not one.learner and not one.failing)

    @contextlib.asynccontextmanager
    async def steady(self, host: str) -> AsyncIterator[None]:
        """Let the voters stay who they are in the block, in which a host is forgotten. Raises LinkspanError.

        With one host less there may be more voters than needed. The next step of voting could take out the very voter
        that forgets the host, and it could not end that: what is left to do is for voters alone. After a failure they
        stay for FORGETTING_SECONDS, because the operator is told to type the same again. After a refusal they need not.

        A step that another voter had begun when the block began is not covered: it changes etcd's members all the same.
        """
        key = f"{FORGETTING}{host}/{self._here}"  # two voters may forget one host: each ends what it began alone
        _, before = await self._vault.get(key, Forgetting)
        if before:  # the last try broke off, and voting would go on before this one has ended
            await self._vault.put({key: (None, before)})
        await self._vault.hold(key, Forgetting(self._here), FORGETTING_SECONDS)
        await self._overtake()
        try:
            yield
        except (Conflict, Invalid, NotFound):
            await self._go_on(key)
            raise
        await self._go_on(key)

    async def _overtake(self) -> None:
        """Change the turn, so that whoever looked before begins no step; who looks from now on sees the mark."""
        turn, revision = await self._vault.get(TURN, Turn)
        while not await self._vault.put({TURN: (turn or Turn(by="", at=0.0), revision)}):
            turn, revision = await self._vault.get(TURN, Turn)

    async def _go_on(self, key: str) -> None:
        """Remove the mark of a host that was forgotten, or is not."""
        with contextlib.suppress(LinkspanError):  # it ends by itself
            _, now = await self._vault.get(key, Forgetting)
            await self._vault.put({key: (None, now)})

    def idle(self, host: str) -> bool:
        """Return whether a host's agent does not run, as far as anybody knows."""
        return self._living.lives(host) is False

    def name(self, host: str) -> str:
        """Return a host's name, its id if that is not known."""
        return self._living.names().get(host, host)

    def _decides(self, seen: tuple[Seen, ...]) -> bool:
        voters = sorted((one for one in seen if not one.learner and not one.failing), key=lambda one: one.host)
        living = [one for one in voters if one.host == self._here or self._living.lives(one.host) is not False]
        leader = [one.host for one in living if one.leader]
        return bool(living) and self._here == (leader or [one.host for one in living])[0]

    async def _step(self, seen: tuple[Seen, ...]) -> None:
        turn, revision = await self._vault.get(TURN, Turn)
        turn = turn or Turn(by="", at=0.0)
        settings = await self.settings()
        joined = await self._vault.all(HOSTS, JoinedHost)
        inside = {host for host, one in joined.items() if not one.forgotten and self._living.known(host)}
        chosen = joined.get(turn.host)
        situation = Situation(
            members=seen,
            candidates=candidates(joined, seen, self._living, turn, settings, time.time()),
            hosts=len(inside),
            settings=settings,
            refused=bool(turn.host and (turn.refused or chosen is None or chosen.forgotten or not chosen.member)),
        )
        step = next_step(situation)
        if isinstance(step, Wait):
            return
        if isinstance(step, Add) and (await self._vault.get(ROTATION, RotationRecord))[0] is not None:
            return  # it would get the authorities that end
        if await self._vault.all(FORGETTING, Forgetting):
            return
        mine = msgspec.structs.replace(turn, by=self._here, at=time.time())
        if isinstance(step, Add):
            mine = msgspec.structs.replace(mine, host=step.candidate.host, address=step.candidate.address, refused="")
        elif isinstance(step, Remove) and step.member.learner and turn.host:
            mine = handover.refused(mine, turn.host)
        if not await self._vault.put({TURN: (mine, revision)}):
            return
        try:
            await self._carry_out(step, turn, joined, next((one.id for one in seen if one.leader), ""))
        except Refused as error:
            if isinstance(step, Add) and any(word in error.message for word in UNFIT):
                await self._refuse(step.candidate)
            raise

    async def _refuse(self, candidate: Candidate) -> None:
        """Note that etcd takes no member at a host's address, so that others are chosen."""
        turn, revision = await self._vault.get(TURN, Turn)
        if turn is not None and turn.host == candidate.host:
            await self._vault.put({TURN: (handover.refused(turn, candidate.host), revision)})

    async def _carry_out(
        self, step: Add | Promote | Remove, turn: Turn, joined: Mapping[str, JoinedHost], leader: str
    ) -> None:
        def name(host: str) -> str:
            return joined[host].name if host in joined else host

        gateway = self._vault.gateway
        if isinstance(step, Add):
            await member_list.add_learner(gateway, Voter(step.candidate.address).peers)
            self._tell(f"host {name(step.candidate.host)} is to become a voter")
        elif isinstance(step, Promote):
            try:
                await member_list.promote(gateway, step.member.id, leader)
            except LinkspanError as error:
                if "in sync" in error.message:  # it still catches up
                    return
                raise
            await self._vault.enrol(step.member.host)
            self._tell(f"host {name(step.member.host)} is a voter now")
        else:
            await self._remove(step, turn, name(step.member.host or turn.host))

    async def _remove(self, step: Remove, turn: Turn, name: str) -> None:
        await self._expel(step.member)
        why = turn.refused if step.member.learner and turn.refused else step.why
        self._tell(f"host {name} is no {'learner' if step.member.learner else 'voter'} any more: {why}")

    async def _expel(self, member: Seen) -> None:
        """Take a member out of etcd. Raises LinkspanError.

        Its user loses a voter's right first: what breaks off after that is repeated, as long as it is a member. Then it
        loses it once more: its own agent, or one that has just promoted it, may have given it back meanwhile.
        """
        if member.host:
            await self._vault.retire(member.host)
        try:
            await member_list.remove(self._vault.gateway, member.id)
        except LinkspanError:
            if member.host and not member.learner:
                await self._vault.enrol(member.host)
            raise
        if member.host:
            with contextlib.suppress(LinkspanError):  # it is taken out; the others may elect a leader now
                await self._vault.retire(member.host)

    async def settings(self) -> VotingSettings:
        """Return the cluster's settings of voting. Raises Unavailable."""
        found, _ = await self._vault.get(SETTINGS, VotingSettings)
        return found or VotingSettings()

    async def meant(self, word: str) -> tuple[str, JoinedHost]:
        """Return the id of a host, by its name or id, and what is kept of it. Raises Conflict or NotFound."""
        hosts = await self._vault.all(HOSTS, JoinedHost)
        id_ = named(hosts, word, self._living.names())
        return id_, hosts[id_]

    async def forgettable(self, word: str) -> tuple[str, str]:
        """Return id and name of the host that an operator wants to forget. Raises Conflict or NotFound."""
        hosts, names = await self._vault.all(HOSTS, JoinedHost), self._living.names()
        id_ = forgettable(hosts, word, names, self._living.lives)
        return id_, names.get(id_) or hosts[id_].name

    async def demote(self, word: str) -> str:
        """Take a voter out of etcd, by its host's name or id, for good; return its id. Raises Conflict or NotFound."""
        host, known = await self.meant(word)
        await self.take_out(host, known.name)
        return host

    async def take_out(self, host: str, name: str) -> None:
        """Let a host be no member of etcd, now and until an operator wants it.

        Raises Conflict if the others have no quorum then.
        """
        seen = await self.members()
        member = next((one for one in seen if one.host == host), None)
        if member is not None and not member.learner and (why := refusal(seen, member.id)):
            raise Conflict(f"host {name} must stay a voter: {why}", "promote another host first, or bring voters back")
        await self._mark(host, member=False)
        if member is None:
            await self._vault.retire(host)  # an earlier try may have broken off
        else:
            await self._expel(member)

    async def choose(self, word: str) -> str:
        """Let a host become the next voter, by its name or id; return its id. Raises Conflict or NotFound."""
        host, known = await self.meant(word)
        seen, settings = await self.members(), await self.settings()
        voters = [one for one in seen if not one.learner]
        if any(one.host == host for one in voters):
            return host
        joined = await self._vault.all(HOSTS, JoinedHost)
        hosts = sum(not one.forgotten and self._living.known(id_) for id_, one in joined.items())
        wanted = Situation(members=seen, hosts=hosts, settings=settings).wanted
        if len(voters) >= wanted:
            raise Conflict(
                f"the cluster has {len(voters)} voters, and {wanted} are enough for {hosts} hosts",
                "linkspan cluster demote HOST first, or ask for more: linkspan cluster init --voters N",
            )
        if self._living.lives(host) is False or not self._living.address(host):
            raise Conflict(f"host {known.name} does not answer, or is drained", "linkspan host list")
        await self._mark(host, member=True)
        await change_settings(self._vault, first=host)
        turn, revision = await self._vault.get(TURN, Turn)
        if turn is not None and host in turn.failed:
            failed = {id_: at for id_, at in turn.failed.items() if id_ != host}
            await self._vault.put({TURN: (msgspec.structs.replace(turn, failed=failed), revision)})
        return host

    async def _mark(self, host: str, *, member: bool) -> None:
        """Write down whether a host may be a voter."""
        for _ in range(TRIES):
            known, revision = await self._vault.get(HOSTS + host, JoinedHost)
            if known is None or known.member is member:
                return
            if await self._vault.put({HOSTS + host: (msgspec.structs.replace(known, member=member), revision)}):
                return
        raise contended(f"host {host}")


async def change_settings(
    vault: Vault, *, voters: int | None = None, first: str = "", replace_after: float | None = None
) -> None:
    """Change settings of voting; None and '': leave one as it is. Raises LinkspanError."""
    for _ in range(TRIES):
        known, revision = await vault.get(SETTINGS, VotingSettings)
        found = known or VotingSettings()
        changed = msgspec.structs.replace(
            found,
            voters=found.voters if voters is None else voters,
            first=first or found.first,
            replace_after=found.replace_after if replace_after is None else replace_after,
        )
        if changed == found or await vault.put({SETTINGS: (changed, revision)}):
            return
    raise contended("the settings of voting")


def candidates(
    joined: Mapping[str, JoinedHost],
    seen: tuple[Seen, ...],
    living: Living,
    turn: Turn,
    settings: VotingSettings,
    now: float,
) -> tuple[Candidate, ...]:
    """Return the hosts that may become voters now, the best first: the one that an operator wants, then by name."""
    members = {one.host for one in seen}
    found = [
        (host != settings.first, one.name, Candidate(host, living.address(host)))
        for host, one in joined.items()
        if one.member and not one.forgotten and host not in members and living.lives(host)
        and living.address(host) and abs(now - turn.failed.get(host, float("-inf"))) > RETRY_SECONDS
    ]  # fmt: skip
    return tuple(candidate for _, _, candidate in sorted(found, key=lambda one: one[:2]))


def chosen(members: tuple[Member, ...], addresses: frozenset[str], name: str) -> Member | None:
    """Return the learner that this host is to be, by its addresses and its name in etcd; None if it is none."""
    for one in members:
        if one.learner and member_list.address(one) in addresses and one.name in ("", name):
            return one
    return None
