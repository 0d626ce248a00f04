"""Reasons why a BGP session is not established, from the speaker's words and this host's evidence; pure.

The peer's answer to an OPEN outranks everything, because it proves that TCP works. Otherwise the path
decides: the source address, the route, the neighbour, the port. A different password causes no answer at all,
like a firewall; the kernel's counters of refused signatures distinguish them.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from linkspan.core.states.bgp import Session
from linkspan.core.states.programs import BGP_PORT
from linkspan.kernel.probe.bird_control import Protocol, Said
from linkspan.kernel.probe.tcp_connect import Outcome

_BEFORE = 2.0
"""Seconds: the message that ended a session comes a little before the session is down."""


class Why(msgspec.Struct, frozen=True):
    """The reason, and what to do about it."""

    reason: str
    fix: str = ""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Observations of a session from outside the speaker; None or empty if not observed.

    ``silent`` is why no speaker answers, ``holder`` another process at our port, ``route`` why there is no
    route, ``device`` the link of the route, ``neighbour`` whether the next hop answers, ``refusals`` the
    kernel's counts of signatures refused recently (of all peers together; ``alone``: this is the only session
    that is down), ``said`` the speaker's log.
    """

    silent: Why | None = None
    holder: str = ""
    has_source: bool | None = None
    route: str = ""
    device: str = ""
    gateway: str = ""
    neighbour: bool | None = None
    pings: bool | None = None
    tcp: Outcome | None = None
    refusals: Mapping[str, int] = {}
    alone: bool = True
    said: tuple[Said, ...] = ()


def explain(session: Session, seen: Protocol | None, evidence: Evidence) -> Why | None:
    """Return why a session is not established; None if it is established."""
    if evidence.silent:
        return evidence.silent
    if seen is None:
        return Why("BIRD has not loaded this session", "`linkspan diff` shows what cannot be applied")
    if seen.established:
        return None
    begin = (seen.since or 0.0) - _BEFORE
    evidence = msgspec.structs.replace(evidence, said=tuple(s for s in evidence.said if s.at >= begin))
    if found := _here(session, seen, evidence) or _spoken(session, seen, evidence):
        return found
    found = _way(session, evidence) or _signed(session, evidence) or _connection(session, seen, evidence)
    return msgspec.structs.replace(found, reason=found.reason + _last_word(session, evidence))


def _last_word(session: Session, evidence: Evidence) -> str:
    """Return the peer's last message, which BIRD forgets after a failed connection."""
    for said in reversed(evidence.said):
        if said.protocol == session.protocol and said.text.startswith("Received: "):
            return f"; the peer's last word was: {said.text.removeprefix('Received: ')}"
    return ""


def _here(session: Session, seen: Protocol, evidence: Evidence) -> Why | None:
    """Return the problem on this host, if there is one."""
    if evidence.has_source is False or evidence.tcp == "no source":
        return Why(
            f"its source address {session.source} is on no link of this host",
            f"give it to a link, or set another: {_setting(session, 'source')}=ADDRESS",
        )
    if evidence.holder:
        return Why(
            f"port {BGP_PORT} of this host is in use by {evidence.holder}",
            "stop that speaker, or make it listen only at another address; linkspan's tries again by itself",
        )
    if seen.last_error.endswith("No listening socket"):
        return Why(
            f"BIRD could not listen at {session.source or 'any address'} port {BGP_PORT}: another program "
            "listened, or the "
            "address did not exist",
            "`linkspan bgp explain` examines it; BIRD tries again by itself",
        )
    if seen.state == "down":
        return Why(
            "the session is disabled in BIRD",
            f"`birdc -s STATE_DIR/bgp/bird.ctl enable {session.protocol}`, with the agent's state folder",
        )
    return None


# Messages between the two speakers.


def _spoken(session: Session, seen: Protocol, evidence: Evidence) -> Why | None:
    """Return a reason that one speaker has given the other, if no newer evidence contradicts it."""
    side, _, what = seen.last_error.partition(": ")
    if side not in ("BGP Error", "Received") or what == "Connection collision resolution":
        return None
    if what == "Hold timer expired":
        return _silence(session, evidence, ours=side == "BGP Error")
    if evidence.tcp not in (None, "open", "closed"):
        return None
    said = next(
        (s.text for s in reversed(evidence.said) if s.protocol == session.protocol and what in s.text), ""
    )
    if what == "Bad peer AS":
        return _numbers(session, said.rpartition(": ")[2], ours=side == "BGP Error")
    if what in ("Required capability missing", "Unsupported capability"):
        return Why(
            f"the two have no address family in common, or the peer lacks a capability ({what.lower()})",
            f"activate IPv4 or IPv6 unicast for {_here_is(session)} at the peer",
        )
    reason, fix = _ANSWERS.get(what, ("", ""))
    who = f"{session.name} refuses" if side == "Received" else "this host refuses"
    return Why(f"{who} the session: {reason or what.lower()}", fix or "the peer's log has details")


_ANSWERS = {
    "Bad BGP identifier": ("the two have the same router id", "set another one here: bgp.router-id=ADDRESS"),
    "Unacceptable hold time": ("the hold time is too short", "set a longer one: bgp.hold, or the peer's own"),
    "Administrative shutdown": ("it is shut down there", "start it again at the peer"),
    "Administrative reset": ("it was reset there", "it comes back by itself"),
    "Peer de-configured": ("it was removed from the peer's configuration", "add it there again"),
    "Connection rejected": (
        "the peer accepts no connection from here",
        "is this host a neighbor there, and enabled?",
    ),
    "Maximum number of prefixes reached": ("too many prefixes", "raise the limit where it was reached"),
}


def _numbers(session: Session, number: str, *, ours: bool) -> Why:
    """Return the reason for unexpected AS numbers; ``number`` is the one in the log, if any."""
    if ours:
        is_ = f"is AS {number}" if number.isdigit() else "has another AS number"
        right = f"{_setting(session, 'as')}={number if number.isdigit() else 'NUMBER'}"
        return Why(
            f"the peer {is_}, and AS {session.remote_as} is expected (AS number mismatch)",
            f"if the peer is right: {right}"
            if not session.mesh
            else f"set the same bgp.as where {session.name} runs",
        )
    return Why(
        f"the peer expects another AS number than {session.local_as}, which this host has (AS number mismatch)",
        f"set AS {session.local_as} for this host at the peer, or bgp.as=NUMBER here",
    )


def _silence(session: Session, evidence: Evidence, *, ours: bool) -> Why:
    """Return the reason after the hold timer ran out, with the peer's present state."""
    who = f"nothing was heard of {session.address}" if ours else f"{session.address} heard nothing of this host"
    reason = f"the hold timer ran out: {who} for the hold time"
    if evidence.tcp in ("open", "closed"):
        return Why(
            f"{reason}; TCP works now, and BIRD tries again",
            f"do large packets pass (ping -M do -s 1472)? is TTL security the same on both sides "
            f"({_setting(session, 'ttl-security')})?",
        )
    now = {"refused": ", and nobody listens there now", None: ""}.get(evidence.tcp, ", and nothing answers there now")
    return Why(f"{reason}{now}", "check the path (`linkspan doctor`), and whether the peer's speaker runs")


# The path to the peer.


def _way(session: Session, evidence: Evidence) -> Why | None:
    if evidence.route:
        return Why(
            f"there is no route to {session.address}: {evidence.route}",
            "give the host an address in the peer's network, or a route to it",
        )
    if not session.multihop and evidence.gateway:
        return Why(
            f"{session.address} is on no network of this host: the route uses the gateway {evidence.gateway}",
            f"give the host an address there, or allow hops: {_setting(session, 'multihop')}=2",
        )
    if evidence.neighbour is False and evidence.tcp not in ("open", "closed", "refused"):
        who = evidence.gateway or session.address
        return Why(
            f"nobody answers for {who} on {evidence.device} (no ARP or neighbour answer)",
            "is the peer running, and on this link? is its address right?",
        )
    return None


def _signed(session: Session, evidence: Evidence) -> Why | None:
    """Return the reason for refused signatures: TCP MD5 (RFC 2385) drops other segments, visible only in counters."""
    file, refused = session.password_file, evidence.refusals
    if file and evidence.tcp in ("open", "closed"):
        return Why(
            "the peer accepts connections without a password, but one is set here (password mismatch)",
            f"set the password of {file} at the peer, or unset {_setting(session, 'password-file')}",
        )
    if evidence.tcp != "unanswered":
        return None
    if file and refused.get("Failure"):
        return Why(
            f"{_surely(evidence)}the peer's password is not the one in {file} "
            f"(password mismatch: {_counted(refused, 'Failure')})",
            "set the same password on both sides",
        )
    if file and refused.get("NotFound"):
        return Why(
            f"{_surely(evidence)}the peer uses no password, but one is set here "
            f"(password mismatch: {_counted(refused, 'NotFound')})",
            f"set the password of {file} at the peer",
        )
    if not file and refused.get("Unexpected"):
        return Why(
            f"{_surely(evidence)}the peer uses a password, but none is set here "
            f"(password mismatch: {_counted(refused, 'Unexpected')})",
            f"write it into a file for root, and set {_setting(session, 'password-file')}=FILE",
        )
    return None


def _surely(evidence: Evidence) -> str:
    """Return a prefix that weakens the statement, because the kernel counts for all peers together."""
    return "" if evidence.alone else "perhaps "


def _counted(refused: Mapping[str, int], why: str) -> str:
    return f"{refused[why]} segments refused, TCPMD5{why}"


def _connection(session: Session, seen: Protocol, evidence: Evidence) -> Why:
    """Return the result of a TCP connection to the peer as a reason."""
    error = seen.last_error.removeprefix("Socket: ").lower()
    where = f"{session.address} port {BGP_PORT}"
    strange = sorted({s.stranger for s in evidence.said if s.stranger})
    if session.address in strange and session.source:
        return Why(
            f"the peer connects to another address of this host than {session.source}, the source of this session",
            f"set this host as {session.source} at the peer, or {_setting(session, 'source')} to the address it has",
        )
    if evidence.tcp == "refused" or (evidence.tcp is None and "refused" in error):
        return Why(
            f"TCP refused: nobody listens at {where}", "is the peer's speaker running, and listening there?"
        )
    if evidence.tcp == "closed" or (evidence.tcp is None and ("reset" in error or "closed" in error)):
        return Why(
            f"{session.address} ends each connection from {session.source or 'here'} at once: it knows no neighbor of "
            f"this address, or has the session shut down",
            f"set {session.source or 'the address of this host'} as a neighbor at the peer, or "
            f"{_setting(session, 'source')} to the address that it has; is it enabled there?",
        )
    if evidence.tcp == "unanswered":
        known = "it answers pings" if evidence.pings else "nor to pings"
        return Why(
            f"filtered: no answer from {where}, {known}",
            "does a firewall between, or at the peer, drop TCP 179? is a password (TCP MD5) set on both sides?",
        )
    if "no buffer space" in error:
        return Why(
            f"the kernel's table of neighbours is full, so {session.address} cannot be reached",
            "raise net.ipv4.neigh.default.gc_thresh3 (and ipv6's); the table is one for all network namespaces",
        )
    if evidence.tcp == "unreachable":
        return Why(
            f"{where} cannot be reached: {error or 'the kernel or a router says so'}", "check the path to it"
        )
    return _waiting(session, seen, strange)


def _waiting(session: Session, seen: Protocol, strange: list[str]) -> Why:
    """Return the reason if TCP works or was not tried: the session is starting, or is stuck."""
    if seen.bgp_state in ("OpenSent", "OpenConfirm"):
        return Why(
            "the TCP connection is up, but the peer does not answer",
            f"is TTL security the same on both sides ({_setting(session, 'ttl-security')})?",
        )
    if seen.bgp_state == "Idle" and not seen.last_error:
        return Why("BIRD waits for the peer's network to be on a link of this host", "is that link up?")
    found = f"; a speaker at {', '.join(strange)} connects, but no session has that address" if strange else ""
    error = f", the last error was: {seen.last_error}" if seen.last_error else ""
    wait = f"; retry in {seen.wait:.0f} s" if seen.wait >= 1 else ""
    return Why(f"it is not established yet (BGP state {seen.bgp_state or 'unknown'}){wait}{error}{found}")


def _setting(session: Session, word: str) -> str:
    return f"bgp.{word}" if session.mesh else f"bgp.peer.{session.name}.{word}"


def _here_is(session: Session) -> str:
    return session.source or "this host"
