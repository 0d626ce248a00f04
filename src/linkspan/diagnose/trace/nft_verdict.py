"""Verdict of nftables on a packet: the kernel's own rules, read as JSON and evaluated.

A match is true, false or unknown. If it is unknown whether a rule applies, both cases of the chain are
evaluated; only if the packet's fate depends on it, the verdict says so in ``unsure``. So neither "passes" nor
"drops" is a guess. A statement that this module does not know makes its rule such a rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from linkspan.core.errors import KernelError
from linkspan.diagnose.trace.kernel_view import Chain, KernelView
from linkspan.diagnose.trace.nft_fields import TRACKING, Fields
from linkspan.diagnose.trace.nft_rule import Rule
from linkspan.diagnose.trace.nft_values import (
    Ports,
    equal,
    in_span,
    inside,
    masked,
    of_status,
    of_tcp_flags,
    ordered,
    spans,
)
from linkspan.diagnose.trace.verdict import AFTER, CHANGE, DROP, PASS, Doubts, Frame, Verdict

_DEPTH = 16  # NFT_JUMP_STACK_SIZE, net/netfilter/nf_tables.h
_RAW = -200  # NF_IP_PRI_CONNTRACK, linux/netfilter_ipv4.h: before it no connection is known
_QUIET = frozenset(
    {"counter", "log", "comment", "ct helper", "ct timeout", "ct expectation", "dup", "flow", "secmark", "last"}
)
"""Statements after which packet and rule continue unchanged."""
_FINAL = frozenset(
    (
        *("accept", "drop", "reject", "return", "continue", "jump", "goto", "vmap"),
        *("dnat", "masquerade", "snat", "redirect", "fwd"),
    )
)
_HARMLESS = frozenset({"priority", "nftrace", "label", "secmark", "zone", "event", "helper", "dscp", "ecn"})
"""Fields of a packet or its connection whose change has no consequence for its path."""


def evaluate(asked: KernelView, chains: Sequence[Chain], chain: Chain, frame: Frame) -> Verdict:
    """Evaluate a base chain and the chains to which it jumps."""
    if chain.hook in ("prerouting", "output") and chain.priority < _RAW:
        frame = msgspec.structs.replace(frame, tracked=False)
    return _Evaluation(asked, {(c.family, c.table, c.name): c for c in chains}, frame).base(chain)


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

    @property
    def _fields(self) -> Fields:
        return Fields(self._asked, self._frame)

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
            case {"snat": {"addr": address}}:
                source = self._values(chain, address) if isinstance(address, dict) else (str(address),)
                if source is not None:
                    return _by(rule, masked=True, source=source[0]) if source else None
            case {"dnat": {"addr": address, **rest}} if isinstance(rest.get("port", 0), int):
                to = self._values(chain, address) if isinstance(address, dict) else (str(address),)
                if to is not None:
                    port = (str(rest["port"]),) if "port" in rest else ()
                    return _by(rule, to=(*to, *port)) if to else None
            case {"fwd": {"dev": device, "addr": address}}:
                ends = (device, address)
                link, to = (self._values(chain, one) if isinstance(one, dict) else (str(one),) for one in ends)
                if link == () or to == ():
                    return None
                if link and to:
                    return _by(rule, forwarded=(link[0], to[0]))
            case {"jump": {"target": name}} | {"goto": {"target": name}}:
                target = self._chains.get((chain.family, chain.table, name))
                if target is not None and depth < _DEPTH:
                    inner = self._walk(target, depth + 1)
                    if inner is not None and not inner.passes and rule.comment:
                        # The last comment on the way says why: a chain in which packets end has none.
                        return inner if inner.by is not None and inner.by.comment else _by(rule, passes=False)
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
            found = self._fields.routed_back(left)
            return None if found is None else (found == right) == (op == "==")
        if of_tcp_flags(left):
            return self._fields.tcp_flags(left, right, op)
        if (status := of_status(left)) and chain.family in TRACKING:
            return self._fields.status(status, right, op)
        if left == {"ct": {"key": "state"}} and chain.family in TRACKING:
            tests = {self._compare(chain, (state,), right) for state in self._fields.states()}
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
        return self._fields.values(chain.family, left)
