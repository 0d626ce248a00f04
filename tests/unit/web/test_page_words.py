"""The page's words: each has a Chinese translation, and each translation is of a word that is there."""

from __future__ import annotations

import re
from pathlib import Path

from linkspan.web.files import FOLDER

OF_ANSWERS = {
    # what agents answer, and the page shows in the reader's language
    *("alive", "silent", "drained", "unknown", "ok", "warn", "fail", "skip", "added", "changed", "removed"),
    *("held", "host", "gateway", "reserved", "leaked", "duplicate", "orphaned", "receives", "sends"),
    *("sent", "routed", "bridged", "delivered", "dropped", "encapsulated", "decapsulated", "encrypted", "decrypted"),
    *("forwarded", "translated", "masqueraded", "received", "left", "lost", "switched", "isolated", "stopped"),
    # chosen by a table in the page
    *("Containers", "Hosts", "Networks", "Addresses", "Events", "Doctor", "Peers", "BGP", "Drift", "Migrations"),
    *("no answer", "not measured yet", "not asked yet", "root only"),
    *("Reachable", "Broken", "Unknown", "there", "back", "1 problem", "{n} problems"),
    *("{n} d ago", "{n} h ago", "{n} min ago", "{n} s ago"),
}
_CALL = re.compile(r'\bt\(\s*"((?:[^"\\]|\\.)*)"')
_ENTRY = re.compile(r'^  "((?:[^"\\]|\\.)*)": "((?:[^"\\]|\\.)*)",$', re.MULTILINE)
_PLACE = re.compile(r"\{\w+\}")


def test_every_word_is_translated_and_no_translation_is_stale() -> None:
    """With the same values in it."""
    translated = dict(_ENTRY.findall((FOLDER / "words-zh.js").read_text(encoding="utf-8")))
    used = {word for path in Path(FOLDER).glob("*.js") for word in _CALL.findall(path.read_text(encoding="utf-8"))}
    assert used | OF_ANSWERS == set(translated)
    for english, chinese in translated.items():
        assert sorted(_PLACE.findall(english)) == sorted(_PLACE.findall(chinese)), english
