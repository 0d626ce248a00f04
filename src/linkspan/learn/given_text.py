"""Text that people give to links and rules: aliases, second names and comments, which programs print among the rest.

A check reads what the kernel has. So it must not find its pattern in a comment that says so. Text with a line break or
a quote could even look like a line of its own, and how each program prints that differs. So a replay refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from linkspan.learn.sandbox import NETNS, TIMED_OUT, Sandbox

_LINK = re.compile(r"(?:^|\\) {4}(?:alias|altname) .*$", re.MULTILINE)
"""Of `ip`: the last words about a link; with -o a backslash is before them."""
_RULE = re.compile(
    r'(?<!\S)(--[\w-]+) "(?:[^"\\]|\\.)*"'  # of iptables
    r'|(--comment|--(?:nf)?log-prefix) [^\s"]\S*'
    r'|\b(comment|prefix) "[^"]*"',  # of nft
    re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PRINTED = ("ip -json link show", "nft -j list ruleset", "iptables-save")
"""Programs that print such text without doubt: between quotes, with a backslash before what is special."""
_ENDED = range(128, 256)
"""Exit codes of a program that a signal has ended. One that is not there (127) prints nothing for a check either."""


def without(output: str) -> str:
    """Return the output of a check's command without such text."""
    return _RULE.sub(lambda found: f'{found[found.lastindex or 0]} ""', _LINK.sub("", output))


def misleads(sandbox: Sandbox, names: Iterable[str]) -> bool:
    """Return whether a link or a rule of the host or of these namespaces has text that could look like another line."""
    spaces = ("", *(f"nsenter --net={NETNS}/{name} " for name in names))
    results = sandbox.results([f"{space}{command}" for space in spaces for command in _PRINTED])
    return any(code in (TIMED_OUT, *_ENDED) or _special(output) for code, output in results)


def _special(output: str) -> bool:
    """Return whether text in quotes has a line break, a quote, a backslash or a control character."""
    text = output.replace("\\'", "")  # `ip` writes an apostrophe so
    return any("\\" in line or line.count('"') % 2 or _CONTROL.search(line) for line in text.split("\n"))
