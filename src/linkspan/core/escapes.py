"""Escapes for control characters: names, keys and reasons from others must not move a terminal or forge lines."""

from __future__ import annotations

import re
from typing import Any

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""C0 and C1 (ISO 6429), and characters that hide or reorder text (Unicode's default ignorables and UAX 9's
controls)."""
_MULTILINE = ("command",)
"""Fields whose own text may have several lines: the commands of `plan`."""


def escaped(text: str, keep: str = "") -> str:
    r"""Return the text with each control character, except those in ``keep``, as ``\u001b``, which JSON can read."""
    if text.isascii() and text.isprintable():  # nearly every one: a tenth of the time
        return text
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)


def plain(json: str) -> bool:
    """Return whether no text in this JSON can have a character that is escaped."""
    return json.isascii() and json.isprintable() and "\\" not in json


def shown(value: Any) -> Any:
    """Return an agent's answer in printable form: every text in it escaped, at every depth."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return {
            escaped(name): escaped(one, "\n\t") if name in _MULTILINE and isinstance(one, str) else shown(one)
            for name, one in value.items()
        }
    return [shown(one) for one in value] if isinstance(value, list) else value
