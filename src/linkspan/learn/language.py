"""Language of the lessons: the strings of their interface, from learn/locale."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from linkspan.core.translation import Translation

LOCALE = Path(__file__).with_name("locale")


class Words(Translation):
    """The interface of the lessons in one language."""

    def __init__(self, language: str) -> None:
        super().__init__(language, LOCALE)

    def listed(self, values: Iterable[object]) -> str:
        """Return values as a list within a sentence."""
        return (", " if self.language == "en" else "\u3001").join(map(str, values))
