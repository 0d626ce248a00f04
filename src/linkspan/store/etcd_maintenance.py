"""Maintenance of etcd: its members' state, compaction, defragmentation, alarms.

None of them is about records, so none compares the cluster's id. With users on, etcd asks for role root only where a
member is defragmented; a compaction, and lifting an alarm, are open to everybody (measured on 3.5.16).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable

import msgspec

from linkspan.core.errors import Denied, Unavailable
from linkspan.store.etcd_gateway import SECONDS, Gateway, Refused
from linkspan.store.etcd_status import NOSPACE, UNSEEN, EtcdStatus, MemberStatus
from linkspan.store.etcd_wire import MEMBERS_OWN, Header, Range, decode

DEFRAGMENT_SECONDS = 120.0
"""For one member: it writes its database again, 1 GB in 10 to 20 s on a plain disk."""
COMPACT_SECONDS = 60.0
"""For a compaction that is waited for: etcd works through 1,000 keys in about 10 ms, and pauses in between."""
_QUOTA = re.compile(rb"^etcd_server_quota_backend_bytes (\S+)$", re.MULTILINE)
_ALARM = re.compile(r"memberID:(\d+) alarm:(\w+)")
_ROOT = "etcdctl user grant-role USER root, with the user of the store's URL; or set store_upkeep to compact"


class _Answering(Header, frozen=True):
    """The header of a member's status: which member it is."""

    member_id: str = ""


class _Status(msgspec.Struct, frozen=True):
    header: _Answering = _Answering()
    version: str = ""
    size: int = msgspec.field(default=0, name="dbSize")
    in_use: int = msgspec.field(default=0, name="dbSizeInUse")
    quota: int = msgspec.field(default=0, name="dbSizeQuota")
    leader: str = ""
    applied: int = msgspec.field(default=0, name="raftAppliedIndex")
    learner: bool = msgspec.field(default=False, name="isLearner")
    errors: tuple[str, ...] = ()


class _Listed(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="ID")
    name: str = ""
    clients: tuple[str, ...] = msgspec.field(default=(), name="clientURLs")
    learner: bool = msgspec.field(default=False, name="isLearner")

    @property
    def places(self) -> tuple[str, ...]:
        """HOST:PORT of the URLs that it advertises to clients."""
        return tuple(url.rpartition("://")[2].rstrip("/") for url in self.clients)


class _Members(msgspec.Struct, frozen=True):
    members: tuple[_Listed, ...] = ()


class Maintenance:
    """What may be asked of an etcd besides records; ``key`` is one that its user may read, below the prefix."""

    def __init__(self, gateway: Gateway, key: str) -> None:
        self._gateway = gateway
        self._key = f"{gateway.url.prefix}{key}".encode()
        self._quotas: dict[str, tuple[float, int]] = {}
        """By member's id: when its quota was asked for, and what it is."""

    async def status(self, quota_age: float) -> EtcdStatus:
        """Ask every member that can be reached. Raises Unavailable if none tells who the members are.

        A quota counts for ``quota_age`` seconds. Before etcd 3.6 only the metrics have it, 175 KB, which cost etcd
        15 ms; and only a restart changes it.
        """
        listed = (await self._gateway.ask("/v3/cluster/member/list", {}, _Members)).members
        known, problems = await self._asked(self._gateway.url.endpoints)
        missing = [one for one in listed if one.id not in known]
        others = [place for one in missing for place in one.places if not place.startswith(MEMBERS_OWN)]
        more, refused = await self._asked(place for place in others if place not in problems)
        problems |= refused
        ids = {one.id for one in listed}  # what answers at an address may belong to another etcd
        known = {id_: told for id_, told in {**more, **known}.items() if id_ in ids}
        members = []
        for one in listed:
            if (told := known.get(one.id)) is not None:
                endpoint, status = told
                members.append(await self._member(one, endpoint, status, quota_age))
            else:
                failed = (problems[place] for place in one.places if place in problems)
                asked = [place for place in one.places if not place.startswith(MEMBERS_OWN)]
                why = next(failed, f"another etcd answers at {asked[0]}" if asked else UNSEEN)
                members.append(MemberStatus(one.id, one.name, learner=one.learner, problem=why))
        members.sort(key=lambda one: one.name)
        return EtcdStatus(time.time(), tuple(members), _alarms(status for _, status in known.values()))

    async def _asked(self, endpoints: Iterable[str]) -> tuple[dict[str, tuple[str, _Status]], dict[str, str]]:
        """Ask these endpoints at once; return the answers by member's id, and by endpoint why there is none."""
        places = list(dict.fromkeys(endpoints))
        answers = await asyncio.gather(*map(self._status, places), return_exceptions=True)
        known: dict[str, tuple[str, _Status]] = {}
        problems: dict[str, str] = {}
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, Unavailable):
                problems[place] = answer.message
            elif isinstance(answer, BaseException):
                raise answer
            else:
                known.setdefault(answer.header.member_id, (place, answer))
        return known, problems

    async def _status(self, endpoint: str) -> _Status:
        return decode(await self._gateway.at(endpoint, "/v3/maintenance/status", {}, SECONDS), _Status)

    async def _member(self, listed: _Listed, endpoint: str, told: _Status, quota_age: float) -> MemberStatus:
        return MemberStatus(
            id=listed.id,
            name=listed.name,
            endpoint=endpoint,
            version=told.version,
            size=told.size,
            in_use=told.in_use,
            quota=told.quota or await self._quota(listed.id, endpoint, quota_age),
            leader=told.leader == listed.id,
            learner=told.learner or listed.learner,
            led=told.leader not in ("", "0"),
            applied=told.applied,
        )

    async def _quota(self, member: str, endpoint: str, age: float) -> int:
        """Return a member's quota in bytes, 0 if it does not tell, below 0 if it has none."""
        at, known = self._quotas.get(member, (float("-inf"), 0))
        if time.monotonic() - at < age:
            return known
        try:
            text = await self._gateway.at(endpoint, "/metrics", {}, SECONDS)
            found = _QUOTA.search(text)
            known = int(float(found[1])) if found is not None else 0
        except (Unavailable, ValueError, OverflowError):
            known = 0  # perhaps metrics are served elsewhere only
        self._quotas[member] = time.monotonic(), known
        return known

    async def head(self) -> tuple[int, int]:
        """Return the store's revision, and the revision at which our key was written, 0 without it."""
        found = await self._gateway.ask("/v3/kv/range", {"key": self._key}, Range)
        return found.header.revision, next((one.mod_revision for one in found.kvs), 0)

    async def compacted(self, revision: int) -> bool:
        """Return whether the history at a revision was compacted. It must not lie in the future."""
        try:
            await self._gateway.ask(
                "/v3/kv/range", {"key": self._key, "revision": str(revision), "count_only": True}, Range
            )
        except Refused as error:
            if error.compacted:
                return True
            raise
        return False

    async def compact(self, revision: int, *, wait: bool = False) -> bool:
        """Compact the history before a revision; return False if somebody has done so already.

        ``wait`` for the space to be free in the answering member's file; else etcd does that in the background.
        """
        body = {"revision": str(revision), "physical": wait}
        try:
            await self._gateway.at(self._gateway.endpoint, "/v3/kv/compaction", body, COMPACT_SECONDS)
        except Refused as error:
            if error.compacted:
                return False
            raise
        return True

    async def defragment(self, member: MemberStatus) -> None:
        """Let a member write its file again, without what is unused in it; it answers nothing meanwhile.

        Raises Denied if etcd has users, and ours may not.
        """
        try:
            await self._gateway.at(member.endpoint, "/v3/maintenance/defragment", {}, DEFRAGMENT_SECONDS)
        except Unavailable as error:
            if "permission denied" in error.message or "user name is empty" in error.message:
                raise Denied(f"store etcd {member.endpoint}: only role root may defragment it", _ROOT) from error
            raise

    async def answers(self, member: MemberStatus, applied: int) -> bool:
        """Return whether a member answers, has a leader, and has applied raft's log up to an index."""
        try:
            told = await self._status(member.endpoint)
        except Unavailable:
            return False
        return told.leader not in ("", "0") and told.applied >= applied

    async def disarm(self, member: str) -> None:
        """Lift a member's alarm NOSPACE."""
        body = {"action": "DEACTIVATE", "memberID": member, "alarm": NOSPACE}
        await self._gateway.call("/v3/maintenance/alarm", body)


def _alarms(told: Iterable[_Status]) -> tuple[tuple[str, str], ...]:
    """Return the alarms, (member's id, kind), of which members tell; each knows those of all."""
    errors = (error for status in told for error in status.errors)
    return tuple(sorted({(found[1], found[2]) for error in errors for found in _ALARM.finditer(error)}))
