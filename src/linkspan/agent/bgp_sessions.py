"""BGP sessions of this host: watches them, reports each change with its reason, and counts.

A thread of its own asks BIRD every few seconds, and only for a summary: the details of 50 sessions cost 5 ms
of Python, which would delay an attach. Events and `status` use the cheap reason, from BIRD's answer alone.
`explain` and `doctor` look at the path to the peer as well.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from linkspan.agent.metrics import Metrics
from linkspan.backends.bgp import backend as bgp
from linkspan.backends.bgp.bird_config import CONTROL, LOG, RULES
from linkspan.cluster.networks import Networks
from linkspan.core.errors import LinkspanError, NotFound, Unavailable
from linkspan.core.event_log import EventLog
from linkspan.core.host_view import HostView
from linkspan.core.states.bgp import REFLECTORS, Session, crowded
from linkspan.core.states.programs import BGP_PORT, BGP_REFUSED, Bird
from linkspan.core.supervise import ended, lasting, pause
from linkspan.diagnose.doctor import bgp_checks, bgp_evidence
from linkspan.diagnose.doctor.bgp_reasons import Evidence, Why, explain
from linkspan.diagnose.doctor.checks import Check
from linkspan.diagnose.trace.bgp_routes import Learning, Told
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.probe import bird_control
from linkspan.kernel.probe.bird_control import Protocol, Route
from linkspan.kernel.probe.tcp_connect import listenable, md5_refusals

log = logging.getLogger("linkspan.agent.bgp_sessions")

EVERY = 2.0
"""Seconds between two queries."""
SELDOM = 5
"""One query in so many counts prefixes, too. Each query asks whether a session is up."""
KEPT = 150
"""Queries over which refused signatures are counted: five minutes, in which every speaker retries."""

CLOSELY = 8
"""Sessions that `doctor` looks at closely, all at once."""


class BgpSession(msgspec.Struct, frozen=True):
    """A desired session, and its last observed state; ``why`` is the cheap reason if it is down."""

    session: Session
    seen: Protocol | None
    why: Why | None

    @property
    def limited(self) -> Why | None:
        """Return why some of the peer's prefixes are not accepted (it announces too many), None if all are."""
        most = max((one.limit for one in self.seen.channels if one.full), default=0) if self.seen else 0
        if not most:
            return None
        setting = "bgp.prefixes" if self.session.mesh else f"bgp.peer.{self.session.name}.prefixes"
        return Why(
            f"it announces more than {most} prefixes, and this host does not accept the rest",
            f"correct what it announces; if that is right, raise the limit: linkspan host set {setting}=N",
        )

    @property
    def state(self) -> str:
        """Return RFC 4271's word for the state, in small letters; ``down`` if BIRD has no such session."""
        return (self.seen.bgp_state.lower() if self.seen else "") or "down"


class BgpSessions:
    """Watches the sessions that follow from ``view``."""

    def __init__(
        self,
        networks: Networks,
        view: Callable[[], HostView],
        namespaces: Namespaces,
        event_log: EventLog,
        metrics: Metrics,
    ) -> None:
        self.silent: Why | None = None
        """Why no speaker answers; None if one does, or if no network needs one."""
        self._networks = networks
        self._view = view
        self._namespaces = namespaces
        self._event_log = event_log
        self._metrics = metrics
        self._known: dict[str, BgpSession] = {}
        self._speaker = 0
        """The process of the speaker that answered last, 0 before the first one."""
        self._looking = asyncio.Lock()
        self._refused: collections.deque[Mapping[str, int]] = collections.deque(maxlen=KEPT)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch."""
        self._task = lasting("watching BGP sessions", self._watch)

    async def stop(self) -> None:
        """Stop watching."""
        await ended(self._task)

    async def _watch(self) -> None:
        for number in itertools.count():
            await self.look(counts=number % SELDOM == 0)
            await pause(EVERY)

    def all(self) -> list[BgpSession]:
        """Return all sessions by name, as last observed."""
        return sorted(self._known.values(), key=lambda peering: peering.session.name)

    @property
    def crowded(self) -> Why | None:
        """Return why the mesh of this host is too large, None if it is not."""
        why = crowded(1 + sum(peering.session.mesh for peering in self._known.values()))
        return Why(why, REFLECTORS) if why else None

    def problems(self) -> dict[str, object]:
        """Return the number of sessions, those with routers, with problems, and warnings about all of them together."""
        known, crowded = self.all(), self.crowded
        down = [
            {
                "peer": p.session.name,
                "mesh": p.session.mesh,
                "state": p.state,
                "why": p.why.reason,
                "fix": p.why.fix,
            }
            for p in known
            if p.why is not None
        ]
        limited = [
            {"peer": p.session.name, "why": p.limited.reason, "fix": p.limited.fix}
            for p in known
            if p.limited is not None
        ]
        routers = [
            {"peer": p.session.name, "address": p.session.address, "as": p.session.remote_as, "state": p.state}
            for p in known
            if not p.session.mesh
        ]
        warnings = [{"why": crowded.reason, "fix": crowded.fix}] if crowded is not None else []
        return {"sessions": len(known), "routers": routers, "down": down, "limited": limited, "warnings": warnings}

    def find(self, name: str) -> BgpSession:
        """Return the session with a peer. Raises NotFound with the known names."""
        found = [p for p in self.all() if name in (p.session.name, p.session.address, p.session.protocol)]
        if not found:
            names = ", ".join(p.session.name for p in self.all()) or "none"
            raise NotFound(f"BGP peer {name} does not exist (there are: {names})", "`linkspan bgp peers` shows them")
        return found[0]

    async def look(self, *, counts: bool = True) -> None:
        """Ask BIRD and report changes; without ``counts`` keep the old counts of sessions that stay up."""
        async with self._looking:
            if not any(map(bgp.serves, self._networks.all())):
                self._known, self.silent = {}, None
                return
            found = await asyncio.to_thread(self._observed, self._view(), counts)
            for peering in found:
                self._tell(self._known.get(peering.session.protocol), peering)
            self._known = {peering.session.protocol: peering for peering in found}

    def _observed(self, view: HostView, counts: bool) -> list[BgpSession]:
        """Ask BIRD (in a thread)."""
        wanted: list[Session] = []
        with contextlib.suppress(LinkspanError):  # the problem is in `silent`
            wanted = bgp.sessions(view)
        seen: dict[str, Protocol] = {}
        self._refused.append(md5_refusals())
        folder, problem = _folder(view), bgp.problem(view)
        self.silent = Why(problem.message, problem.hint) if problem else None
        if folder and not problem:
            try:
                seen = self._seen(folder / CONTROL, counts)
                _retry(folder / CONTROL, [s for s in wanted if _deaf(seen.get(s.protocol))])
            except Unavailable as error:
                self.silent = Why(error.message, "`linkspan status` shows what cannot be applied")
        well = all(s.protocol in seen and seen[s.protocol].established for s in wanted)
        said = bgp_evidence.recent(folder / LOG) if folder and not well else ()
        around = Evidence(silent=self.silent, said=said, refusals=self.refusals())
        return [BgpSession(s, seen.get(s.protocol), explain(s, seen.get(s.protocol), around)) for s in wanted]

    def _seen(self, control: Path, counts: bool) -> dict[str, Protocol]:
        self._note(bird_control.speaker(control))
        (told,) = bird_control.ask(control, f"show protocols{' all' if counts else ''}")
        found = {protocol.name: protocol for protocol in bird_control.protocols(told)}
        if not counts:
            before = {name: peering.seen for name, peering in self._known.items() if peering.seen}
            stayed = {n: before[n] for n, now in found.items() if n in before and _same(before[n], now)}
            asked = [f"show protocols all {name}" for name in found.keys() - stayed.keys()]
            details = (
                [p for lines in bird_control.ask(control, *asked) for p in bird_control.protocols(lines)]
                if asked
                else []
            )
            found = {**stayed, **{protocol.name: protocol for protocol in details}}
        return found

    def _note(self, speaker: int) -> None:
        """Count a start of the speaker if another process answers than the last time."""
        if self._speaker not in (0, speaker):
            self._metrics.speaker_restarts.count()
        self._speaker = speaker

    def refusals(self) -> dict[str, int]:
        """Return how many signatures the kernel refused recently, by reason."""
        first, last = self._refused[0], self._refused[-1]
        return {why: last[why] - first[why] for why in last}

    def _tell(self, before: BgpSession | None, now: BgpSession) -> None:
        name = now.session.name
        if now.limited is not None and (before is None or before.limited is None):
            what = f"BGP peer {name}: {now.limited.reason}"
            log.warning("%s", what)
            self._event_log.add("bgp", what, peer=name, state=now.state)
        was, is_ = before is not None and before.why is None, now.why is None
        if was == is_:
            return
        if now.why is None:
            self._event_log.add("bgp", f"BGP session with {name} is up", peer=name, state="up")
            return
        self._metrics.session_drops.count(name)
        what = f"BGP session with {name} is down: {now.why.reason}"
        log.warning("%s", what)
        self._event_log.add("bgp", what, peer=name, state="down")

    async def explain(self, name: str) -> tuple[BgpSession, Evidence]:
        """Examine the session with a peer, including the path to it. Raises NotFound."""
        await self.look()
        return await asyncio.to_thread(self._closely, self.find(name), _folder(self._view()))

    def _closely(self, peering: BgpSession, folder: Path | None) -> tuple[BgpSession, Evidence]:
        """Examine one session (in a thread); takes up to 5 s."""
        from linkspan.diagnose.trace.kernel_answers import KernelAnswers  # 0.4 MB, for few

        session, seen = peering.session, peering.seen
        alone = sum(other.why is not None for other in self._known.values()) < 2
        said = bgp_evidence.recent(folder / LOG) if folder else ()
        with contextlib.closing(KernelAnswers(self._namespaces)) as asked:
            found = bgp_evidence.gather(session, seen, asked, said, self.refusals())
        found = msgspec.structs.replace(found, alone=alone, silent=self.silent)
        return BgpSession(session, seen, explain(session, seen, found)), found

    async def routes(self, peer: str = "", *, filtered: bool = False, sent: bool = False) -> list[Route]:
        """Return the accepted (or ``filtered``) prefixes from peers, or those that are ``sent`` to one.

        Raises NotFound for an unknown peer, Unavailable if BIRD does not answer.
        """
        await self.look(counts=False)
        protocol = ""
        if peer:
            found = self.find(peer)
            if found.seen is None and found.why:
                raise Unavailable(f"session with {peer}: {found.why.reason}", found.why.fix)
            protocol = found.session.protocol
        command = "show route"
        if sent:
            command += f" export {protocol} all"
        else:
            command += f"{' filtered' if filtered else ''} where source = RTS_BGP"
            command += f"{f' protocol {protocol}' if protocol else ''} all"
        (told,) = await self._asked(command)
        return await asyncio.to_thread(bird_control.routes, told)

    async def checks(self) -> list[Check]:
        """Return `doctor`'s checks of the speaker and its sessions; the first that are down are examined closely."""
        await self.look()
        down = [peering for peering in self.all() if peering.why][:CLOSELY]
        folder = _folder(self._view())
        looked = await asyncio.gather(*(asyncio.to_thread(self._closely, peering, folder) for peering in down))
        known = {**self._known, **{p.session.protocol: p for p, _ in looked}}
        told = {p.session.name: p.why for p in sorted(known.values(), key=lambda p: p.session.name)}
        full = {p.session.name: p.limited for p in self.all() if p.limited is not None}
        return list(bgp_checks.checks(told, self.silent, full, self.crowded))

    def name(self, protocol: str) -> str:
        """Return a peer's name by BIRD's name of its session, '' if the session is not ours."""
        found = self._known.get(protocol)
        return found.session.name if found else ""

    async def refused_by(self) -> dict[str, dict[str, int]]:
        """Return how many prefixes each rule filters now, by peer, as counted by BIRD."""
        filtering = [p for p in self.all() if p.seen is not None and p.seen.count("filtered")]
        pairs = [(p.session, rule) for p in filtering for rule in RULES]
        if not pairs:
            return {}
        asked = [
            f'show route filtered where {BGP_REFUSED} = "{rule}" protocol {session.protocol} count'
            for session, rule in pairs
        ]
        told = await self._asked(*asked)
        found: dict[str, dict[str, int]] = {}
        for (session, rule), lines in zip(pairs, told, strict=True):
            if number := bird_control.count(lines):
                found.setdefault(session.name, {})[rule] = number
        return found

    async def _asked(self, *commands: str) -> list[list[bird_control.Line]]:
        folder = _folder(self._view())
        if folder is None or not self._known:
            raise Unavailable(
                "this host has no BGP session", "`linkspan bgp peers` shows them; does any network use the backend bgp?"
            )
        return await asyncio.to_thread(bird_control.ask, folder / CONTROL, *commands)

    def learning(self) -> Learning | None:
        """Return how traces ask the speaker, None if no network learns routes."""
        view = self._view()
        folder, pools = _folder(view), bgp.pools(view)
        if folder is None or not pools:
            return None
        sessions = [peering.session for peering in self.all()]
        with contextlib.suppress(LinkspanError):  # `silent` reports it
            sessions = sorted(bgp.sessions(view), key=lambda session: session.name)
        return Learning(folder / CONTROL, [self._told(session) for session in sessions], pools)

    def _told(self, session: Session) -> Told:
        """Return what is known of a session, perhaps from after the last query."""
        found = self._known.get(session.protocol)
        why = Why("BIRD has not been asked for it yet") if found is None else found.why
        return Told(session.name, session.protocol, why.reason if why else "")


def _same(before: Protocol, now: Protocol) -> bool:
    """Return whether a session has been up without interruption."""
    return before.established and now.established and before.since == now.since


def _deaf(seen: Protocol | None) -> bool:
    """Return whether a session is down because BIRD could not listen: BIRD then disables it for good."""
    return seen is not None and seen.last_error.endswith("No listening socket")


def _retry(control: Path, sessions: Iterable[Session]) -> None:
    """Restart sessions for which BIRD could listen now: the address appeared, or the port is free."""
    for session in sessions:
        if listenable(session.source, BGP_PORT):
            log.info("BGP session with %s restarts: port %s is free now", session.name, BGP_PORT)
            bird_control.enable(control, session.protocol)


def _folder(view: HostView) -> Path | None:
    found = view.facts.program(Bird)
    return Path(found.folder) if found else None
