"""Other programs' translation of what comes in: nftables, both variants of iptables, and IPVS.

A program that translates in eBPF cannot be seen here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from linkspan.core.addresses import FAMILIES
from linkspan.core.errors import LinkspanError
from linkspan.core.ruleset import TABLE
from linkspan.kernel.probe import foreign_chains, iptables_rules

_NFPROTO = {1: FAMILIES, 2: (4,), 10: (6,)}  # NFPROTO_INET, _IPV4, _IPV6 in linux/netfilter.h
_NAT, _CHAIN = "nat", "PREROUTING"
_ENGINES = ("DOCKER", "NETAVARK-HOSTPORT-DNAT")
"""Chains of Docker and Podman for published ports, which lead only to containers of their own bridges."""
_TABLES = ("docker-bridges", "netavark")
"""Their tables of nftables, of which the same is true."""
_IPVS_HEADER = 3
"""Lines of /proc/net/ip_vs before the services."""


def found(chains: Iterable[foreign_chains.Chain]) -> Iterator[tuple[int, str]]:
    """Yield (family, words) of what may translate targets in the calling thread's namespace; ``chains`` are its own."""
    for chain in chains:
        if not (chain.translates and chain.uses) or chain.table in (TABLE, *_TABLES):
            continue
        families = _NFPROTO.get(chain.family, ())
        if (chain.table, chain.name) == (_NAT, _CHAIN) and len(families) == 1 and not _is_foreign(families[0]):
            continue
        yield from ((family, f"chain {chain.name} of table {chain.table}") for family in families)
    for family in FAMILIES:
        if _NAT in foreign_chains.legacy_tables(family) and _legacy(family):
            yield family, "iptables-legacy"
    if _ipvs():
        yield from ((family, "IPVS") for family in FAMILIES)


def _is_foreign(family: int) -> bool:
    """Return whether a rule of iptables (nft variant) for what comes in may lead to a container of ours."""
    try:
        rules = foreign_chains.nft_rules(family, _CHAIN, _NAT)
    except LinkspanError:
        return False  # removed between the two reads: the next one shows it
    return not all(any(f"{engine}\0".encode() in rule for engine in _ENGINES) for rule in rules)


def _legacy(family: int) -> bool:
    command = iptables_rules.command_of(family, "legacy")
    try:
        rules = iptables_rules.listed(command, _CHAIN, _NAT) if command else [["-A"]]
    except LinkspanError:
        return True  # it cannot be read
    return any(rule[0] == "-A" and rule[-1] not in _ENGINES for rule in rules)


def _ipvs() -> bool:
    try:
        return len(Path("/proc/thread-self/net/ip_vs").read_text(encoding="ascii").splitlines()) > _IPVS_HEADER
    except OSError:
        return False  # the kernel has no IPVS
