"""Quorum: which voters answer, and what to say and to do if too few of them do.

They are asked all at once, and without a login: etcd lets nobody log in without a quorum, and each try ends only after
seconds. So a command says at once what is wrong, instead of trying one voter after the other. It waits for an election
only, which ends by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from linkspan.cluster.founding import member_list
from linkspan.cluster.founding.voting import quorum
from linkspan.core.clock import loop_time
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.store.etcd_errors import Failed, Refused
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_wire import Member, Members, decode

SECONDS = 2.0
"""Seconds for a voter's answer: a healthy one needs 1 ms, and an election takes 1 to 2 s."""
ELECTION = 4.0
"""Seconds for which an election is waited for: it takes 1 to 2 s, and another one may follow."""
AGAIN = 0.2


class _Status(msgspec.Struct, frozen=True):
    leader: str = ""


class Voters(msgspec.Struct, frozen=True):
    """The voters as they are now, by HOST:PORT of their etcd.

    ``members`` are etcd's as one of them knows them, () if none answers. ``standing`` says of each whether it knows a
    leader, which only a quorum elects, or why it does not answer.
    """

    members: tuple[Member, ...]
    places: tuple[str, ...]
    standing: Mapping[str, bool | LinkspanError]

    def healthy(self, member: Member) -> bool:
        """Return whether a member, perhaps a learner, answers and knows a leader."""
        return any(self.standing.get(one) is True for one in _places(member))

    @property
    def has_quorum(self) -> bool:
        """Return whether the voters can elect a leader, or have one: enough of them answer."""
        said = [self.standing.get(one) for one in self.places]
        answering = sum(not isinstance(one, LinkspanError) for one in said)
        return True in said or answering >= quorum(len(self.places))

    @property
    def problem(self) -> LinkspanError | None:
        """Return what is wrong, and what to do, if the voters can change nothing; None if they can."""
        if any(self.standing.get(one) is True for one in self.places):
            return None
        silent = {one: why for one in self.places if isinstance(why := self.standing.get(one), LinkspanError)}
        answering, least = [one for one in self.places if one not in silent], quorum(len(self.places))
        if not answering:
            return _none_answers([*silent.values()])
        if self.has_quorum:
            return Unavailable("the voters have no leader at this moment: they elect one", "try again in some seconds")
        return Unavailable(
            f"etcd has no quorum: {len(answering)} of {len(self.places)} voters answer ({_told(answering)}), "
            f"and {least} must; silent: {_told(silent)}",
            "what runs continues, and all goes on by itself once enough of them are up. If the others are lost for "
            "good, type on a voter that is left: linkspan cluster recover (docs/recovery.md)",
        )


def _none_answers(why: Sequence[LinkspanError]) -> LinkspanError:
    """Return the error if no voter answers; one that refuses this host says itself what to do."""
    refuses = next((one for one in why if not (isinstance(one, Failed) and one.unanswered)), None)
    who = f"none of the {len(why)} voters answers" if why[1:] else "the voter does not answer"
    hint = (
        "all goes on by itself when it does: is it up, does its agent run, and does TCP 5379 pass to it? If all voters "
        "are lost for good: linkspan cluster restore FILE (docs/recovery.md)"
    )
    told = "; ".join(dict.fromkeys(one.message for one in why))
    return Unavailable(f"{who}: {told}", hint if refuses is None else refuses.hint)


async def look(gateway: Gateway) -> Voters:
    """Ask all voters at once: those that this host knows, then those that they know besides."""
    known = gateway.url.endpoints
    lists, standing = await asyncio.gather(_lists(gateway, known), _standing(gateway, known))
    best = sorted(lists, key=lambda one: standing.get(one) is not True)
    members = next((lists[one] for one in best if lists[one]), ())
    others = {place for one in members for place in _places(one)} - {*known}
    voters = member_list.endpoints(members) or known
    return Voters(members, voters, standing | await _standing(gateway, others))


async def require(gateway: Gateway) -> None:
    """Raise Unavailable, with the cause and the fix, if the voters can change nothing, also after an election."""
    deadline = loop_time() + ELECTION
    while (problem := (voters := await look(gateway)).problem) is not None:
        if not voters.has_quorum or loop_time() > deadline:
            raise problem
        await asyncio.sleep(AGAIN)


def _places(member: Member) -> tuple[str, ...]:
    """Return HOST:PORT of a member's etcd for clients, also of a learner's."""
    return member_list.endpoints([msgspec.structs.replace(member, learner=False)])


def _told(places: Iterable[str]) -> str:
    return ", ".join(one.rpartition(":")[0] for one in places)


async def _lists(gateway: Gateway, places: Iterable[str]) -> dict[str, tuple[Member, ...]]:
    """Return etcd's members as each place knows them, if it answers."""
    found = await _answers(gateway, places, "/v3/cluster/member/list")
    return {place: decode(one, Members).members for place, one in found.items() if isinstance(one, bytes) and one}


async def _standing(gateway: Gateway, places: Iterable[str]) -> dict[str, bool | LinkspanError]:
    """Return of each place whether it knows a leader, or why it does not answer."""
    found = await _answers(gateway, places, "/v3/maintenance/status")
    return {place: _leads(one) if isinstance(one, bytes) else one for place, one in found.items()}


def _leads(answer: bytes) -> bool:
    return bool(answer) and decode(answer, _Status).leader not in ("", "0")


async def _answers(gateway: Gateway, places: Iterable[str], path: str) -> dict[str, bytes | LinkspanError]:
    """Return each place's answer, b'' if it says nothing to this user, or why there is none."""

    async def one(place: str) -> bytes | LinkspanError:
        try:
            return await gateway.openly(place, path, {}, SECONDS)
        except Refused:  # a later etcd may tell it to its users alone
            pass
        except LinkspanError as error:
            return error
        try:
            async with asyncio.timeout(SECONDS):
                return await gateway.at(place, path, {}, SECONDS)
        except (LinkspanError, TimeoutError):
            return b""

    asked = [*places]
    return dict(zip(asked, await asyncio.gather(*map(one, asked)), strict=True))
