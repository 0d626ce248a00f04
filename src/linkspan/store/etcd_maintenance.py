"""Maintenance of etcd: its members' status, compaction, defragmentation, alarms.

None of these calls reads or writes records, so none compares the cluster's id. If etcd has users, only a
defragmentation needs role root; every user may compact, and lift an alarm (measured on 3.5.16).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterable

import msgspec

from linkspan.core.errors import Denied, Unavailable
from linkspan.store.etcd_errors import Refused
from linkspan.store.etcd_gateway import SECONDS, Gateway
from linkspan.store.etcd_status import NOSPACE, UNSEEN, EtcdStatus, MemberStatus
from linkspan.store.etcd_wire import MEMBERS_OWN, Header, Range, decode

DEFRAGMENT_SECONDS = 120.0
"""Seconds to defragment one member: it writes its database again, 1 GB in 10 to 20 s on a plain disk."""
COMPACT_SECONDS = 60.0
"""Seconds for a compaction that the agent waits for: etcd takes about 10 ms for 1,000 keys, and pauses in between."""
_QUOTA = re.compile(rb"^etcd_server_quota_backend_bytes (\S+)$", re.MULTILINE)
_ALARM = re.compile(r"memberID:(\d+) alarm:(\w+)")
_ROOT = "etcdctl user grant-role USER root, with the user of the store's URL; or set store_upkeep to compact"


class _Answering(Header, frozen=True):
    """Header of a member's status, with the member's id."""

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
        """HOST:PORT of each URL that the member advertises to clients."""
        return tuple(url.rpartition("://")[2].rstrip("/") for url in self.clients)


class _Members(msgspec.Struct, frozen=True):
    members: tuple[_Listed, ...] = ()


Root = Callable[[], contextlib.AbstractAsyncContextManager[Gateway]]


class Maintenance:
    """Calls to an etcd that are not about records; ``key`` is a record's key that its user may read.

    ``root`` makes connections to the same etcd as a user with role root, if ``gateway`` has none.
    """

    def __init__(self, gateway: Gateway, key: str, root: Root | None = None) -> None:
        self._gateway = gateway
        self._root: Root = root or (lambda: contextlib.nullcontext(gateway))
        self._key = f"{gateway.url.prefix}{key}".encode()
        self._quotas: dict[str, tuple[float, int]] = {}
        """By member id: when its quota was asked for (monotonic clock), and its bytes."""

    async def status(self, quota_age: float) -> EtcdStatus:
        """Ask every member that can be reached for its status. Raises Unavailable if no member lists the others.

        A known quota is used for ``quota_age`` seconds. Before etcd 3.6 only the metrics contain it (175 KB, 15 ms of
        etcd's time), and only a restart of the member changes it.
        """
        listed = (await self._gateway.ask("/v3/cluster/member/list", {}, _Members)).members
        known, problems = await self._asked(self._gateway.url.endpoints)
        missing = [one for one in listed if one.id not in known]
        others = [place for one in missing for place in one.places if not place.startswith(MEMBERS_OWN)]
        more, refused = await self._asked(place for place in others if place not in problems)
        problems |= refused
        ids = {one.id for one in listed}  # another etcd may answer at a member's address
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
        """Ask these endpoints at once; return the answers by member id, and the reasons of failures by endpoint."""
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
        """Return a member's quota in bytes: 0 if it is not known, below 0 if the member has none."""
        at, known = self._quotas.get(member, (float("-inf"), 0))
        if time.monotonic() - at < age:
            return known
        try:
            text = await self._gateway.at(endpoint, "/metrics", {}, SECONDS)
            found = _QUOTA.search(text)
            known = int(float(found[1])) if found is not None else 0
        except (Unavailable, ValueError, OverflowError):
            known = 0  # the member may serve its metrics at another port
        self._quotas[member] = time.monotonic(), known
        return known

    async def head(self) -> tuple[int, int]:
        """Return the store's revision, and that of the record ``key`` (0 if it does not exist). Raises Unavailable."""
        found = await self._gateway.ask("/v3/kv/range", {"key": self._key}, Range)
        return found.header.revision, next((one.mod_revision for one in found.kvs), 0)

    async def compacted(self, revision: int) -> bool:
        """Return whether the history at a revision was compacted. The revision must not lie in the future."""
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
        """Compact the history before a revision; return False if it was compacted already. Raises Unavailable.

        With ``wait`` the call returns once the space is free in the answering member's file; otherwise etcd frees it
        in the background.
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
        """Make a member write its file again without unused space; the member answers nothing meanwhile.

        Raises Denied if etcd has users and the URL's user has no right to it, and Unavailable.
        """
        try:
            async with self._root() as gateway:
                await gateway.at(member.endpoint, "/v3/maintenance/defragment", {}, DEFRAGMENT_SECONDS)
        except Unavailable as error:
            if "permission denied" in error.message or "user name is empty" in error.message:
                raise Denied(f"store etcd {member.endpoint}: only role root may defragment it", _ROOT) from error
            raise

    async def answers(self, member: MemberStatus, applied: int) -> bool:
        """Return whether a member answers, knows a leader, and has applied raft's log up to index ``applied``."""
        try:
            told = await self._status(member.endpoint)
        except Unavailable:
            return False
        return told.leader not in ("", "0") and told.applied >= applied

    async def disarm(self, member: str) -> None:
        """Lift the alarm NOSPACE of the member with this id. Raises Unavailable."""
        body = {"action": "DEACTIVATE", "memberID": member, "alarm": NOSPACE}
        await self._gateway.call("/v3/maintenance/alarm", body)


def _alarms(told: Iterable[_Status]) -> tuple[tuple[str, str], ...]:
    """Return the alarms as (member id, kind), sorted; each member's status lists the alarms of all."""
    errors = (error for status in told for error in status.errors)
    return tuple(sorted({(found[1], found[2]) for error in errors for found in _ALARM.finditer(error)}))
