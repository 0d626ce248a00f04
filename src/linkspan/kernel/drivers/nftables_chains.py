"""Chains whose rules are verdicts alone, by nfnetlink: such a chain comes and goes with a container.

In a network with ``fast=true`` each container has one at its link (``NftLinkChain``). Under policies the first
container with a combination of them brings a chain, and the last one takes it away. With a thousand policies
libnftables would read some thousand chains and sets before each of these transactions.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator

from linkspan.core.states.host import NftChain, NftLinkChain, ingress_hook
from linkspan.kernel.io.netlink import F_CREATE, F_EXCL, Message, attr, text

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEW_CHAIN, _DELETE_CHAIN, _NEW_RULE = _SUBSYSTEM | 3, _SUBSYSTEM | 5, _SUBSYSTEM | 6
_TABLE, _NAME, _HOOK, _POLICY, _TYPE = 1, 3, 4, 5, 7  # NFTA_CHAIN_*
_NUMBER, _PRIORITY, _DEVICE = 1, 2, 3  # NFTA_HOOK_*
_RULE_CHAIN, _EXPRESSIONS, _USERDATA = 2, 4, 7  # NFTA_RULE_*
_ITEM, _EXPRESSION, _DATA = 1, 1, 2  # NFTA_LIST_ELEM, NFTA_EXPR_*
_REGISTER, _IMMEDIATE = 1, 2  # NFTA_IMMEDIATE_*
_VERDICT, _CODE, _CHAIN = 2, 1, 2  # NFTA_DATA_VERDICT, NFTA_VERDICT_*
_NESTED = 0x8000
_APPEND = 0x800  # NLM_F_APPEND, linux/netlink.h
_CODES = {"drop": 0, "accept": 1, "jump": -3, "goto": -4}  # NF_*, NFT_*
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT in libnftnl/udata.h
_RULE = re.compile(r'(?P<verdict>accept|drop|(?:jump|goto) [\w-]+)(?: comment "(?P<comment>[^"]*)")?')
FAMILIES = {"inet": 1, "netdev": 5, "bridge": 7}
_INGRESS = bytes(4)  # NF_NETDEV_INGRESS
_FILTER = bytes(4)  # NF_IP_PRI_FILTER
_ACCEPT = struct.pack(">I", 1)  # NF_ACCEPT


def of_verdicts(chain: NftChain) -> bool:
    """Return whether a chain has verdicts alone, each maybe with a comment, and no hook but that of its link."""
    hook = ingress_hook(chain.name) if isinstance(chain, NftLinkChain) else ""
    return chain.hook == hook and all(_RULE.fullmatch(rule) for rule in chain.rules)


def verdict(words: str) -> bytes:
    """Pack a verdict, ``accept``, ``drop``, ``jump CHAIN`` or ``goto CHAIN``, as an attribute of data."""
    word, _, chain = words.partition(" ")
    body = attr(_CODE, struct.pack(">i", _CODES[word])) + (text(_CHAIN, chain) if chain else b"")
    return attr(_VERDICT | _NESTED, body)


def added(chains: Iterable[NftChain]) -> Iterator[Message]:
    """Yield messages that add chains ``of_verdicts``. The kernel refuses them if one is there already."""
    new = list(chains)
    for chain in new:
        body = _header(chain) + text(_TABLE, chain.table) + text(_NAME, chain.name)
        if chain.hook:
            hook = attr(_NUMBER, _INGRESS) + attr(_PRIORITY, _FILTER) + text(_DEVICE, chain.name)
            body += attr(_HOOK | _NESTED, hook) + attr(_POLICY, _ACCEPT) + text(_TYPE, "filter")
        yield Message(_NEW_CHAIN, F_CREATE | F_EXCL, body, f"chain {chain.name}")
    for chain in new:
        at = _header(chain) + text(_TABLE, chain.table) + text(_RULE_CHAIN, chain.name)
        for rule in chain.rules:
            yield Message(_NEW_RULE, F_CREATE | _APPEND, at + _rule(rule), f"a rule of chain {chain.name}")


def deleted(chains: Iterable[NftChain]) -> Iterator[Message]:
    """Yield messages that delete chains with their rules."""
    for chain in chains:
        body = _header(chain) + text(_TABLE, chain.table) + text(_NAME, chain.name)
        yield Message(_DELETE_CHAIN, 0, body, f"chain {chain.name}")


def _header(chain: NftChain) -> bytes:
    return bytes([FAMILIES[chain.family], 0, 0, 0])


def _rule(rule: str) -> bytes:
    parts = _RULE.fullmatch(rule)
    assert parts is not None
    data = attr(_REGISTER, bytes(4)) + attr(_IMMEDIATE | _NESTED, verdict(parts["verdict"]))  # NFT_REG_VERDICT is 0
    expression = text(_EXPRESSION, "immediate") + attr(_DATA | _NESTED, data)
    found = attr(_EXPRESSIONS | _NESTED, attr(_ITEM | _NESTED, expression))
    if (comment := parts["comment"]) is not None:
        said = comment.encode() + b"\0"
        found += attr(_USERDATA, bytes([_COMMENT, len(said)]) + said)
    return found
