"""What another's iptables would do with a forwarded packet, from the lines that ``iptables -S`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from linkspan.addresses import Prefix, prefix
from linkspan.tell.rules import Frame, Verdict

_DEPTH = 64
_OTHER_NAMES = {"icmp": ("ipv6-icmp", "icmpv6"), "ipip": ("4", "ipencap", "ipv4")}
"""What /etc/protocols may have for ours."""
_ALONE = {"-m", "--match", "--comment", "--reject-with"}
"""Options whose value decides nothing by itself."""


class _Tables(msgspec.Struct):
    rules: dict[str, list[Sequence[str]]]
    policies: dict[str, str]


def forwarded(tables: Iterable[Iterable[Sequence[str]]], frame: Frame) -> Verdict:
    """Return what the FORWARD chains decide together."""
    return decided(tables, "FORWARD", frame)


def decided(tables: Iterable[Iterable[Sequence[str]]], chain: str, frame: Frame) -> Verdict:
    """Return what the chains of this name decide together: each table sees the packet, and one drop is final."""
    unsure: list[str] = []
    for lines in tables:
        parsed = _parsed(lines)
        found = _walk(parsed, chain, frame, unsure, 0)
        policy = parsed.policies.get(chain, "ACCEPT")
        if found is None and policy == "DROP":
            found = Verdict(False, f"iptables {chain}", "policy DROP")
        if found is not None and not found.passes:
            return msgspec.structs.replace(found, unsure=tuple(unsure))
    return Verdict(unsure=tuple(unsure))


def _parsed(lines: Iterable[Sequence[str]]) -> _Tables:
    tables = _Tables({}, {})
    for line in lines:
        match list(line):
            case ["-P", chain, policy, *_]:
                tables.policies[chain] = policy
            case ["-A", chain, *rest]:
                tables.rules.setdefault(chain, []).append(rest)
    return tables


def _walk(tables: _Tables, chain: str, frame: Frame, unsure: list[str], depth: int) -> Verdict | None:
    for rule in tables.rules.get(chain, ()):
        applies, target, leaves = _read(rule, frame)
        text = " ".join(rule)
        if applies is False or not target:
            continue
        if applies is None:
            unsure.append(f"iptables {chain}: {text}")
            continue
        match target:
            case "ACCEPT":
                return Verdict(True, f"iptables {chain}", text)
            case "DROP" | "REJECT":
                return Verdict(False, f"iptables {chain}", text)
            case "RETURN":
                return None
        if target in tables.rules and depth < _DEPTH:
            found = _walk(tables, target, frame, unsure, depth + 1)
            if found is not None or leaves:
                return found
    return None


def _read(rule: Sequence[str], frame: Frame) -> tuple[bool | None, str, bool]:
    """Return whether a rule applies (None: not understood), its target, and whether it is a goto."""
    applies: bool | None = True
    target, leaves, negated = "", False, False
    at = 0
    while at < len(rule):
        option, value = rule[at], "".join(rule[at + 1 : at + 2])
        if option == "!":
            negated, at = True, at + 1
            continue
        at += 1 if value.startswith("-") or value == "!" else 2
        if option in ("-j", "-g"):
            target, leaves = value, option == "-g"
            if target not in ("REJECT", "LOG"):
                continue
            break  # what follows are the target's own options
        if option in _ALONE:
            continue
        found = _holds(option, value, frame)
        if found is not None and negated:
            found = not found
        negated = False
        if found is False:
            applies = False
        elif found is None and applies is True:
            applies = None
    return applies, target, leaves


def _holds(option: str, value: str, frame: Frame) -> bool | None:
    packet = frame.packet
    match option:
        case "-s":
            return prefix(value).holds(Prefix(packet.source, len(packet.source) * 8))
        case "-d":
            return prefix(value).holds(Prefix(packet.target, len(packet.target) * 8))
        case "-i":
            return _device(frame.arriving, value)
        case "-o":
            return _device(frame.leaving, value)
        case "-p":
            return value in {packet.protocol, "all", *_OTHER_NAMES.get(packet.protocol, ())}
        case "--ctstate" | "--state":
            state = "ESTABLISHED" if packet.established else "NEW"
            return state in value.split(",") or (packet.translated and "DNAT" in value.split(","))
        case "--dport":
            first, _, last = value.partition(":")
            return int(first) <= packet.port <= int(last or first) if first.isdigit() else None
    return None


def _device(name: str, pattern: str) -> bool:
    """Compare as iptables does: a trailing ``+`` stands for any ending."""
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern
