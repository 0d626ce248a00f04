"""Rules of nftables, as its JSON has them, and their text for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec


class Rule(msgspec.Struct, frozen=True):
    """A rule with its chain: ``where`` and ``text`` for people, ``expressions`` as nft's JSON has them."""

    family: str
    table: str
    chain: str
    expressions: tuple[Mapping[str, Any], ...]

    @property
    def where(self) -> str:
        """The rule's chain, as nft is told it."""
        return f"{self.family} {self.table} {self.chain}"

    @property
    def text(self) -> str:
        """The rule, near to what nft prints."""
        return words(self.expressions)

    @property
    def comment(self) -> str:
        """The rule's comment, '' without one."""
        return next((str(one["comment"]) for one in self.expressions if "comment" in one), "")

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def words(rule: Iterable[Mapping[str, Any]]) -> str:
    """Return a rule's expressions as text, near to what nft prints."""
    return " ".join(_word(e) for e in rule if "counter" not in e and "comment" not in e)


def _word(value: Any) -> str:
    match value:
        case {"match": {"op": op, "left": left, "right": right}}:
            sign = {"==": "", "in": ""}.get(op, f"{op} ")
            return f"{_word(left)} {sign}{_word(right)}"
        case {"meta": {"key": key}}:
            return str(key) if key in ("iifname", "oifname", "iifgroup", "oifgroup", "iif", "oif") else f"meta {key}"
        case {"payload": {"protocol": protocol, "field": field}}:
            return f"{protocol} {field}"
        case {"ct": {"key": key}}:
            return f"ct {key}"
        case {"fib": {"result": result, "flags": flags}}:
            return f"fib {' '.join(flags) if isinstance(flags, list) else flags} {result}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"range": [first, last]}:
            return f"{_word(first)}-{_word(last)}"
        case {"set": list(items)}:
            return "{ " + ", ".join(_word(i) for i in items) + " }"
        case {"|": list(items)}:
            return "|".join(_word(i) for i in items)
        case {"concat": list(items)}:
            return " . ".join(_word(i) for i in items)
        case {"jump": {"target": name}} | {"goto": {"target": name}}:
            return f"{next(iter(value))} {name}"
        case {"vmap": {"key": key, "data": data}}:
            return f"{_word(key)} vmap {_word(data)}"
        case {"&": [left, mask]}:
            return f"{_word(left)} & {_word(mask)}"
        case {"limit": {"rate": rate, "per": per, **rest}}:
            return f"limit rate {'over ' if rest.get('inv') else ''}{rate}/{per}"
        case {"mangle": {"key": key, "value": new}}:
            return f"{_word(key)} set {_word(new)}"
        case {"fwd": {"dev": device}}:
            return f"fwd to {_word(device)}"
        case {"dnat": {"addr": address}}:
            return f"dnat to {_word(address)}"
        case {"xt": {"name": name}}:
            return f"xt {name}"
        case list(items):
            return ",".join(_word(i) for i in items)
        case dict():
            return next(iter(value), "")
    return str(value)
