"""Forwarding before linkspan, read from linkspan's own rules by an agent whose record of it is lost.

The rules keep a host closed that forwarded nothing before linkspan enabled it (``ruleset``), so they have the
links that existed, and those by which nothing passed.
"""

from __future__ import annotations

from collections.abc import Mapping

from linkspan.core.addresses import FAMILIES
from linkspan.core.errors import LinkspanError
from linkspan.kernel.io.nftables import Nft, netfilter_socket, table_exists

_TABLE = "inet linkspan"


def links_before() -> Mapping[int, Mapping[str, bool]] | None:
    """Return the links that existed, by family and name, and whether their incoming packets were forwarded.

    A family for which the host forwarded everything is left out. None if there are no rules of linkspan's.
    """
    netfilter = netfilter_socket()
    try:
        if not table_exists(netfilter, *_TABLE.split()):
            return None
    finally:
        netfilter.close()
    nft = Nft()
    try:
        rules = _rules(nft)
        closed = [family for family in FAMILIES if f"@closed{family} " in rules]
        return {f: dict.fromkeys(_names(nft, f"old{f}"), True) | dict.fromkeys(_names(nft, f"closed{f}"), False)
            for f in closed}  # fmt: skip
    finally:
        nft.close()


def _rules(nft: Nft) -> str:
    try:
        return nft.text(f"list chain {_TABLE} outsiders")
    except LinkspanError:  # the chain is missing if the host forwarded everything
        return ""


def _names(nft: Nft, name: str) -> list[str]:
    try:
        listed = nft.json(f"list set {_TABLE} {name}")
    except LinkspanError:
        return []
    found = next((item["set"].get("elem", []) for item in listed if "set" in item), [])
    assert isinstance(found, list)
    return [str(one) for one in found]
