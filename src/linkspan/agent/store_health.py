"""Store health: what `status`, `doctor`, `host list` and the metrics show of it.

`status` shows what is known already, so that it answers at once. `doctor` asks the store, and waits for the
answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec

from linkspan.cluster.founding.etcd_service import VOTER
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.remote_endpoints import RemoteEndpoints
from linkspan.core.errors import LinkspanError, counted, first_of
from linkspan.core.store_url import HOST_USER, etcd_parts
from linkspan.diagnose.doctor import store_checks
from linkspan.diagnose.doctor.checks import Check
from linkspan.store.contact import SLOW, STALE, State
from linkspan.store.etcd_status import NOSPACE, STEPS, EtcdStatus
from linkspan.store.records import SETTINGS
from linkspan.store.replica import Replica
from linkspan.store.upkeep import Upkeep

PATIENCE = 5.0
"""Seconds that `doctor` waits for the store: one endpoint of etcd has 3."""
RECENT = 5.0
"""Seconds after which a finding says how old it is: etcd is seldom looked at, and an operator may have mended it."""
WELL: tuple[State, ...] = ("ok", "slow")
_LOOK = "look at the store's own log, and at the path to it"


class StoreHealth:
    """Store health of one host; ``url`` returns the store's, ``started`` is when the agent was (since the epoch)."""

    def __init__(
        self,
        replica: Replica,
        remote: RemoteEndpoints,
        hosts: Hosts,
        upkeep: Upkeep,
        url: Callable[[], str],
        started: float,
    ) -> None:
        self._replica = replica
        self._remote = remote
        self._hosts = hosts
        self._upkeep = upkeep
        self._url = url
        self._started = started

    def state(self) -> tuple[State, str, str]:
        """Return the store's state, the reason (a sentence, '' if the state is ok), and the fix."""
        replica, contact = self._replica, self._replica.contact
        if contact.full:
            return "full", "its quota is full: it takes no writes, and containers continue", self._full()
        if replica.problem:
            return "away", replica.problem, replica.fix or _LOOK
        if not replica.listed:
            why = f"it has not answered since the agent started, {time.time() - self._started:.0f} s ago"
            return "away", why, _LOOK
        if replica.lost:
            lost = counted(len(replica.lost), "record")
            why = f"it lost {lost}, and their owners have not restored all: {_some(replica.lost)}"
            return "lost", why, "restore the store, or remove hosts that will not come back"
        if self._hosts.shared and contact.silence() > STALE:
            why = f"it accepts this host's writes, and has sent no change of other hosts for {contact.silence():.0f} s"
            return "stale", why, "restart the agent if this lasts, and look at the store's own log"
        if (took := contact.took() or 0) > SLOW:
            why = f"it is slow: its last answer took {took:.1f} s"
            return "slow", why, "look at the load and the disk of its machine, and at the path to it"
        return "ok", "", ""

    def told(self) -> dict[str, object]:
        """Return the store's part of the status."""
        replica = self._replica
        now, why, fix = self.state()
        return {
            "url": self._url(),
            "ok": now in WELL,
            "state": now,
            "problem": why,
            "fix": fix,
            "answered": replica.contact.answered,
            "seconds": replica.contact.seconds,
            "lost": sorted(replica.lost),
            "unreadable": sorted(self._replica.unreadable | self._remote.reasons.keys()),
            "etcd": self._told_of_etcd(),
        }

    def unknown(self) -> list[str]:
        """Return the names of the hosts whose liveness is unknown now."""
        hosts = self._hosts.all()
        return sorted(host.name for id_, host in hosts.items() if self._hosts.lives(id_) is None)

    async def checks(self) -> list[Check]:
        """Return `doctor`'s checks of the store, which is asked now: it may have failed a moment ago."""
        begun = time.monotonic()
        why, fix = "", ""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._replica.store.get(SETTINGS)
        except TimeoutError:
            why, fix = f"{self._url()}: no answer within {PATIENCE:.0f} s", _LOOK
        except LinkspanError as error:
            why, fix = error.message, error.hint
        seconds = time.monotonic() - begun
        if not why:
            with contextlib.suppress(LinkspanError, TimeoutError):  # what was found last is told then
                async with asyncio.timeout(PATIENCE):
                    await self._upkeep.asked()
        now, other, remedy = self.state()
        if why or now not in WELL:
            found = [Check("store", "fail", (why or other).removeprefix("store "), fix or remedy or _LOOK)]
        elif now == "slow" or seconds > SLOW:
            took = max(seconds, self._replica.contact.took() or 0)
            found = [Check("store", "warn", f"it is slow: an answer took {took:.1f} s", remedy or _LOOK)]
        else:
            found = [Check("store", "ok", f"it answers, within {seconds * 1000:.0f} ms")]
        found += self._of_etcd()
        if names := self.unknown():
            silent = f"the store has not answered for {self._age()}"
            why = "the store is full, so hosts cannot renew their liveness" if self._replica.absences.full else silent
            text = f"liveness of {first_of(names, 5)} is unknown: {why}"
            found.append(Check("hosts", "warn", text, "packets still flow; repair the store first"))
        return found

    def _full(self) -> str:
        found = [one.fix for one in self._of_etcd() if one.check == "store alarms" and one.fix]
        at = self._upkeep.etcd.at
        again = f"{old}; `linkspan doctor` looks again" if at and (old := _as_of(at)) else ""
        return (self._upkeep.fix or next(iter(found), STEPS)) + again

    def _of_etcd(self) -> list[Check]:
        """Return the checks of etcd as of the last look, and of its upkeep."""
        upkeep = self._upkeep
        url = self._url()
        ours = url.startswith("etcd://") and etcd_parts(url).user.startswith(HOST_USER)
        found = list(store_checks.checks(self._named(upkeep.etcd), upkeep.allowed, upkeep.last, ours=ours))
        if self._replica.problem and not self._replica.contact.full:  # it does not answer
            return [_of_then(one, upkeep.etcd.at) for one in found if one.status != "skip"]
        if upkeep.problem:
            found.append(Check("store upkeep", "warn", upkeep.problem, upkeep.fix))
        return found

    def _named(self, etcd: EtcdStatus) -> EtcdStatus:
        """Return the status with the names of hosts in place of those that their voters have in etcd."""
        return msgspec.structs.replace(
            etcd,
            members=tuple(
                msgspec.structs.replace(one, name=self._hosts.name(one.name.removeprefix(VOTER)))
                if one.name.startswith(VOTER)
                else one
                for one in etcd.members
            ),
        )

    def _told_of_etcd(self) -> dict[str, object] | None:
        """Return the state of etcd at the last look; None for another store, or before the first look."""
        etcd, last = self._upkeep.etcd, self._upkeep.last
        if not etcd.members:
            return None
        return {
            "at": etcd.at,
            "upkeep": self._upkeep.allowed,
            "compactor": last.compactor,
            "turn": {"by": last.by, "at": last.at} if last.at else None,
            "alarms": [{"member": etcd.called(id_), "alarm": kind} for id_, kind in etcd.alarms],
            "members": [
                {
                    "name": one.name,
                    "endpoint": one.endpoint,
                    "version": one.version,
                    "role": "leader" if one.leader else "learner" if one.learner else "follower",
                    "size": one.size,
                    "in_use": one.in_use,
                    "quota": one.quota,
                    "problem": one.problem,
                }
                for one in etcd.members
            ],
            "problems": [
                {"what": f"{one.detail}{_as_of(etcd.at)}", "fix": one.fix}
                for one in self._of_etcd()
                if _is_problem(one)
            ],
        }

    def _age(self) -> str:
        silence = self._replica.contact.silence()
        return "the whole time since the agent started" if silence == float("inf") else f"{silence:.0f} s"


def _some(keys: set[str]) -> str:
    return ", ".join(sorted(keys)[:5]) + (", ..." if len(keys) > 5 else "")


def _of_then(one: Check, at: float) -> Check:
    """Return a check of a store that does not answer: an earlier finding says nothing about the present."""
    ago = f"{time.time() - at:.0f} s ago"
    return Check(one.check, "skip", f"the store does not answer; {ago}: {one.detail}")


def _as_of(at: float) -> str:
    """Return how old a finding is, in words; '' if it is recent."""
    age = time.time() - at
    return f" (as of {age:.0f} s ago)" if age > RECENT else ""


def _is_problem(one: Check) -> bool:
    """Return whether `status` names it: that the quota is full is told by the store's state."""
    return one.status in ("warn", "fail") and NOSPACE not in one.detail
