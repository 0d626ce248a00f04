"""Access to the page: tokens, sessions, and requests of other pages."""

from __future__ import annotations

import pytest

from linkspan.web.access import SESSION_LIFE, SESSIONS, TOKEN_LIFE, Access
from linkspan.web.pace import Pace
from support.clocks import Clock

HERE = "127.0.0.1:8080"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(clock: Clock) -> Access:
    return Access("http", [HERE, "localhost:8080"], clock)


def test_a_token_logs_in_once(access: Access) -> None:
    """The second browser that opens the link gets nothing."""
    token = access.token()
    cookie = access.log_in(token, browser=True)
    assert access.session(cookie) is not None
    assert access.log_in(token, browser=True) == ""


def test_a_token_is_good_for_a_minute(access: Access, clock: Clock) -> None:
    """A link that somebody finds later is worth nothing."""
    early, late = access.token(), access.token()
    clock.now += TOKEN_LIFE - 1
    assert access.log_in(early, browser=True)
    clock.now += 2
    assert access.log_in(late, browser=True) == ""


@pytest.mark.parametrize("wrong", ["", "x", "\ud800", "a" * 100_000])
def test_a_wrong_token_or_cookie_does_not_count(access: Access, wrong: str) -> None:
    """The server refuses any form of it."""
    access.token()
    assert access.log_in(wrong, browser=True) == ""
    assert access.session(wrong) is None


def test_a_session_ends(access: Access, clock: Clock) -> None:
    """A cookie that was left in a browser counts for some hours."""
    cookie = access.log_in(access.token(), browser=True)
    clock.now += SESSION_LIFE + 1
    assert access.session(cookie) is None


def test_sessions_are_bounded(access: Access) -> None:
    """The oldest browser has to log in again."""
    cookies = [access.log_in(access.token(), browser=True) for _ in range(SESSIONS + 1)]
    assert access.session(cookies[0]) is None
    assert access.session(cookies[-1]) is not None


def test_every_server_has_a_cookie_of_its_own() -> None:
    """Browsers send a cookie to all ports of a host: two pages must not overwrite each other's."""
    assert Access("http", [HERE]).cookie != Access("http", [HERE]).cookie


def test_every_session_has_a_token_of_its_own(access: Access) -> None:
    """Another session's does not count."""
    first, second = (access.session(access.log_in(access.token(), browser=True)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.sent_by(first.token)
    assert not first.sent_by(second.token)
    assert not first.sent_by("")


def test_a_browser_needs_its_token_for_every_question(access: Access) -> None:
    """Its cookie is no secret: it goes to all ports of the host. A script's is one."""
    browser = access.session(access.log_in(access.token(), browser=True))
    script = access.session(access.log_in(access.token(), browser=False))
    assert browser is not None
    assert script is not None
    assert browser.may_ask(browser.token)
    assert not browser.may_ask("")
    assert not browser.may_ask(script.token)
    assert script.may_ask("")


@pytest.mark.parametrize(
    ("method", "hosts", "origin", "site", "entry", "refused"),
    [
        ("GET", [HERE], None, None, False, False),
        ("GET", ["localhost:8080"], "http://localhost:8080", "same-origin", False, False),
        ("GET", [HERE], None, "cross-site", True, False),  # a link on another page, to the page itself
        ("GET", [HERE], None, "cross-site", False, True),
        ("GET", [HERE], None, "same-site", False, True),  # another port of this machine
        ("GET", ["rebound.example:8080"], None, "same-origin", False, True),
        ("GET", ["127.0.0.1"], None, None, False, True),
        ("GET", [], None, None, True, True),
        ("GET", [HERE, "rebound.example"], None, None, True, True),
        ("GET", [HERE], "http://evil.example", None, False, True),
        ("GET", [HERE], "null", None, True, True),
        ("GET", [HERE], "https://127.0.0.1:8080", None, False, True),
        ("POST", [HERE], f"http://{HERE}", "same-origin", False, False),
        ("POST", [HERE], None, None, False, True),
        ("POST", [HERE], f"http://{HERE}", "cross-site", True, True),
    ],
)
def test_only_this_page_asks(
    access: Access, method: str, hosts: list[str], origin: str | None, site: str | None, entry: bool, refused: bool
) -> None:
    """By Host (DNS rebinding), Origin and Sec-Fetch-Site."""
    assert bool(access.refusal(method, hosts, origin, site, entry=entry)) is refused


def test_a_pace_allows_a_burst_and_then_one_at_a_time(clock: Clock) -> None:
    """It says how long to wait."""
    pace = Pace(2, 10.0, clock)
    assert [pace.wait(), pace.wait()] == [0, 0]
    assert pace.wait() == pytest.approx(10)
    clock.now += 4
    assert pace.wait() == pytest.approx(6)
    clock.now += 6
    assert pace.wait() == 0
