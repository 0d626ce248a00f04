"""YAML as nodes with their lines: what the readers of policy files share. Errors name the file and the line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from linkspan.core.errors import Invalid, closest

LARGEST = 4 << 20
"""Bytes of a file: a thousand policies of 4 KB."""
MOST = 10_000
"""Documents of a file, and tests."""
DEEPEST = 32
"""Levels of nesting: a reader of trees is recursive."""
_DIVIDE = "divide it into several files"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast


class Reader:
    """Reads nodes of one file."""

    def __init__(self, file: str) -> None:
        self.file = file

    def documents(self, text: str) -> Iterator[yaml.Node]:
        """Yield the documents of a file. Raises Invalid, with the line, for what is no YAML, and for aliases."""
        if len(text) > LARGEST:
            raise Invalid(f"{self.file} has more than {LARGEST >> 20} MiB", _DIVIDE)
        try:
            depth = documents = 0
            for event in yaml.parse(text, Loader=_Loader):
                if isinstance(event, yaml.AliasEvent):
                    raise self.wrong(event, "has an alias (*NAME)", "write the value itself")
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                documents += isinstance(event, yaml.DocumentStartEvent)
                if documents > MOST:
                    raise self.wrong(event, f"begins one of more than {MOST} documents", _DIVIDE)
                if depth > DEEPEST:
                    raise self.wrong(event, f"is nested more than {DEEPEST} levels deep")
            yield from (node for node in yaml.compose_all(text, Loader=_Loader) if not empty(node))
        except yaml.reader.ReaderError as error:
            number = text.count("\n", 0, text.find(chr(error.character))) + 1  # the position counts bytes in C
            what = f"line {number} has the character #x{error.character:04x}, which YAML does not allow"
            raise Invalid(f"{self.file} {what}", "is it a text file?") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{self.file} line {mark.line + 1}" if mark is not None else self.file
            raise Invalid(f"{where} is no YAML: {getattr(error, 'problem', None) or error}") from error

    def wrong(self, node: Any, what: str, fix: str = "") -> Invalid:
        """Return the error about a node: ``what`` continues "FILE line N"."""
        return Invalid(f"{self.file} line {line(node)} {what}", fix)

    def fields(
        self, node: yaml.Node, known: Collection[str], what: str, *, elsewhere: Mapping[str, str] = {}
    ) -> dict[str, yaml.Node]:
        """Return a mapping's values by key, without empty ones. Raises Invalid for a key that is not ``known``.

        ``elsewhere`` has the fix for keys that belong to another mapping.
        """
        found = self.mapping(node, what)
        for key, _ in node.value:
            if key.value not in known:
                fix = elsewhere.get(key.value) or closest(key.value, known, f"use {', '.join(known)}")
                raise self.wrong(key, f"has the key {key.value!r}, which {what} does not have", fix)
        return {key: value for key, value in found.items() if not empty(value)}

    def given(
        self,
        node: yaml.Node,
        known: Collection[str],
        what: str,
        *,
        needs: Collection[str] = (),
        may_be_empty: Collection[str] = (),
        elsewhere: Mapping[str, str] = {},
    ) -> dict[str, yaml.Node]:
        """Return ``fields``; raise Invalid for a key that is there without a value, and for one of ``needs`` missing.

        Without the key a rule means everybody, and a selector all: a value that was forgotten must not mean that.
        """
        found = self.fields(node, known, what, elsewhere=elsewhere)
        for key, value in self.mapping(node, what).items():
            if key in may_be_empty:
                continue
            out = "" if key in needs else ", or leave the key out"
            if empty(value):
                raise self.wrong(value, f"has no value for {key}", f"write one{out}")
            if isinstance(value, yaml.SequenceNode) and not value.value:
                raise self.wrong(value, f"has an empty list for {key}", f"write at least one{out}")
        for key in needs:
            if key not in found:
                raise self.wrong(node, f"begins {what} without {key}", f"write {key}:")
        return found

    def mapping(self, node: yaml.Node, what: str) -> dict[str, yaml.Node]:
        """Return a mapping's values by key."""
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, f"has no keys and values: {what} needs them")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.text(key, "a key")
            if name in found:
                raise self.wrong(key, f"has the key {name!r} a second time", "join both")
            found[name] = value
        return found

    def items(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        """Return the items of a list, of which no file needs more than MOST."""
        if not isinstance(node, yaml.SequenceNode):
            raise self.wrong(node, f"is no list: {what} needs one", "begin each item with a dash")
        if len(node.value) > MOST:
            raise self.wrong(node, f"has {len(node.value)} {what}, and may have {MOST}", _DIVIDE)
        return list(node.value)

    def text(self, node: yaml.Node, what: str) -> str:
        """Return a word or a number as it is written."""
        if not isinstance(node, yaml.ScalarNode) or empty(node):
            raise self.wrong(node, f"has no value for {what}")
        return str(node.value)

    def texts(self, node: yaml.Node, what: str) -> tuple[str, ...]:
        """Return a word, or each of a list of words."""
        several = self.items(node, what) if isinstance(node, yaml.SequenceNode) else [node]
        return tuple(self.text(one, what) for one in several)

    def pairs(self, node: yaml.Node, what: str) -> dict[str, str]:
        """Return a mapping of words to words."""
        found = self.mapping(node, what)
        for key, value in found.items():
            name, colon, word = key.partition(":")
            if colon and empty(value):
                fix = f"write a blank after the colon: {name}: {word}"
                raise self.wrong(value, f"has no value for {what} {key}", fix)
        return {key: self.text(value, f"{what} {key}") for key, value in found.items()}

    def number(self, node: yaml.Node, what: str) -> int:
        """Return a number of at most nine digits."""
        word = self.text(node, what)
        if not (word.isascii() and word.isdigit() and len(word) < 10):
            raise self.wrong(node, f"has {word!r} for {what}", "give a number")
        return int(word)


def empty(node: yaml.Node | None) -> bool:
    """Return whether a value is missing or null."""
    return node is None or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null")


def line(node: Any) -> int:
    """Return the line at which a node begins, from 1."""
    return int(node.start_mark.line) + 1
