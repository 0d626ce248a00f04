"""What nftables would do with a packet: the kernel's own rules, read and worked through.

Only what our rules use is understood, and of others' rules what is common. A match that is not understood is
neither true nor false: its rule is taken as not matching and named in ``unsure``, so that a verdict is never
claimed on a guess.
"""

from __future__ import annotations

import fnmatch
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from linkspan.addresses import SOCKET_FAMILY, Prefix, mac_text, prefix
from linkspan.errors import Invalid
from linkspan.state import HOST
from linkspan.tell.questions import LOCAL, Chain, Packet, Questions

_PROTOCOLS = {4: "icmp", 6: "ipv6-icmp"}
_NUMBERS = {"icmp": "1", "ipip": "4", "tcp": "6", "udp": "17", "esp": "50", "sctp": "132"}
_DEPTH = 16  # NFT_JUMP_STACK_SIZE, net/netfilter/nf_tables.h
_QUIET = frozenset({"counter", "log", "comment", "ct", "mangle", "notrack", "limit"})
_FINAL = frozenset(
    {"accept", "drop", "reject", "return", "jump", "goto", "dnat", "masquerade", "snat", "redirect", "vmap"}
)


class Verdict(msgspec.Struct, frozen=True):
    """What a hook decides. ``where`` and ``rule`` say who did; ``to`` is a DNAT's target, ``masked`` a masquerade."""

    passes: bool = True
    where: str = ""
    rule: str = ""
    to: tuple[str, ...] = ()
    masked: bool = False
    unsure: tuple[str, ...] = ()


class Frame(msgspec.Struct, frozen=True):
    """A packet at a hook: the devices that it is between, its MAC, and the mark that a tunnel gave it (0: none)."""

    packet: Packet
    arriving: str = ""
    leaving: str = ""
    mac: bytes = b""
    mark: int = 0


def decide(
    asked: Questions, families: Sequence[str], kinds: Sequence[str], hook: str, frame: Frame
) -> Verdict:
    """Work through the base chains at a hook by priority, until one drops."""
    chains = asked.chains()
    unsure: list[str] = []
    result = Verdict()
    at_hook = [c for c in chains if c.family in families and c.kind in kinds and c.hook == hook]
    for chain in sorted(at_hook, key=lambda c: c.priority):
        found = _Evaluation(asked, chains, frame, unsure).base(chain)
        if not found.passes:
            return msgspec.structs.replace(found, unsure=tuple(unsure))
        if found.to or found.masked:
            result = found
    return msgspec.structs.replace(result, unsure=tuple(unsure))


def families(packet: Packet) -> tuple[str, ...]:
    """Return the families of tables that an IP packet passes."""
    return ("inet", "ip" if packet.family == 4 else "ip6")


def words(rule: Iterable[Mapping[str, Any]]) -> str:
    """Return a rule's expressions as text, near to what nft prints."""
    return " ".join(_word(e) for e in rule if "counter" not in e)


def _word(value: Any) -> str:
    match value:
        case {"match": {"op": op, "left": left, "right": right}}:
            sign = {"==": "", "in": ""}.get(op, f"{op} ")
            return f"{_word(left)} {sign}{_word(right)}"
        case {"meta": {"key": key}}:
            return str(key) if key in ("iifname", "oifname", "iifgroup", "oifgroup") else f"meta {key}"
        case {"payload": {"protocol": protocol, "field": field}}:
            return f"{protocol} {field}"
        case {"ct": {"key": key}}:
            return f"ct {key}"
        case {"fib": {"result": result, "flags": flags}}:
            return f"fib {' '.join(flags) if isinstance(flags, list) else flags} {result}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"set": list(items)}:
            return "{ " + ", ".join(_word(i) for i in items) + " }"
        case {"concat": list(items)}:
            return " . ".join(_word(i) for i in items)
        case {"jump": {"target": name}}:
            return f"jump {name}"
        case {"vmap": {"key": key, "data": data}}:
            return f"{_word(key)} vmap {_word(data)}"
        case {"&": [left, mask]}:
            return f"{_word(left)} & {_word(mask)}"
        case {"xt": {"name": name}}:
            return f"xt {name}"
        case list(items):
            return ",".join(_word(i) for i in items)
        case dict():
            return next(iter(value), "")
    return str(value)


class _Evaluation:
    """One packet's way through one base chain and what it jumps to."""

    def __init__(self, asked: Questions, chains: Sequence[Chain], frame: Frame, unsure: list[str]) -> None:
        self._asked = asked
        self._chains = {(c.family, c.table, c.name): c for c in chains}
        self._frame = frame
        self._unsure = unsure

    def base(self, chain: Chain) -> Verdict:
        """Return the base chain's verdict, its policy where no rule decides."""
        found = self._walk(chain, 0)
        if found is None:
            where = f"{chain.family} {chain.table} {chain.name}"
            return Verdict(chain.policy != "drop", where, f"policy {chain.policy}")
        return found

    def _walk(self, chain: Chain, depth: int) -> Verdict | None:
        where = f"{chain.family} {chain.table} {chain.name}"
        for rule in chain.rules:
            final = next((e for e in rule if _FINAL & e.keys()), None)
            if final is None:
                continue
            tests = [
                self._true(chain, e["match"]) if "match" in e else _neutral(e) for e in rule if e is not final
            ]
            if False in tests:
                continue
            if None in tests:
                self._unsure.append(f"{where}: {words(rule)}")
                continue
            outcome = self._final(chain, final, where, words(rule), depth)
            if outcome == "return":
                return None
            if isinstance(outcome, Verdict):
                return outcome
        return None

    def _final(
        self, chain: Chain, final: Mapping[str, Any], where: str, text: str, depth: int
    ) -> Verdict | str | None:
        match final:
            case {"vmap": {"key": key, "data": str(name)}} if name.startswith("@"):
                known = self._values(chain, key)
                if known is not None:
                    found = (known and self._asked.element(chain, name[1:], known)) or ("continue",)
                    return self._final(chain, _verdict(found[0]), where, text, depth)
            case {"continue": _}:
                return None
            case {"drop": _} | {"reject": _}:
                return Verdict(False, where, text)
            case {"accept": _}:
                return Verdict(True, where, text)
            case {"return": _}:
                return "return"
            case {"masquerade": _}:
                return Verdict(True, where, text, masked=True)
            case {"dnat": {"addr": address}}:
                to = self._values(chain, address)
                return Verdict(True, where, text, to=to) if to else None
            case {"jump": {"target": name}} | {"goto": {"target": name}}:
                target = self._chains.get((chain.family, chain.table, name))
                if target is None or depth >= _DEPTH:
                    return None
                inner = self._walk(target, depth + 1)
                return inner if inner is not None or "jump" in final else "return"
        self._unsure.append(f"{where}: {text}")
        return None

    def _true(self, chain: Chain, match: Mapping[str, Any]) -> bool | None:
        """Tell whether a match holds; None where it is not understood. What the packet lacks never matches."""
        left = self._values(chain, match["left"])
        if left is None:
            return None
        if not left:
            return False
        found = self._compare(chain, left, match["right"])
        return found if found is None or match["op"] in ("==", "in") else not found

    def _compare(self, chain: Chain, left: tuple[str, ...], right: Any) -> bool | None:
        match right:
            case str() if right.startswith("@"):
                return self._asked.element(chain, right[1:], left) is not None
            case str() | int():
                return any(_equal(part, str(right)) for part in left)
            case {"prefix": {"addr": address, "len": length}}:
                return _inside(left[0], f"{address}/{length}")
            case {"range": [int(first), int(last)]}:
                return left[0].isdigit() and first <= int(left[0]) <= last
            case {"set": list(items)} | list(items):
                tests = [self._compare(chain, left, item) for item in items]
                return True if True in tests else None if None in tests else False
        return None

    def _values(self, chain: Chain, left: Any) -> tuple[str, ...] | None:
        """Return what an expression says of this packet: () where the packet has no such field, None if unknown."""
        match left:
            case {"concat": list(items)}:
                parts = [self._values(chain, item) for item in items]
                if None in parts:
                    return None
                return tuple(p for part in parts if part for p in part) if all(parts) else ()
            case {"map": {"key": key, "data": str(name)}} if name.startswith("@"):
                known = self._values(chain, key)
                return known and (self._asked.element(chain, name[1:], known) or ())
            case {"&": [part, str(mask)]}:
                values = self._values(chain, part)
                return values and (_masked(values[0], mask),)
            case {"meta": {"key": key}}:
                return self._meta(str(key))
            case {"ct": {"key": key}}:
                return self._conntrack(str(key))
            case {"rt": {"key": "ipsec"}}:  # what is, has left the rules that are looked at by then
                return ("False",)
            case {"payload": {"base": "nh", "offset": 72, "len": 8}}:  # protocol of an IPv4 header (RFC 791)
                packet = self._frame.packet
                number = _NUMBERS.get(packet.protocol)
                return () if packet.family == 6 or number is None else (number,)
            case {"payload": {"protocol": str(protocol), "field": str(field)}}:
                return self._payload(protocol, field)
            case {"fib": {"result": "type", "flags": flags}} if list(flags) == ["daddr"] or flags == "daddr":
                kind = self._asked.route(HOST, msgspec.structs.replace(self._frame.packet, source=b"")).kind
                return ("local" if kind == LOCAL else "unicast",)
        return None

    def _meta(self, key: str) -> tuple[str, ...] | None:
        frame, family = self._frame, self._frame.packet.family
        protocol = frame.packet.protocol
        known = {
            "iifname": frame.arriving,
            "oifname": frame.leaving,
            "l4proto": _PROTOCOLS[family] if protocol == "icmp" else protocol,
            "nfproto": f"ipv{family}",
            "protocol": "ip" if family == 4 else "ip6",
        }
        if key in ("iifgroup", "oifgroup"):
            link = self._asked.device(HOST, known[f"{key[0]}ifname"])
            return (str(link.group),) if link is not None else ()
        if frame.mark:
            known["mark"] = str(frame.mark)
        return (known[key],) if key in known else None

    def _conntrack(self, key: str) -> tuple[str, ...] | None:
        packet = self._frame.packet
        match key:
            case "state":
                return ("established" if packet.established else "new",)
            case "status":
                return ("dnat",) if packet.translated else ("none",)
            case "direction":
                return ("reply" if packet.established else "original",)
        return None

    def _payload(self, protocol: str, field: str) -> tuple[str, ...] | None:
        frame, packet = self._frame, self._frame.packet
        match protocol, field:
            case ("ether", "saddr"):
                return (mac_text(frame.mac),) if frame.mac else None
            case ("ether", "type"):
                return ("ip" if packet.family == 4 else "ip6",)
            case (("ip" | "ip6"), ("saddr" | "daddr")):
                if protocol != ("ip" if packet.family == 4 else "ip6"):
                    return ()
                packed = packet.source if field == "saddr" else packet.target
                return (socket.inet_ntop(SOCKET_FAMILY[packet.family], packed),)
            case (("th" | "tcp" | "udp" | "sctp"), ("sport" | "dport")):
                if packet.protocol in ("icmp", "ipip") or protocol not in ("th", packet.protocol):
                    return ()
                return (str(packet.port if field == "dport" else packet.source_port),)
            case ("icmp", "type") if packet.protocol == "icmp":
                return ("echo-reply" if packet.established else "echo-request",) if packet.family == 4 else ()
            case ("icmpv6", "type") if packet.protocol == "icmp":
                return ("echo-reply" if packet.established else "echo-request",) if packet.family == 6 else ()
            case (("arp" | "icmp" | "icmpv6" | "vlan"), _):
                return ()
        return None


def _neutral(expression: Mapping[str, Any]) -> bool | None:
    """Tell what a statement that is no match does to a rule: nothing, or (None) nobody knows."""
    if expression.keys() <= _QUIET:
        return True
    return True if expression.get("xt", {}).get("name") == "comment" else None


def _verdict(text: str) -> Mapping[str, Any]:
    """Return a map's verdict, ``drop`` or ``jump CHAIN``, as a rule has it."""
    verdict, _, target = text.partition(" ")
    return {verdict: {"target": target} if target else None}


def _masked(address: str, mask: str) -> str:
    """Return an address cut by a mask."""
    whole, kept = prefix(address).packed, prefix(mask).packed
    return Prefix(bytes(a & b for a, b in zip(whole, kept, strict=True)), 0).address


def _equal(value: str, pattern: str) -> bool:
    """Compare as nft does: a trailing ``*`` stands for any ending."""
    return fnmatch.fnmatchcase(value, pattern) if pattern.endswith("*") else value == pattern


def _inside(address: str, pool: str) -> bool:
    try:
        return prefix(pool).holds(prefix(address))
    except Invalid:
        return False
