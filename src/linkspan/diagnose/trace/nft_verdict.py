"""Verdict of nftables on a packet: the kernel's own rules, read as JSON and evaluated.

A match is true, false or unknown. If it is unknown whether a rule applies, both cases of the chain are
evaluated; only if the packet's fate depends on it, the verdict says so in ``unsure``. So neither "passes" nor
"drops" is a guess. A statement that this module does not know makes its rule such a rule.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from linkspan.core.addresses import SOCKET_FAMILY, mac_text
from linkspan.core.errors import KernelError
from linkspan.diagnose.trace.kernel_view import FLOWING, LOCAL, UNICAST, Chain, KernelView, Packet, towards
from linkspan.diagnose.trace.nft_values import (
    NUMBERS,
    Ports,
    equal,
    flag_names,
    in_span,
    inside,
    masked,
    of_status,
    of_tcp_flags,
    ordered,
    spans,
)

_DEPTH = 16  # NFT_JUMP_STACK_SIZE, net/netfilter/nf_tables.h
_MAC = 6
"""Bytes of a MAC."""
_RAW = -200  # NF_IP_PRI_CONNTRACK, linux/netfilter_ipv4.h: before it no connection is known
_QUIET = frozenset(
    {"counter", "log", "comment", "ct helper", "ct timeout", "ct expectation", "dup", "flow", "secmark", "last"}
)
"""Statements after which packet and rule continue unchanged."""
_FINAL = frozenset(
    {"accept", "drop", "reject", "return", "continue", "jump", "goto", "dnat", "masquerade", "snat", "redirect", "vmap"}
)
_HARMLESS = frozenset({"priority", "nftrace", "label", "secmark", "zone", "event", "helper", "dscp", "ecn"})
"""Fields of a packet or its connection whose change has no consequence for its path."""
_TRACKING = frozenset({"inet", "ip", "ip6"})
"""Families whose chains know connections."""
PASS, DROP, CHANGE, AFTER = "pass", "drop", "change", "after"
"""Possible effects of a rule that may apply; AFTER: effects on the segments after a handshake."""


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

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class Verdict(msgspec.Struct, frozen=True):
    """The verdict of a chain or hook.

    ``later`` says what a later segment of the same connection meets that does not let it pass for certain.
    ``where`` and ``rule`` say who did. ``by`` is the rule of nftables that did (None for a policy, and for iptables),
    ``policy`` the chain of iptables whose policy did. ``to`` is a DNAT's target (address, port), ``masked`` says that
    the source is to change, to ``source`` or else to the host's own. ``packet`` is the packet afterwards. ``unsure``
    are the rules on which it depends whether this is so; ``unless`` is the drop (where, rule) that one of them could
    prevent. ``rerouted`` tells that the packet is to be routed once more. ``removal`` is the command that takes away
    what drops in iptables, in words.
    """

    passes: bool = True
    where: str = ""
    rule: str = ""
    by: Rule | None = None
    policy: str = ""
    to: tuple[str, ...] = ()
    masked: bool = False
    later: tuple[str, ...] = ()
    source: str = ""
    packet: Packet | None = None
    unsure: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    rerouted: bool = False
    removal: tuple[str, ...] = ()


class Frame(msgspec.Struct, frozen=True):
    """A packet at a hook of the namespace ``netns``: its devices, and the MACs of its frame.

    ``tracked`` is false before connection tracking has seen it, ``started`` says that this namespace sends
    it.
    """

    packet: Packet
    arriving: str = ""
    leaving: str = ""
    mac: bytes = b""
    to_mac: bytes = b""
    netns: int = 0
    tracked: bool = True
    started: bool = False


class Doubts:
    """Possible effects of rules that may apply."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, rule: str, *could: str) -> None:
        """Remember a rule and its possible effect."""
        self._found += [(kind, rule) for kind in could]

    def adopt(self, rule: str, other: Doubts) -> None:
        """Remember the possible effects of a chain to which a rule jumps that may apply."""
        self.add(rule, *dict.fromkeys(kind for kind, _ in other._found))

    def about(self, *could: str) -> tuple[str, ...]:
        """Return the rules with one of these possible effects."""
        return tuple(dict.fromkeys(rule for kind, rule in self._found if kind in could))

    def settle(self, found: Verdict) -> Verdict:
        """Return a chain's verdict with what it depends on; a drop that an earlier rule could prevent is no drop."""
        if found.passes:
            later = tuple(f"something else answers for the destination: {rule}" for rule in self.about(AFTER))
            return msgspec.structs.replace(found, unsure=self.about(DROP, CHANGE), later=later)
        doubts = self.about(PASS, CHANGE)
        if not doubts:
            return found
        unsure = tuple(f"{found.where}: {found.rule}, unless this applies: {rule}" for rule in doubts)
        return Verdict(unsure=unsure, unless=(found.where, found.rule))


def evaluate(asked: KernelView, chains: Sequence[Chain], chain: Chain, frame: Frame) -> Verdict:
    """Evaluate a base chain and the chains to which it jumps."""
    if chain.hook in ("prerouting", "output") and chain.priority < _RAW:
        frame = msgspec.structs.replace(frame, tracked=False)
    return _Evaluation(asked, {(c.family, c.table, c.name): c for c in chains}, frame).base(chain)


def number(packet: Packet) -> int | None:
    """Return the number of a packet's protocol (IANA), None if it has none."""
    six = (packet.protocol, packet.family) == ("icmp", 6)
    return NUMBERS.get("icmpv6" if six else packet.protocol)


def words(rule: Iterable[Mapping[str, Any]]) -> str:
    """Return a rule's expressions as text, near to what nft prints."""
    return " ".join(_word(e) for e in rule if "counter" not in e)


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


def _by(rule: Rule, *, passes: bool = True, **does: Any) -> Verdict:
    return Verdict(passes, rule.where, rule.text, rule, **does)


class _Evaluation:
    """One packet's evaluation in one base chain and the chains to which it jumps."""

    def __init__(self, asked: KernelView, chains: Mapping[tuple[str, str, str], Chain], frame: Frame) -> None:
        self._asked = asked
        self._chains = chains
        self._frame = frame
        self._doubts = Doubts()

    def base(self, chain: Chain) -> Verdict:
        """Return the base chain's verdict, or its policy if no rule decides."""
        found = self._walk(chain, 0)
        if found is None:
            where = f"{chain.family} {chain.table} {chain.name}"
            found = Verdict(chain.policy != "drop", where, f"policy {chain.policy}")
        return msgspec.structs.replace(self._doubts.settle(found), packet=self._frame.packet)

    def _walk(self, chain: Chain, depth: int) -> Verdict | None:
        for expressions in chain.rules:
            rule = Rule(chain.family, chain.table, chain.name, expressions)
            applies: bool | None = True
            for expression in expressions:
                if _FINAL & expression.keys():
                    if applies is None:
                        self._may(chain, expression, rule, depth)
                        break
                    outcome = self._final(chain, expression, rule, depth)
                    if outcome == "return":
                        return None
                    if isinstance(outcome, Verdict):
                        return outcome
                    break
                holds = self._step(chain, expression, applies, rule)
                if holds is False:
                    break
                applies = None if holds is None else applies
        return None

    def _step(self, chain: Chain, expression: Mapping[str, Any], applies: bool | None, rule: Rule) -> bool | None:
        """Execute an expression that is no verdict; return whether its rule continues, None if unknown."""
        match expression:
            case {"match": match}:
                return self._true(chain, match)
            case {"mangle": {"key": key, "value": value}}:
                self._change(chain, key, value, applies, rule)
                return True
            case {"notrack": _}:
                if self._frame.tracked:
                    return True  # it comes too late to have an effect
                if applies is None:
                    self._doubts.add(str(rule), CHANGE)
                else:
                    self._replace(ct="untracked")
                return True
            case {"xt": {"name": "comment"}}:
                return True
            case {"xt": {"type": "match"}} | {"limit": _} | {"quota": _} | {"ct count": _}:
                return None
            case {"set": {"stmt": _}} | {"map": {"stmt": _}}:
                return None  # it counts or limits by element
            case {"set": _} | {"map": _}:
                return True
        if expression.keys() <= _QUIET:
            return True
        self._doubts.add(str(rule), PASS, DROP, CHANGE, *([AFTER] if "synproxy" in expression else []))
        return None

    def _replace(self, **changes: Any) -> None:
        self._frame = msgspec.structs.replace(
            self._frame, packet=msgspec.structs.replace(self._frame.packet, **changes)
        )

    def _change(self, chain: Chain, key: Any, value: Any, applies: bool | None, rule: Rule) -> None:
        known = self._number(chain, value) if applies else None
        match key:
            case {"meta": {"key": "mark"}}:
                self._replace(mark=known)
            case {"ct": {"key": "mark"}}:
                self._replace(ct_mark=known)
            case {"payload": {"protocol": "ip" | "ip6", "field": "ttl" | "hoplimit"}} if known is not None:
                self._replace(ttl=known, ttl_by=str(rule))
            case {"meta": {"key": name}} | {"ct": {"key": name}} | {"payload": {"field": name}} if name in _HARMLESS:
                pass
            case {"tcp option": _}:
                pass
            case _:
                self._doubts.add(str(rule), CHANGE)

    def _number(self, chain: Chain, value: Any) -> int | None:
        match value:
            case int():
                return value
            case {"|": [left, right]} | {"&": [left, right]} | {"^": [left, right]}:
                first, second = self._number(chain, left), self._number(chain, right)
                if first is None or second is None:
                    return None
                return {"|": first | second, "&": first & second, "^": first ^ second}[next(iter(value))]
        found = self._values(chain, value) if isinstance(value, dict) else None
        return int(found[0], 0) if found and found[0].isdigit() else None

    def _may(self, chain: Chain, final: Mapping[str, Any], rule: Rule, depth: int) -> None:
        """Remember the effect of a verdict that may be reached."""
        other = _Evaluation(self._asked, self._chains, self._frame)
        outcome = other._final(chain, final, rule, depth)
        name = str(rule)
        self._doubts.adopt(name, other._doubts)
        if isinstance(outcome, Verdict):
            kind = PASS if outcome.passes else DROP
            self._doubts.add(name, CHANGE if outcome.to or outcome.masked else kind)
        elif outcome == "return":  # in a base chain it means the policy
            self._doubts.add(name, DROP if chain.policy == "drop" and not depth else PASS)
        if other._frame != self._frame:
            self._doubts.add(name, CHANGE)

    def _final(self, chain: Chain, final: Mapping[str, Any], rule: Rule, depth: int) -> Verdict | str | None:
        match final:
            case {"vmap": {"key": key, "data": data}}:
                known = self._values(chain, key)
                if known == ():
                    return None
                if known is not None:
                    found = self._mapped(chain, known, data)
                    if found == ():
                        return None
                    if found:
                        return self._final(chain, found[0], rule, depth)
            case {"continue": _}:
                return None
            case {"drop": _} | {"reject": _}:
                return _by(rule, passes=False)
            case {"accept": _}:
                return _by(rule)
            case {"return": _}:
                return "return"
            case {"masquerade": _}:
                return _by(rule, masked=True)
            case {"snat": {"addr": str(address)}}:
                return _by(rule, masked=True, source=address)
            case {"dnat": {"addr": address, **rest}} if isinstance(rest.get("port", 0), int):
                to = self._values(chain, address) if isinstance(address, dict) else (str(address),)
                if to is not None:
                    port = (str(rest["port"]),) if "port" in rest else ()
                    return _by(rule, to=(*to, *port)) if to else None
            case {"jump": {"target": name}} | {"goto": {"target": name}}:
                target = self._chains.get((chain.family, chain.table, name))
                if target is not None and depth < _DEPTH:
                    inner = self._walk(target, depth + 1)
                    return inner if inner is not None or "jump" in final else "return"
        self._doubts.add(str(rule), PASS, DROP, CHANGE)
        return None

    def _mapped(self, chain: Chain, key: tuple[str, ...], data: Any) -> tuple[Any, ...] | None:
        """Return a map's value for a key: () if it has none, None if that is unknown."""
        pairs: Sequence[Any]
        there: bool | None = False
        match data:
            case str() if data.startswith("@"):
                if not spans(key) and not (there := self._holds(chain, data[1:], key)):
                    return None if there is None else ()
                try:
                    pairs = self._asked.mapping(self._frame.netns, chain, data[1:])
                except KernelError:
                    return None
            case {"set": list(pairs)}:
                pass
            case _:
                return None
        for pattern, value in pairs:
            holds = self._compare(chain, key, pattern)
            if holds is None:
                return None
            if holds:
                return tuple(value["concat"]) if isinstance(value, dict) and "concat" in value else (value,)
        return None if there else ()

    def _true(self, chain: Chain, match: Mapping[str, Any]) -> bool | None:
        """Return whether a match is true; None if unknown. A field that the packet lacks never matches."""
        left, right, op = match["left"], match["right"], match["op"]
        if isinstance(right, bool):  # of fib: whether there is a route
            found = self._routed_back(left)
            return None if found is None else (found == right) == (op == "==")
        if of_tcp_flags(left):
            return self._tcp_flags(left, right, op)
        if (status := of_status(left)) and chain.family in _TRACKING:
            return self._status(status, right, op)
        if left == {"ct": {"key": "state"}} and chain.family in _TRACKING:
            tests = {self._compare(chain, (state,), right) for state in self._states()}
            found = tests.pop() if len(tests) == 1 else None
            return found if found is None or op in ("==", "in") else not found
        known = self._values(chain, left)
        if known is None:
            return None
        if not known:
            return False
        if op in ("<", ">", "<=", ">="):
            port = known[0]
            return in_span(port.span, right, op) if isinstance(port, Ports) else ordered(port, right, op)
        found = self._compare(chain, known, right)
        return found if found is None or op in ("==", "in") else not found

    def _states(self) -> tuple[str, ...]:
        """Return the possible states of the packet's connection here."""
        states = self._frame.packet.states
        if self._frame.tracked:
            return states
        return ("untracked",) if states == ("untracked",) else ("invalid",) if "untracked" not in states else states

    def _status(self, left: Mapping[str, Any], right: Any, op: str) -> bool | None:
        """Return whether a connection has these status flags (``ct status``), as far as they are known."""
        packet = self._frame.packet
        if not self._frame.tracked or packet.ct == "untracked":
            return False
        masked = flag_names(left["&"][1]) if "&" in left else None
        wanted = flag_names(right)
        if wanted is None or ("&" in left and masked is None) or packet.ct:
            return None
        answered = packet.established or bool(packet.later)
        known = dict.fromkeys(("seen-reply", "confirmed"), answered) | {"dnat": packet.translated}
        known |= {} if answered else dict.fromkeys(("assured", "snat", "expected", "dying"), False)
        if masked is not None and op in ("==", "!="):
            have = [known.get(name) for name in masked]
            return None if None in have else ({n for n in masked if known[n]} == wanted) == (op == "==")
        if op not in ("in", "!"):
            return None
        have = [known.get(name) for name in wanted]
        found = True if True in have else None if None in have else False
        return found if found is None or op == "in" else not found

    def _compare(self, chain: Chain, left: tuple[str, ...], right: Any) -> bool | None:
        match right:
            case str() if right.startswith("@"):
                return self._holds(chain, right[1:], left)
            case int() | {"range": _} if isinstance(left[0], Ports):
                return in_span(left[0].span, right)
            case str() | int():
                return len(left) == 1 and equal(left[0], str(right))
            case {"elem": {"val": value}}:
                return self._compare(chain, left, value)
            case {"concat": list(parts)} if len(parts) == len(left):
                tests = [self._compare(chain, (one,), part) for one, part in zip(left, parts, strict=True)]
                return False if False in tests else None if None in tests else True
            case {"prefix": {"addr": address, "len": length}}:
                return inside(left[0], f"{address}/{length}")
            case {"range": [first, last]}:
                least, most = ordered(left[0], first, ">="), ordered(left[0], last, "<=")
                return None if least is None or most is None else least and most
            case {"set": list(items)} | list(items):
                tests = [self._compare(chain, left, item) for item in items]
                return True if True in tests else None if None in tests else False
        return None

    def _holds(self, chain: Chain, name: str, key: tuple[str, ...]) -> bool | None:
        """Return whether a set of the chain's table has a key, None if that cannot be asked or depends on a port."""
        try:
            if spans(key):
                tests = [self._compare(chain, key, e) for e in self._asked.elements(self._frame.netns, chain, name)]
                return True if True in tests else None if None in tests else False
            return self._asked.holds(self._frame.netns, chain, name, key)
        except KernelError:
            return None

    def _values(self, chain: Chain, left: Any) -> tuple[str, ...] | None:
        """Return the values of an expression for this packet: () if the packet has no such field, None if unknown."""
        match left:
            case {"concat": list(items)}:
                parts = [self._values(chain, item) for item in items]
                if () in parts:
                    return ()
                if None in parts:
                    return None
                return tuple(p for part in parts if part for p in part)
            case {"map": {"key": key, "data": data}}:
                known = self._values(chain, key)
                found = known and self._mapped(chain, known, data)
                return found if found is None else tuple(str(part) for part in found)
            case {"&": [part, mask]}:
                values = self._values(chain, part)
                return values and masked(values[0], mask)
            case {"meta": {"key": key}}:
                return self._meta(str(key))
            case {"ct": {"key": key, **rest}} if not rest and chain.family in ("inet", "ip", "ip6"):
                return self._conntrack(str(key))
            case {"rt": {"key": "ipsec"}}:  # a packet with these has left the evaluated rules by then
                return ("False",)
            case {"payload": {"base": "nh", "offset": 72, "len": 8}}:  # protocol of an IPv4 header (RFC 791)
                packet = self._frame.packet
                number = NUMBERS.get(packet.protocol)
                return () if packet.family == 6 or number is None else (str(number),)
            case {"payload": {"protocol": "ether", "field": ("saddr" | "daddr") as field}}:
                return self._mac(field)
            case {"payload": {"protocol": str(protocol), "field": str(field)}}:
                return self._payload(protocol, field)
            case {"fib": {"result": "type", "flags": flags}} if list(flags) == ["daddr"] or flags == "daddr":
                return self._kind(self._frame.packet.target)
            case {"fib": {"result": "type", "flags": flags}} if list(flags) == ["saddr"] or flags == "saddr":
                return self._kind(self._frame.packet.source)
        return None

    def _kind(self, address: bytes) -> tuple[str, ...] | None:
        """Return an address's type in the host's routes; make no claim about other types than these two."""
        kind = self._asked.route(self._frame.netns, towards(address)).kind
        return ("local",) if kind == LOCAL else ("unicast",) if kind in (UNICAST, 0) else None

    def _routed_back(self, left: Any) -> bool | None:
        """Return whether a ``fib`` expression finds a route: back to the source, by the link if asked so."""
        match left:
            case {"fib": {"result": "oif" | "oifname", "flags": flags}}:
                wanted = {flags} if isinstance(flags, str) else set(flags)
                if "saddr" not in wanted or wanted - {"saddr", "iif", "mark"}:
                    return None
                mark = self._frame.packet.mark if "mark" in wanted else 0
                back = self._asked.route(self._frame.netns, towards(self._frame.packet.source, mark))
                there = not back.error and back.kind in (LOCAL, UNICAST)
                return there and ("iif" not in wanted or back.device == self._frame.arriving)
        return None

    def _tcp_flags(self, left: Any, right: Any, op: str) -> bool | None:
        packet = self._frame.packet
        if packet.protocol != "tcp":
            return False
        mask, wanted = flag_names(left["&"][1]) if "&" in left else None, flag_names(right)
        if wanted is None or ("&" in left and mask is None):
            return None
        have = packet.flags
        if op == "in":
            return bool(have & wanted)
        same = (have & mask if mask is not None else have) == wanted
        return same if op == "==" else not same

    def _meta(self, key: str) -> tuple[str, ...] | None:
        frame, packet = self._frame, self._frame.packet
        arp = packet.protocol == "arp"
        match key:
            case "iifname" | "iif":
                return (frame.arriving,)
            case "oifname" | "oif":
                return (frame.leaving,)
            case "ibrname" | "obrname":
                link = self._asked.device(frame.netns, frame.arriving if key == "ibrname" else frame.leaving)
                return (link.master,) if link is not None and link.master else ()
            case "iifgroup" | "oifgroup":
                link = self._asked.device(frame.netns, frame.arriving if key == "iifgroup" else frame.leaving)
                return (str(link.group) if link.group else "default",) if link is not None else ()
            case "l4proto":
                six = packet.protocol == "icmp" and packet.family == 6
                return () if arp else ("ipv6-icmp" if six else packet.protocol,)
            case "nfproto":
                return (f"ipv{packet.family}",)
            case "protocol":
                return ("arp" if arp else "ip" if packet.family == 4 else "ip6",)
            case "mark":
                return None if packet.mark is None else (str(packet.mark),)
            case "pkttype":
                return ("host",) if not arp else None
            case "skuid" | "skgid":
                return None if frame.started else ()
        return None

    def _mac(self, field: str) -> tuple[str, ...] | None:
        """Return the frame's sender or target; a device without MACs (IPIP, WireGuard, a TUN) has no such header."""
        mac = self._frame.mac if field == "saddr" else self._frame.to_mac
        if mac:
            return (mac_text(mac),)
        link = self._asked.device(self._frame.netns, self._frame.arriving) if self._frame.arriving else None
        return () if link is not None and len(link.mac) != _MAC else None

    def _conntrack(self, key: str) -> tuple[str, ...] | None:
        packet = self._frame.packet
        match key:
            case "state":
                states = self._states()
                return states if len(states) == 1 else None
            case _ if packet.ct == "?":
                return None
            case _ if packet.ct == "untracked" or not self._frame.tracked:
                return ()
            case "direction" if packet.ct == FLOWING:
                return None
            case "direction":
                return ("reply" if packet.established else "original",)
            case "mark":
                return None if packet.ct_mark is None else (str(packet.ct_mark),)
        return None

    def _payload(self, protocol: str, field: str) -> tuple[str, ...] | None:
        packet = self._frame.packet
        arp = packet.protocol == "arp"
        match protocol, field:
            case ("ether", "type"):
                return ("arp" if arp else "ip" if packet.family == 4 else "ip6",)
            case ("arp", _) if arp:
                return self._arp(field)
            case (("ip" | "ip6"), _) if arp or protocol != ("ip" if packet.family == 4 else "ip6"):
                return ()
            case (("ip" | "ip6"), ("saddr" | "daddr")):
                packed = packet.source if field == "saddr" else packet.target
                return (socket.inet_ntop(SOCKET_FAMILY[packet.family], packed),)
            case ("ip", "protocol") | ("ip6", "nexthdr"):
                return self._meta("l4proto")
            case ("ip", "ttl") | ("ip6", "hoplimit"):
                return (str(packet.ttl),)
            case ("ip", "version"):
                return ("4",)
            case (("th" | "tcp" | "udp" | "sctp"), ("sport" | "dport")):
                if not packet.has_ports or protocol not in ("th", packet.protocol):
                    return ()
                first, last = packet.target_ports if field == "dport" else packet.source_ports
                return (str(first) if first == last else Ports(f"{first}-{last}"),)
            case (("icmp" | "icmpv6"), _) if packet.protocol != "icmp":
                return ()
            case ("icmp", _) if packet.family == 6:
                return ()
            case ("icmpv6", _) if packet.family == 4:
                return ()
            case (("icmp" | "icmpv6"), "type"):
                return ("echo-reply" if packet.established else "echo-request",)
            case (("icmp" | "icmpv6"), "code"):
                return ("0",)
            case (("tcp" | "udp" | "sctp"), _) if packet.protocol != protocol:
                return ()
            case (("arp" | "vlan"), _):
                return ()
            case ("icmpv6", "taddr"):  # only of a neighbour solicitation or advertisement
                return ()
        return None

    def _arp(self, field: str) -> tuple[str, ...] | None:
        frame, packet = self._frame, self._frame.packet
        match field:
            case "operation":
                return ("reply" if packet.established else "request",)
            case "saddr ip" | "daddr ip":
                packed = packet.source if field == "saddr ip" else packet.target
                return (socket.inet_ntop(socket.AF_INET, packed),)
            case "saddr ether":
                return (mac_text(frame.mac),) if frame.mac else None
            case "htype" | "hlen" | "plen":
                return ({"htype": "1", "hlen": "6", "plen": "4"}[field],)
        return None
