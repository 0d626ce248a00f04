"""Control characters as text: what others chose (names, keys, reasons) must not move a terminal or forge lines."""

from __future__ import annotations

import re
from typing import Any

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""C0 and C1 (ISO 6429), and what hides or turns text round (Unicode's default ignorables and UAX 9's controls)."""
_MULTILINE = ("command",)
"""Fields whose own text may have several lines: the commands of `plan`."""


def escaped(text: str, keep: str = "") -> str:
    r"""Return the text with each control character, but for those to ``keep``, as ``\u001b``, which JSON reads too."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)


def shown(value: Any) -> Any:
    """Return an agent's answer as it may be printed: every text in it escaped, at every depth."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return {
            escaped(name): escaped(one, "\n\t") if name in _MULTILINE and isinstance(one, str) else shown(one)
            for name, one in value.items()
        }
    return [shown(one) for one in value] if isinstance(value, list) else value
