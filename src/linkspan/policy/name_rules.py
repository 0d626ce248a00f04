"""Rules of peers by DNS name: the sets of their addresses, and what tells the agent which addresses these are.

Each name has two sets. ``named4_DIGEST`` has the addresses that a rule lets through, each until its TTL is over, and
``formerly4_DIGEST`` those that the name had within a week: a flow that was allowed stays so when its address leaves the
first set (``agent/policy_flows.py``). Several policies share them. The agent puts the elements; they end by themselves,
so they are no states, and a new agent finds them.

Two things tell the agent of addresses: it asks the networks' name servers itself, and a rule at ``output`` logs what
these answer the endpoints that such policies select (``asking_names4``), from dnsmasq to the container: so many answers
to each (``told4``), that none keeps others from being seen. Of an answer by TCP only the question is taken
(``kernel/probe/dns_answers.py``), which the agent asks itself. The kernel may bring the container its answer before the
agent has put the element. So for ``PATIENCE`` seconds after an answer what policies refuse on the container's link
(``answered``: by IPv4 or IPv6, whichever it asked by) is dropped, not rejected: its next try passes. On a bridge that
is so for all containers there that such policies select.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator

from linkspan.core.addresses import Prefix
from linkspan.core.ruleset import INET, TABLE, VIEW_PORTS, element
from linkspan.core.states.host import NftChain, NftElement, NftSet, State
from linkspan.policy.names import digest

GROUP = 7616
"""The group of nflog to which answers are logged; nobody pays for it while nobody listens."""
LOGGED = 8192
"""Bytes of an answer that are logged: by UDP it has 4096 at most."""
SHORTEST, LONGEST, GRACE = 30, 3600, 30
"""Least and most seconds of a TTL that count, and for how long an address stays after that: a client that has just got
the answer begins its connection, and the agent gets the next answer."""
REMEMBERED = 7 * 86400
"""Seconds for which a flow may be allowed by a name whose address it has no more."""
PATIENCE = 3
"""Seconds in which a TCP client sends its second and third SYN (RFC 6298 2.1 and 5.5)."""
SETS = ("named", "formerly", "asking_names", "answered", "told")
"""How the names of the sets begin."""
_IP, _TYPE = {4: "ip", 6: "ip6"}, {4: "ipv4_addr", 6: "ipv6_addr"}
_ASKING, _ANSWERED, _TOLD = "asking_names", "answered", "told"
_EACH = "limit rate 50/second burst 200 packets"
"""Answers to one container that are logged. A question costs the agent 40 us."""
_ALL = "limit rate 1000/second burst 2000 packets"
_PAUSE = 10
"""Seconds after which a container that asks nothing is forgotten."""
_DNS = 53


def named(name: str, family: int) -> str:
    """Return the set of the addresses that a name has."""
    return f"named{family}_{digest(name)}"


def formerly(name: str, family: int) -> str:
    """Return the set of the addresses that a name had within a week."""
    return f"formerly{family}_{digest(name)}"


def sets(names: Collection[str], families: Collection[int]) -> list[NftSet]:
    """Return the sets of names; their elements are no states."""
    return [
        NftSet(INET, TABLE, of(name, family), _TYPE[family], dynamic=True, timeout=longest)
        for name, family in itertools.product(sorted(names), sorted(families))
        for of, longest in ((named, LONGEST + GRACE), (formerly, REMEMBERED))
    ]


def states(families: Iterable[int], *, logs: bool) -> Iterator[State]:
    """Return the sets and chains that all names have in common; ``logs`` says whether this kernel has nflog."""
    wanted, asked = sorted(set(families)), []
    yield NftSet(INET, TABLE, _ANSWERED, "ifname", dynamic=True, timeout=PATIENCE)
    for family in wanted:
        ip, answers = _IP[family], f"policy_answers{family}"
        yield NftSet(INET, TABLE, f"{_ASKING}{family}", _TYPE[family])
        yield NftSet(INET, TABLE, f"{_TOLD}{family}", _TYPE[family], dynamic=True, timeout=_PAUSE)
        # By the server's own port: what other programs of the host send there is no answer of a server.
        to = f"{ip} daddr @{_ASKING}{family}"
        asked.append(f"{to} {ip} saddr @servers{family} udp sport {_DNS} goto {answers}")
        asked.append(f"{to} {ip} saddr @servers{family} tcp sport {_DNS} goto {answers}")
        asked.append(f"{to} th sport >= {VIEW_PORTS.start} {ip} saddr . th sport @views{family} goto {answers}")
        each = f"update @{_TOLD}{family} {{ {ip} daddr {_EACH} }}"
        told = (f"{each} {_ALL} log group {GROUP} snaplen {LOGGED}",) if logs else ()
        yield NftChain(INET, TABLE, answers, "", (f"update @{_ANSWERED} {{ oifname }}", *told))
    hook = "type filter hook output priority filter + 9; policy accept;"
    yield NftChain(INET, TABLE, "policy_answers", hook, tuple(asked))


def patient(outside: str, family: int) -> str:
    """Return the rule before each reject; ``outside`` is the condition by which the target is in no pool.

    On a bridge many containers share the link: who goes nowhere by name is refused at once, whoever asked.
    """
    return f"iifname @{_ANSWERED} {_IP[family]} saddr @{_ASKING}{family} {outside} drop"


def condition(name: str, family: int) -> str:
    """Return the condition by which a packet goes to an address that a name has."""
    return f"{_IP[family]} daddr @{named(name, family)}"


def asking(address: Prefix) -> NftElement:
    """Return the element of an endpoint that some policy lets out by names."""
    return element(f"{_ASKING}{address.family}", address.address)
