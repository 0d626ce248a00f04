"""Language of answers: the agent's English sentences in the reader's language, as far as they are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FIELDS = frozenset(("detail", "fix", "hint", "message", "reason", "why"))
"""Fields of answers that are sentences; all others are names, addresses, commands, and words that the page knows."""


def translated(answer: Any, say: Callable[[str], str]) -> Any:
    """Return an answer with its sentences as ``say`` returns them, at every depth."""
    if isinstance(answer, dict):
        return {
            name: say(one) if name in FIELDS and isinstance(one, str) else translated(one, say)
            for name, one in answer.items()
        }
    return [translated(one, say) for one in answer] if isinstance(answer, list) else answer
