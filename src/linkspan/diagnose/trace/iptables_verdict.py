"""Verdict of iptables' tables on a packet, from the lines that ``iptables-save`` prints."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from linkspan.core.addresses import Prefix, mac_text, prefix
from linkspan.core.errors import Invalid
from linkspan.diagnose.trace.kernel_view import LOCAL, UNICAST, IptablesTable, KernelView
from linkspan.diagnose.trace.packet import Span, towards, within
from linkspan.diagnose.trace.verdict import AFTER, CHANGE, DROP, PASS, Doubts, Frame, Verdict

PRIORITIES = {"raw": -300, "mangle": -150, "nat": 0, "filter": 0, "security": 50}
"""Priorities of the tables at their hooks (linux/netfilter_ipv4.h); nat's differ by hook."""
NAT = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
_DEPTH = 64
_NAMES = {"icmp": ("icmp", "1"), "ipip": ("4", "ipencap", "ipv4"), "tcp": ("tcp", "6"), "udp": ("udp", "17")}
_NAMES6 = {"icmp": ("ipv6-icmp", "icmpv6", "58")}
"""Iptables' names of our protocols."""
_HARMLESS = frozenset(
    {"LOG", "NFLOG", "TRACE", "AUDIT", "TEE", "TCPMSS", "CHECKSUM", "CLASSIFY", "DSCP", "TOS", "SECMARK", "CONNSECMARK"}
)
"""Targets after which the packet continues unchanged."""
_NOTHING = frozenset({"-m", "--match", "--comment"})
"""Options that decide nothing by themselves."""
_ECHO: Mapping[int, Mapping[bool, tuple[str, ...]]] = {
         4: {False: ("8", "echo-request", "any"), True: ("0", "echo-reply", "any")},
         6: {False: ("128", "echo-request"), True: ("129", "echo-reply")}}  # fmt: skip


def tables(
    lines: Iterable[str], split: Callable[[str], list[str]], *, legacy: bool = False
) -> tuple[IptablesTable, ...]:
    """Return the tables that ``iptables-save`` prints; ``split`` cuts a rule into words."""
    found: list[IptablesTable] = []
    name = ""
    chains: dict[str, list[tuple[str, ...]]] = {}
    policies: dict[str, str] = {}
    for line in lines:
        if line.startswith("*"):
            name, chains, policies = line[1:].strip(), {}, {}
        elif line.startswith(":"):
            chain, policy, *_ = line[1:].split()
            chains.setdefault(chain, [])
            policies |= {chain: policy} if policy != "-" else {}
        elif line.startswith("-A "):
            _, chain, *rest = split(line)
            chains.setdefault(chain, []).append(tuple(rest))
        elif line.startswith("COMMIT"):
            found.append(IptablesTable(name, {c: tuple(rules) for c, rules in chains.items()}, policies, legacy))
    return tuple(found)


_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


def unread(names: Iterable[str]) -> tuple[IptablesTable, ...]:
    """Return tables that exist and cannot be read: at each of their hooks the effect is unknown."""
    rule = (("-j", "UNREADABLE"),)
    chains, policies = dict.fromkeys(_HOOKS, rule), dict.fromkeys(_HOOKS, "ACCEPT")
    return tuple(IptablesTable(name, chains, policies, legacy=True) for name in names)


def evaluate(asked: KernelView, table: IptablesTable, chain: str, frame: Frame) -> Verdict:
    """Evaluate a table's own chain and the chains to which it jumps."""
    if table.name == "raw":
        frame = msgspec.structs.replace(frame, tracked=False)
    return _Evaluation(asked, table, frame).base(chain)


class _Evaluation:
    """One packet's evaluation in one of a table's own chains."""

    def __init__(self, asked: KernelView, table: IptablesTable, frame: Frame) -> None:
        self._asked = asked
        self._table = table
        self._frame = frame
        self._doubts = Doubts()
        command = "iptables" if frame.packet.family == 4 else "ip6tables"
        named = () if table.name == "filter" else ("-t", table.name)
        self._how = " ".join((command, *named))
        self._command = (f"{command}-{'legacy' if table.legacy else 'nft'}", *named)

    def base(self, chain: str) -> Verdict:
        """Return the chain's verdict, or its policy if no rule decides."""
        found = self._walk(chain, 0)
        if not isinstance(found, Verdict):
            policy = self._table.policies.get(chain, "ACCEPT")
            # In table filter linkspan's own rules overrule it.
            undo = (*self._command, "-P", chain, "ACCEPT") if self._table.name != "filter" else ()
            found = Verdict(
                policy != "DROP", f"{self._how} {chain}", f"policy {policy}", policy=chain, removal=undo
            )
        return msgspec.structs.replace(self._doubts.settle(found), packet=self._frame.packet)

    def _walk(self, chain: str, depth: int) -> Verdict | None:
        for rule in self._table.chains.get(chain, ()):
            applies, target, options, leaves = self._read(rule)
            if applies is False or not target:
                continue
            text, where = " ".join(rule), f"{self._how} {chain}"
            if applies is None:
                other = _Evaluation(self._asked, self._table, self._frame)
                outcome = other._target(target, options, where, text, depth)
                self._doubts.adopt(f"{where}: {text}", other._doubts)
                policy = self._table.policies.get(chain, "ACCEPT")  # the result of a RETURN in a chain of its own
                returns = DROP if policy == "DROP" and not depth else PASS
                self._doubts.add(f"{where}: {text}", *other._could(outcome, self._frame, returns))
                continue
            outcome = self._target(target, options, where, text, depth)
            if outcome == "return" or (leaves and outcome is None):
                return None
            if isinstance(outcome, Verdict):
                if outcome.passes or outcome.removal:
                    return outcome
                return msgspec.structs.replace(outcome, removal=(*self._command, "-D", chain, *rule))
        return None

    def _could(self, outcome: Verdict | str | None, before: Frame, returns: str) -> tuple[str, ...]:
        changed = (CHANGE,) if self._frame != before else ()
        if isinstance(outcome, Verdict):
            return (CHANGE if outcome.to or outcome.masked else PASS if outcome.passes else DROP, *changed)
        return (returns, *changed) if outcome == "return" else changed

    def _target(
        self, target: str, options: Mapping[str, list[str]], where: str, text: str, depth: int
    ) -> Verdict | str | None:
        """Return a verdict, "return", or None if the next rule follows."""
        packet = self._frame.packet
        match target:
            case "ACCEPT":
                return Verdict(True, where, text)
            case "DROP" | "REJECT":
                return Verdict(False, where, text)
            case "RETURN":
                return "return"
            case "MASQUERADE":
                return Verdict(True, where, text, masked=True)
            case "SNAT" if (to := _to(options.get("--to-source", []))) is not None:
                return Verdict(True, where, text, masked=True, source=to[0])
            case "DNAT" if (to := _to(options.get("--to-destination", []))) is not None:
                return Verdict(True, where, text, to=to)
            case "MARK" if (mark := _xmark(options.get("--set-xmark", []), packet.mark)) is not None:
                self._set(mark=mark[0])
                return None
            case "CONNMARK" if (mark := _xmark(options.get("--set-xmark", []), packet.ct_mark)) is not None:
                self._set(ct_mark=mark[0])
                return None
            case "CONNMARK" if "--save-mark" in options and len(options) == 1:
                self._set(ct_mark=packet.mark)
                return None
            case "CONNMARK" if "--restore-mark" in options and len(options) == 1:
                self._set(mark=packet.ct_mark)
                return None
            case "TTL" | "HL" if (ttl := _hops(options, packet.ttl)) is not None:
                self._set(ttl=ttl, ttl_by=f"{where}: {text}")
                return None
            case "CT" if "--notrack" in options:
                self._set(ct="untracked")
                return None
            case "NOTRACK":
                self._set(ct="untracked")
                return None
            case "CT":
                return None
            case _ if target in _HARMLESS:
                return None
            case _ if target in self._table.chains and depth < _DEPTH:
                return self._walk(target, depth + 1)
        after = [AFTER] if target == "SYNPROXY" else []
        self._doubts.add(f"{where}: {text}", PASS, DROP, CHANGE, *after)
        return None

    def _set(self, **changes: Any) -> None:
        """Change the packet; the next rule follows."""
        self._frame = msgspec.structs.replace(
            self._frame, packet=msgspec.structs.replace(self._frame.packet, **changes)
        )

    def _read(self, rule: Sequence[str]) -> tuple[bool | None, str, dict[str, list[str]], bool]:
        """Return whether a rule applies (None: unknown), its target with its options, and whether it is a goto."""
        applies: bool | None = True
        for at, (option, values, negated) in enumerate(found := list(_options(rule))):
            if option in ("-j", "-g"):
                return applies, values[0], {o: v for o, v, _ in found[at + 1 :]}, option == "-g"
            if option in _NOTHING:
                continue
            holds = self._holds(option, values, found)
            if holds is not None and negated:
                holds = not holds
            applies = False if holds is False else None if holds is None and applies else applies
        return applies, "", {}, False

    def _holds(
        self, option: str, values: list[str], rule: Sequence[tuple[str, list[str], bool]]
    ) -> bool | None:
        frame, packet = self._frame, self._frame.packet
        value = values[0] if values else ""
        match option:
            case "-s" | "-d":
                address = packet.source if option == "-s" else packet.target
                return prefix(value).holds(Prefix(address, len(address) * 8))
            case "-i" | "-o":
                return _device(frame.arriving if option == "-i" else frame.leaving, value)
            case "-p":
                names = _NAMES6 | {k: v for k, v in _NAMES.items() if k != "icmp"} if packet.family == 6 else _NAMES
                return value in ("all", packet.protocol, *names.get(packet.protocol, ()))
            case "--ctstate" | "--state":
                return self._state(value.split(","))
            case "--ctdir":
                return None if packet.ct else (value == "REPLY") == packet.established
            case "--dport" | "--dports" | "--sport" | "--sports" | "--ports":
                if not packet.has_ports:
                    return False
                there, own = packet.target_ports, packet.source_ports
                ports = {"--d": (there,), "--s": (own,)}.get(option[:3], (there, own))
                tests = [_in_ports(port, value) for port in ports]
                return True if True in tests else None if None in tests else False
            case "--syn":
                return packet.protocol == "tcp" and packet.flags == {"syn"}
            case "--tcp-flags" if len(values) == 2:
                have = {flag.upper() for flag in packet.flags}
                wanted = set() if values[1] == "NONE" else set(values[1].split(","))
                mask = have if values[0] == "ALL" else set(values[0].split(","))
                return packet.protocol == "tcp" and have & mask == wanted
            case "--icmp-type" | "--icmpv6-type":
                return packet.protocol == "icmp" and value in _ECHO[packet.family][packet.established]
            case "--mark":
                connection = any(o == "-m" and v == ["connmark"] for o, v, _ in rule)
                return _marked(packet.ct_mark if connection else packet.mark, value)
            case "--dst-type" | "--src-type":
                return self._kind(packet.target if option == "--dst-type" else packet.source, value)
            case "--mac-source":
                if frame.mac:
                    return mac_text(frame.mac) == value.lower()
                link = self._asked.device(frame.netns, frame.arriving) if frame.arriving else None
                return False if link is not None and len(link.mac) != 6 else None  # it has no MACs
            case "--ttl-eq" | "--ttl-lt" | "--ttl-gt" | "--hl-eq" | "--hl-lt" | "--hl-gt" if value.isdigit():
                by = option.rpartition("-")[2]
                limit = int(value)
                return {"eq": packet.ttl == limit, "lt": packet.ttl < limit, "gt": packet.ttl > limit}[by]
            case "--src-range" | "--dst-range":
                return _in_range(packet.source if option == "--src-range" else packet.target, value)
            case "--uid-owner" | "--gid-owner" | "--socket-exists":
                return None if frame.started else False
        return None

    def _state(self, states: Sequence[str]) -> bool | None:
        packet = self._frame.packet
        if not self._frame.tracked and packet.ct != "?":
            return ("UNTRACKED" if packet.ct == "untracked" else "INVALID") in states
        if packet.translated and not packet.ct and "DNAT" in states:
            return True
        tests = {state.upper() in states for state in packet.states}
        return tests.pop() if len(tests) == 1 else None

    def _kind(self, address: bytes, value: str) -> bool | None:
        kind = self._asked.route(self._frame.netns, towards(address)).kind
        known = {LOCAL: "LOCAL", UNICAST: "UNICAST", 0: "UNICAST"}.get(kind)
        return None if known is None else known in value.split(",")


def _options(rule: Sequence[str]) -> Iterable[tuple[str, list[str], bool]]:
    """Yield a rule's options with their values, and whether a ``!`` precedes them."""
    negated, at = False, 0
    while at < len(rule):
        option, at = rule[at], at + 1
        if option == "!":
            negated = True
            continue
        values: list[str] = []
        while at < len(rule) and rule[at] != "!" and (not rule[at].startswith("-") or _text(option, values)):
            values.append(rule[at])
            at += 1
        yield option, values, negated
        negated = False


def _text(option: str, values: list[str]) -> bool:
    """Return whether the text after an option is its value, whatever it begins with."""
    return option in ("--comment", "--log-prefix", "--nflog-prefix") and not values


def _to(values: list[str]) -> tuple[str, ...] | None:
    """Return the address, and port, of a translation; None for a range."""
    text = values[0] if values else ""
    for address, _, port in ((text, "", ""), text.rpartition(":")):
        try:
            return (str(ipaddress.ip_address(address.strip("[]"))), *([port] if port.isdigit() else []))
        except ValueError:
            continue
    return None


def _xmark(values: list[str], mark: int | None) -> tuple[int | None] | None:
    """Return the result of ``--set-xmark VALUE/MASK`` on a mark (None within: unknown); None if it is not given."""
    if not values:
        return None
    new, _, mask = values[0].partition("/")
    cleared = int(mask, 0) if mask else 0xFFFFFFFF
    if cleared == 0xFFFFFFFF:
        return (int(new, 0),)
    return (None if mark is None else (mark & ~cleared) ^ int(new, 0),)


def _marked(mark: int | None, value: str) -> bool | None:
    wanted, _, mask = value.partition("/")
    return None if mark is None else mark & int(mask or "0xffffffff", 0) == int(wanted, 0)


def _hops(options: Mapping[str, list[str]], ttl: int) -> int | None:
    for option, values in options.items():
        if option.endswith("-set"):
            return int(values[0])
        if option.endswith(("-dec", "-inc")):
            return ttl + int(values[0]) * (1 if option.endswith("-inc") else -1)
    return None


def _in_ports(ports: Span, value: str) -> bool | None:
    tests: list[bool | None] = []
    for part in value.split(","):
        first, _, last = part.partition(":")
        known = (first or "0").isdigit() and (last or "0").isdigit()
        most = last or (65535 if ":" in part else first)
        tests.append(within(ports, int(first or 0), int(most)) if known else None)
    return True if True in tests else None if None in tests else False


def _in_range(address: bytes, value: str) -> bool | None:
    first, _, last = value.partition("-")
    try:
        return prefix(first).packed <= address <= prefix(last or first).packed
    except Invalid:
        return None


def _device(name: str, pattern: str) -> bool:
    """Compare as iptables does: a trailing ``+`` matches any ending."""
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern
