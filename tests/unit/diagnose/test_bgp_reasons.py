"""Reasons why a session is down: their order, and those that no real peer makes soon."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from linkspan.core.states.bgp import REFLECTORS, Session, crowded
from linkspan.diagnose.doctor import bgp_checks
from linkspan.diagnose.doctor.bgp_reasons import Evidence, Why, explain
from linkspan.kernel.probe.bird_control import Protocol, Said

SESSION = Session(
    name="tor", protocol="peer_tor", mesh=False, address="192.0.2.2", source="192.0.2.1", local_as=64512, remote_as=1
)  # fmt: skip
PASSWORD = msgspec.structs.replace(SESSION, password_file="/etc/tor")  # noqa: S106 - a path
DOWN = Protocol("peer_tor", "start", since=1000.0, bgp_state="Active")


def why(session: Session = SESSION, error: str = "", **seen: Any) -> Why:
    """Explain a session whose last error is this one."""
    found = explain(session, msgspec.structs.replace(DOWN, last_error=error), Evidence(**seen))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("error", "seen", "words"),
    [
        ("Received: Bad BGP identifier", {}, "tor refuses the session: the two have the same router id"),
        ("Received: Unacceptable hold time", {"tcp": "open"}, "tor refuses the session: the hold time is too short"),
        ("BGP Error: Malformed attribute list", {}, "this host refuses the session: malformed attribute list"),
        ("Received: Maximum number of prefixes reached", {"tcp": "closed"}, "too many prefixes"),
        ("Received: Bad peer AS", {"tcp": "refused"}, "TCP refused"),
        ("BGP Error: Hold timer expired", {"tcp": "refused"}, "the hold time, and nobody listens there now"),
        ("Received: Hold timer expired", {}, "192.0.2.2 heard nothing of this host"),
        ("Socket: No buffer space available", {"tcp": "unreachable"}, "table of neighbours is full"),
        ("Socket: No route to host", {"tcp": "unreachable"}, "cannot be reached: no route to host"),
        ("Error: No listening socket", {}, "BIRD could not listen at 192.0.2.1 port 179"),
        ("BGP Error: Connection collision resolution", {"tcp": "open"}, "not established yet (BGP state Active)"),
    ],
)
def test_reasons(error: str, seen: dict[str, Any], words: str) -> None:
    """Messages between the speakers count while TCP works; otherwise the path to the peer does."""
    assert words in why(error=error, **seen).reason


def test_passwords_are_a_guess_where_several_sessions_are_down() -> None:
    """The kernel counts for all peers together, so only one session that is down alone has a certain reason."""
    seen: dict[str, Any] = {"tcp": "unanswered", "pings": True, "refusals": {"Failure": 3}}
    assert why(PASSWORD, **seen).reason.startswith("the peer's password")
    assert why(PASSWORD, alone=False, **seen).reason.startswith("perhaps the peer's password")
    assert "filtered" in why(SESSION, **seen).reason  # signed otherwise than with a password that it has not


def test_a_word_of_an_earlier_session_is_not_repeated() -> None:
    """Only a message since the session went down is the peer's last one."""
    old, new = (Said(at, "peer_tor", "Received: Administrative reset") for at in (900.0, 1001.0))
    assert "last word" not in why(tcp="refused", said=(old,)).reason
    assert "the peer's last word was: Administrative reset" in why(tcp="refused", said=(old, new)).reason


def test_a_mesh_is_told_its_own_settings() -> None:
    """The fix for a host of the mesh names no setting of a peer."""
    mesh = msgspec.structs.replace(SESSION, mesh=True, name="h2")
    assert "bgp.peer" not in why(mesh, "BGP Error: Bad peer AS", tcp="open").fix


def test_doctor_counts_and_names() -> None:
    """The speaker is one check, each session that is down another; without a speaker there is the one."""
    down = Why("TCP refused", "start it")
    speaker, tor = bgp_checks.checks({"h2": None, "tor": down}, None)
    assert (speaker.status, speaker.detail) == ("ok", "BIRD answers; 1 of 2 sessions are established")
    assert (tor.check, tor.status, tor.detail, tor.fix) == ("BGP session tor", "fail", "TCP refused", "start it")
    (missing,) = bgp_checks.checks({"h2": down}, Why("no BIRD", "install it"))
    assert (missing.check, missing.status, missing.fix) == ("BGP speaker", "fail", "install it")
    assert list(bgp_checks.checks({}, None)) == []


def test_a_mesh_of_more_than_a_hundred_hosts_is_warned_of() -> None:
    """Its sessions grow with the square of the hosts; the fix is settings of linkspan's."""
    assert crowded(100) == ""
    assert "101 hosts form a full mesh" in crowded(101)
    *_, check = bgp_checks.checks({"h2": None}, None, crowded=Why(crowded(101), REFLECTORS))
    assert (check.check, check.status) == ("BGP mesh", "warn")
    assert "linkspan host set --all bgp.mesh=false" in check.fix
