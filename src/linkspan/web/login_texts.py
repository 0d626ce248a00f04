# ruff: noqa: RUF001 - Chinese has punctuation of its own
"""Pages for somebody without a session, in the reader's language: why, and what to do."""

from __future__ import annotations

from typing import Literal

Reason = Literal["no session", "used link"]

_TEXTS: dict[str, dict[Reason, str]] = {
    "en": {
        "no session": "This page needs a login. Open the link that `linkspan web` prints. To get another link, press "
        "Enter in its terminal, or start it again.",
        "used link": "This link is not valid any more: it was used, or is older than a minute. Press Enter in the "
        "terminal where `linkspan web` runs, or start it again, and open the new link.",
    },
    "zh": {
        "no session": "此网页需要登录。请打开 `linkspan web` 打印的链接。"
        "需要新的链接时，在它的终端里按回车，或者重新启动它。",
        "used link": "这个链接已经失效：它已被用过，或者超过了一分钟。请在运行 `linkspan web` "
        "的终端里按回车（或者重新启动它），然后打开新的链接。",
    },
}


def language(accepted: str) -> str:
    """Return the language, of those that the page has, that a header Accept-Language prefers; en if it names none."""
    best, found = 0.0, "en"
    for one in accepted.split(","):
        tag, _, weight = one.partition(";")
        name = tag.strip().lower().split("-")[0]
        try:
            value = float(weight.strip().removeprefix("q=") or 1)
        except ValueError:
            continue
        if name in _TEXTS and value > best:
            best, found = value, name
    return found


def text(reason: Reason, accepted: str) -> tuple[str, str]:
    """Return the language and the text of the page for a reader with this header Accept-Language."""
    chosen = language(accepted)
    return chosen, _TEXTS[chosen][reason]
