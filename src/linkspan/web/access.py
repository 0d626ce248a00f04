"""Access to the page: one-time tokens, sessions, and which requests of a browser count."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

TOKEN_LIFE = 60.0
"""Seconds in which a link may be opened."""
SESSION_LIFE = 12 * 3600.0
"""Seconds for which a cookie counts."""
TOKENS, SESSIONS = 8, 32
"""How many there are at most: the oldest goes first."""

SAFE_SITES = ("same-origin", "none")
"""Values of Sec-Fetch-Site for requests of this page, and of the user (Fetch Metadata, section 2.3)."""


class Session(msgspec.Struct, frozen=True):
    """A browser or a script that has logged in.

    A browser sends the cookie to every port of the host, so whoever listens at one of them has it. The page keeps
    ``token`` where browsers divide by the port too, and sends it with each question. A script keeps its cookie to
    itself, and needs the token only for packets.
    """

    token: str
    ends: float
    browser: bool

    def sent_by(self, token: str) -> bool:
        """Return whether this is the token of its page."""
        return secrets.compare_digest(self.token.encode(), token.encode(errors="replace"))

    def may_ask(self, token: str) -> bool:
        """Return whether a request with the session's cookie and this token, '' if it has none, gets data."""
        return not self.browser or self.sent_by(token)


class Access:
    """Knows the tokens and sessions of one server. Only their hashes are kept: no comparison shows how much was right.

    ``authorities`` are the values that the header Host may have, such as ``127.0.0.1:8080``.
    """

    def __init__(
        self, scheme: str, authorities: Collection[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cookie = f"linkspan-{secrets.token_hex(8)}"
        self.secure = scheme == "https"
        self._authorities = frozenset(authorities)
        self._origins = frozenset(f"{scheme}://{one}" for one in authorities)
        self._clock = clock
        self._tokens: dict[bytes, float] = {}
        self._sessions: dict[bytes, Session] = {}

    def token(self) -> str:
        """Return a new token, which logs in once and within TOKEN_LIFE."""
        token = secrets.token_urlsafe(32)
        _keep(self._tokens, TOKENS)
        self._tokens[_hash(token)] = self._clock() + TOKEN_LIFE
        return token

    def log_in(self, token: str, *, browser: bool) -> str:
        """Use a link's token up, and return the cookie's value, '' if the token does not count."""
        ends = self._tokens.pop(_hash(token), None)
        if ends is None or self._clock() > ends:
            return ""
        cookie = secrets.token_urlsafe(32)
        _keep(self._sessions, SESSIONS)
        self._sessions[_hash(cookie)] = Session(secrets.token_urlsafe(32), self._clock() + SESSION_LIFE, browser)
        return cookie

    def session(self, cookie: str) -> Session | None:
        """Return the session of a cookie, None if there is none any more."""
        found = self._sessions.get(_hash(cookie))
        return found if found is not None and self._clock() <= found.ends else None

    def refusal(
        self, method: str, hosts: Sequence[str], origin: str | None, site: str | None, *, entry: bool
    ) -> str:
        """Return why a request does not count, '' if it does.

        ``hosts`` are its headers Host; ``origin`` and ``site`` its Origin and Sec-Fetch-Site, None if the browser sent
        none. An ``entry`` is a page that a user may come to from anywhere.
        """
        if len(hosts) != 1 or hosts[0] not in self._authorities:
            return "the header Host names another server: open the link that `linkspan web` printed"
        if origin is not None and origin not in self._origins:
            return "the request comes from another page (Origin)"
        if origin is None and method != "GET":
            return "the request does not say from which page it comes (Origin)"
        if site is not None and site not in SAFE_SITES and not (entry and method == "GET"):
            return "the request comes from another page (Sec-Fetch-Site)"
        return ""


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def _keep(found: dict[bytes, float] | dict[bytes, Session], most: int) -> None:
    """Make room for one more."""
    while len(found) >= most:
        del found[next(iter(found))]
