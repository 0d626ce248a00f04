"""Pages for somebody without a session, in the reader's language."""

from __future__ import annotations

import pytest

from linkspan.web.login_texts import language, text


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("fr,de;q=0.9", "en"),
        ("fr, zh-Hant;q=0.5, en;q=0.4", "zh"),
        ("en;q=0.1,ZH", "zh"),
        ("zh;q=0", "en"),
        ("zh;q=x, ;;, \x00", "en"),
        ("zh;q=nan", "en"),
    ],
)
def test_the_language_is_the_preferred_one_of_those_that_the_page_has(accepted: str, chosen: str) -> None:
    """A header that nobody understands gets English."""
    assert language(accepted) == chosen


def test_a_reader_without_a_session_is_told_what_to_do() -> None:
    """In their language: where the next link comes from."""
    assert "press Enter in its terminal" in text("no session", "en")[1]
    assert "Press Enter in the terminal" in text("used link", "")[1]
    assert all("按回车" in text(reason, "zh-CN")[1] for reason in ("no session", "used link"))
