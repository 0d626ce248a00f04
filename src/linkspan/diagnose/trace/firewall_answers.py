"""Firewall answers for traces on this machine: nftables as nft lists it in JSON, and the tables of iptables."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

from linkspan.core.addresses import FAMILIES
from linkspan.core.errors import KernelError
from linkspan.diagnose.trace import iptables_verdict
from linkspan.diagnose.trace.kernel_view import Chain, IptablesTable
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.nftables import Nft
from linkspan.kernel.probe import foreign_chains, iptables_rules, nft_trace

_TABLES = frozenset({"raw", "mangle", "nat", "filter", "security"})


class FirewallAnswers:
    """Asks for the firewalls of namespaces, each once: a trace sees the rules of one moment."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._nft: dict[int, Nft] = {}
        self._rulesets: dict[int, tuple[Chain, ...]] = {}
        self._iptables: dict[tuple[int, int], tuple[IptablesTable, ...]] = {}

    def close(self) -> None:
        """Close the sockets."""
        for one in self._nft.values():
            one.close()

    def chains(self, netns: int) -> tuple[Chain, ...]:
        """Return the chains of nftables, read once, without tables that iptables itself lists."""
        known = {
            ("ip" if family == 4 else "ip6", table.name)
            for family in FAMILIES
            for table in self.iptables(netns, family)
            if not table.legacy
        }
        return tuple(chain for chain in self._ruleset(netns) if (chain.family, chain.table) not in known)

    def _ruleset(self, netns: int) -> tuple[Chain, ...]:
        if netns not in self._rulesets:
            self._rulesets[netns] = _chains(self._nftables(netns).json("list ruleset", terse=True))
        return self._rulesets[netns]

    def _nftables(self, netns: int) -> Nft:
        if netns not in self._nft:
            with self._namespaces.entered(netns):
                self._nft[netns] = Nft()  # its socket stays in the namespace
        return self._nft[netns]

    def holds(self, netns: int, chain: Chain, name: str, key: tuple[str, ...]) -> bool:
        """Ask for one key, which costs the same at any size."""
        parts = " . ".join(f'"{part}"' for part in key)
        try:
            with self._namespaces.entered(netns):
                self._nftables(netns).run(f"get element {chain.family} {chain.table} {name} {{ {parts} }}")
        except KernelError as error:
            if error.message.endswith(os.strerror(errno.ENOENT)):  # libnftables has no errno
                return False
            raise
        return True

    def mapping(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """List the map: nft answers for one key only as text, even if asked for JSON (nft 1.1.3)."""
        return self._listed(netns, "map", chain, name)

    def elements(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """List the set."""
        return self._listed(netns, "set", chain, name)

    def _listed(self, netns: int, kind: str, chain: Chain, name: str) -> Sequence[Any]:
        listed = self._nftables(netns).json(f"list {kind} {chain.family} {chain.table} {name}")
        elements = next((item[kind].get("elem") for item in listed if kind in item), None)
        return elements if isinstance(elements, list) else ()

    def iptables(self, netns: int, family: int) -> tuple[IptablesTable, ...]:
        """Return the tables of both variants, if they exist, read once; reading makes none."""
        if (netns, family) not in self._iptables:
            nft = any(_of_iptables(chain, family) for chain in self._ruleset(netns))
            with self._namespaces.entered(netns):
                found = (_saved(family, "nft") or ()) if nft else ()
                if legacy := foreign_chains.legacy_tables(family):
                    read = _saved(family, "legacy")
                    found += iptables_verdict.unread(legacy) if read is None else read
            self._iptables[netns, family] = found
        return self._iptables[netns, family]


def _of_iptables(chain: Chain, family: int) -> bool:
    """Return whether a chain is in a table of iptables-nft: only these name their base chains in capitals."""
    own = "ip" if family == 4 else "ip6"
    return chain.family == own and chain.table in _TABLES and bool(chain.hook) and chain.name.isupper()


def _saved(family: int, variant: str) -> tuple[IptablesTable, ...] | None:
    lines = iptables_rules.saved(family, variant)
    if lines is None:
        return None
    return iptables_verdict.tables(lines, iptables_rules.words, legacy=variant == "legacy")


def _chains(listed: list[dict[str, dict[str, Any]]]) -> tuple[Chain, ...]:
    rules: dict[tuple[str, str, str], list[tuple[Mapping[str, Any], ...]]] = {}
    for item in listed:
        if found := item.get("rule"):
            # A rule's comment is beside its expressions. As one of them it says of what a rule of ours is made.
            said = ({"comment": found["comment"]},) if "comment" in found else ()
            rules.setdefault((found["family"], found["table"], found["chain"]), []).append(
                (*said, *found.get("expr", ()))
            )
    chains = []
    for item in listed:
        found = item.get("chain")
        if not found or found["table"].startswith(nft_trace.TABLE):  # another trace's, which drops nothing
            continue
        key = found["family"], found["table"], found["name"]
        base = {
            k: found[v] for k, v in (("kind", "type"), ("hook", "hook"), ("priority", "prio")) if v in found
        }
        devices = found.get("dev", ())
        devices = (devices,) if isinstance(devices, str) else tuple(devices)
        policy = found.get("policy", "accept")
        chains.append(Chain(*key, **base, policy=policy, rules=tuple(rules.get(key, ())), devices=devices))
    return tuple(chains)
