"""Sentences of linkspan's trace in Chinese: those of the lessons are known, and none is stale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import linkspan
from linkspan.core.translation import LANGUAGES, parsed
from linkspan.learn.english import SENTENCES, Sentences

SOURCE = Path(linkspan.__file__).parent
SPOKEN = ("diagnose/trace/*", "diagnose/doctor/*", "learn/*", "cli/main", "cli/usage")


@pytest.mark.parametrize("language", [one for one in LANGUAGES if one != "en"])
def test_every_sentence_is_one_of_the_code(language: str) -> None:
    """Each piece between its values is in the sources, and the translation has the same values."""
    files = (file for pattern in SPOKEN for file in sorted(SOURCE.glob(f"{pattern}.py")))
    spoken = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text(encoding="utf-8") for file in files))
    known = parsed((SENTENCES / f"{language}.po").read_text(encoding="utf-8"))
    pieces = [piece.strip(" ,:;()") for text in known for piece in re.split(r"\{\w+\}|; | \(", text)]
    assert [piece for piece in pieces if piece not in spoken] == []
    for text, other in known.items():
        assert set(re.findall(r"\{(\w+)\}", other)) <= set(re.findall(r"\{(\w+)\}", text)), text


def test_a_sentence_within_a_sentence_is_translated() -> None:
    """And what is not known stays in English."""
    chinese = Sentences("zh")
    whole = chinese("nobody answers for 10.0.0.9: no container has it and it is not on br0")
    assert re.findall(r"没有人为 10.0.0.9 应答|没有容器使用它", whole) == ["没有人为 10.0.0.9 应答", "没有容器使用它"]
    assert chinese("nobody answers for 10.0.0.9: it sleeps").endswith("it sleeps")
    assert chinese("route 10.0.0.0/8 dev eth0") == "route 10.0.0.0/8 dev eth0"
    assert Sentences("en")("sent") == "sent"
