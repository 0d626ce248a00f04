"""Language of the tours: the strings of their interface, from demo/locale."""

from __future__ import annotations

from pathlib import Path

from linkspan.core.translation import Translation

LOCALE = Path(__file__).with_name("locale")


class Words(Translation):
    """The interface of the tours in one language."""

    def __init__(self, language: str) -> None:
        super().__init__(language, LOCALE)
