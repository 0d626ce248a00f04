"""Policy files: linkspan's own format, read and printed. A file may have several documents of either format."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from linkspan.core.errors import Invalid, NotFound
from linkspan.core.escapes import escaped
from linkspan.policy import kubernetes
from linkspan.policy.model import (
    ORDER,
    TIERS,
    Action,
    Case,
    End,
    Peer,
    Policy,
    Requirement,
    Rule,
    RuleAction,
    Selector,
    Tier,
    checked,
    ports,
)
from linkspan.policy.yaml_nodes import LARGEST, MOST, Reader, line

_ENDINGS = (".yaml", ".yml", ".json")
STDIN = Path("-")
"""The path that means what is typed in, or comes by a pipe."""
_POLICY = ("policy", "tier", "order", "select", "ingress", "egress", "tests")
_MAY_BE_EMPTY = ("ingress", "egress", "tests")
"""A direction without any rule is closed."""
_SELECTOR = ("labels", "expressions", "network", "host", "name")
_OUTSIDE = "outside"
_PEERS = "write outside, cidr: 192.0.2.0/24, dns: [api.example.com], or labels"


class Document(msgspec.Struct, frozen=True):
    """The policies of one or several files, and the cases of their tests.

    ``unread`` are the entries of folders that are no policy files by their names.
    """

    policies: tuple[Policy, ...]
    cases: tuple[Case, ...]
    unread: tuple[str, ...] = ()


def read(paths: Iterable[Path]) -> Document:
    """Read files, all .yaml, .yml and .json files of folders, or the standard input (STDIN).

    Raises NotFound, or Invalid with the file and the line.
    """
    policies: list[Policy] = []
    cases: list[Case] = []
    unread: list[str] = []
    for path in paths:
        for file in _files(path, unread):
            found = parsed(_text(file), "stdin" if file == STDIN else escaped(file.name))
            policies += found.policies
            cases += found.cases
    known: dict[str, Policy] = {}
    for policy in policies:
        if policy.name in known:
            places = " and ".join(f"{one.file} line {one.line}" for one in (known[policy.name], policy))
            raise Invalid(f"policy {policy.name} is there twice: {places}", "give one of them another name")
        known[policy.name] = policy
    return Document(tuple(policies), tuple(cases), tuple(unread))


def _files(path: Path, unread: list[str]) -> Iterator[Path]:
    """Yield a file, or the policy files of a folder by name; add its other entries but hidden ones to ``unread``."""
    if path == STDIN or not path.is_dir():
        yield path
        return
    entries = sorted(one for one in path.iterdir() if not one.name.startswith("."))
    files = [one for one in entries if one.suffix in _ENDINGS and not one.is_dir()]
    unread += (escaped(f"{one}/" if one.is_dir() else str(one)) for one in entries if one not in files)
    if not files:
        raise NotFound(f"folder {path} has no policy", f"name the files *{', *'.join(_ENDINGS)}")
    yield from files


def _text(file: Path) -> str:
    try:
        if file == STDIN:
            return sys.stdin.buffer.read(LARGEST + 1).decode("utf-8")
        with file.open(encoding="utf-8") as opened:
            return opened.read(LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise NotFound(f"policy file {file} cannot be read: {reason}", "name a YAML file or a folder") from error


def parsed(text: str, file: str) -> Document:
    """Return the policies and cases of a file's text. Raises Invalid with the file and the line."""
    reader = Reader(file)
    policies: list[Policy] = []
    cases: list[Case] = []
    for node in reader.documents(text):
        keys = reader.mapping(node, "a policy")
        if "kind" in keys or "apiVersion" in keys:
            policies += kubernetes.policies(reader, node)
            continue
        found = reader.given(node, _POLICY, "a policy", may_be_empty=_MAY_BE_EMPTY)
        if "policy" in found:
            policies.append(_policy(reader, node, found))
        elif found.keys() != {"tests"}:
            raise reader.wrong(node, "begins a policy without a name", "write policy: NAME")
        if "tests" in found:
            cases += (_case(reader, one) for one in reader.items(found["tests"], "tests"))
        if len(cases) > MOST:
            raise reader.wrong(node, f"begins more tests, and a file may have {MOST}", "divide it into several files")
    return Document(tuple(policies), tuple(cases))


def _policy(reader: Reader, node: yaml.Node, found: dict[str, yaml.Node]) -> Policy:
    there = reader.mapping(node, "a policy")
    rules: dict[str, tuple[Rule, ...] | None] = {}
    for direction, ends in (("ingress", "from"), ("egress", "to")):
        items = reader.items(found[direction], direction) if direction in found else []
        given = tuple(_rule(reader, one, ends) for one in items)
        rules[direction] = given if direction in there else None
    if rules["ingress"] is None and rules["egress"] is None:
        raise reader.wrong(node, "begins a policy that says nothing", "give it ingress: or egress:")
    try:
        return checked(
            Policy(
                name=reader.text(found["policy"], "policy"),
                select=_selector(reader, found["select"]) if "select" in found else Selector(),
                ingress=rules["ingress"],
                egress=rules["egress"],
                order=reader.number(found["order"], "order") if "order" in found else ORDER,
                tier=_tier(reader, found["tier"]) if "tier" in found else "normal",
                file=reader.file,
                line=line(node),
            )
        )
    except Invalid as error:
        raise error if error.message.startswith(reader.file) else error.within(reader.file) from error


def _tier(reader: Reader, node: yaml.Node) -> Tier:
    word = reader.text(node, "tier")
    for tier in TIERS:
        if word == tier:
            return tier
    raise reader.wrong(node, f"has {word!r} for a tier", f"write {', '.join(TIERS)}")


def _selector(reader: Reader, node: yaml.Node) -> Selector:
    found = reader.given(node, _SELECTOR, "a selector")
    return Selector(
        labels=reader.pairs(found["labels"], "label") if "labels" in found else {},
        expressions=kubernetes.expressions(reader, found["expressions"]) if "expressions" in found else (),
        networks=reader.texts(found["network"], "network") if "network" in found else (),
        hosts=reader.texts(found["host"], "host") if "host" in found else (),
        names=reader.texts(found["name"], "name") if "name" in found else (),
    )


def _rule(reader: Reader, node: yaml.Node, ends: str) -> Rule:
    direction = "ingress" if ends == "from" else "egress"
    found = reader.given(node, ("action", ends, "ports"), f"a rule of {direction}", elsewhere=kubernetes.ENDS)
    peers = reader.items(found[ends], ends) if ends in found else []
    texts = reader.texts(found["ports"], "ports, like 80/tcp or echo-request/icmp") if "ports" in found else ()
    try:
        parts = tuple(ports(text) for text in texts)
    except Invalid as error:
        raise error.within(f"{reader.file} line {line(found['ports'])}") from error
    return Rule(
        action=_rule_action(reader, found["action"]) if "action" in found else "allow",
        peers=tuple(_peer(reader, one) for one in peers),
        ports=parts,
        line=line(node),
    )


def _rule_action(reader: Reader, node: yaml.Node) -> RuleAction:
    fix = "write allow or deny, or, in a policy with a tier, pass"
    return "pass" if reader.text(node, "action") == "pass" else _action(reader, node, "an action", fix)


def _action(reader: Reader, node: yaml.Node, what: str, fix: str) -> Action:
    match reader.text(node, what):
        case "allow":
            return "allow"
        case "deny":
            return "deny"
    raise reader.wrong(node, f"has {reader.text(node, what)!r} for {what}", fix)


def _peer(reader: Reader, node: yaml.Node) -> Peer:
    if isinstance(node, yaml.ScalarNode):
        if reader.text(node, "a peer") != _OUTSIDE:
            raise reader.wrong(node, f"has the peer {node.value!r}", _PEERS)
        return Peer(outside=True)
    keys = reader.mapping(node, "a peer")
    if "dns" in keys:
        given = reader.given(node, ("dns",), "a peer with DNS names", needs=("dns",))
        return Peer(dns=kubernetes.dns_names(reader, given["dns"]))
    if "cidr" not in keys:
        return Peer(select=_selector(reader, node))
    found = reader.given(node, ("cidr", "except"), "a peer with a CIDR", needs=("cidr",))
    cidr = reader.text(found["cidr"], "cidr")
    return Peer(cidr=cidr, excepts=reader.texts(found["except"], "except") if "except" in found else ())


def _case(reader: Reader, node: yaml.Node) -> Case:
    found = reader.given(node, ("from", "to", "port", "expect"), "a test", needs=("from", "to", "expect"))
    port = reader.text(found["port"], "port") if "port" in found else ""
    if port:
        try:
            one = ports(port)
        except Invalid as error:
            raise error.within(f"{reader.file} line {line(found['port'])}") from error
        if one.first != one.last:
            raise reader.wrong(found["port"], f"has {port!r}: a test needs one port", "write 80/tcp")
    return Case(
        source=_end(reader, found["from"]),
        target=_end(reader, found["to"]),
        port=port,
        expect=_action(reader, found["expect"], "expect", "write allow or deny"),
        line=line(node),
        file=reader.file,
    )


def _end(reader: Reader, node: yaml.Node) -> End:
    if isinstance(node, yaml.ScalarNode):
        return End(name=reader.text(node, "an end"))
    found = reader.given(node, ("network", "labels"), "an end of a test", needs=("network",))
    labels = reader.pairs(found["labels"], "label") if "labels" in found else {}
    return End(network=reader.text(found["network"], "network"), labels=labels)


def printed(policy: Policy) -> str:
    """Return a policy as a file would have it; to read it again gives the same policy, but for lines."""
    found: dict[str, Any] = {"policy": policy.name}
    if policy.tier != "normal":
        found["tier"] = policy.tier
    if policy.order != ORDER:
        found["order"] = policy.order
    if policy.select != Selector():
        found["select"] = _plain_selector(policy.select)
    for direction, rules, ends in (("ingress", policy.ingress, "from"), ("egress", policy.egress, "to")):
        if rules is not None:
            found[direction] = [_plain_rule(rule, ends) for rule in rules]
    text: str = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=100)
    return text


def _plain_rule(rule: Rule, ends: str) -> dict[str, Any]:
    found: dict[str, Any] = {} if rule.action == "allow" else {"action": rule.action}
    if rule.peers:
        found[ends] = [_plain_peer(peer) for peer in rule.peers]
    if rule.ports:
        found["ports"] = [str(one) for one in rule.ports]
    return found


def _plain_peer(peer: Peer) -> Any:
    if peer.outside:
        return _OUTSIDE
    if peer.select is not None:
        return _plain_selector(peer.select)
    if peer.dns:
        return {"dns": list(peer.dns)}
    return {"cidr": peer.cidr, "except": list(peer.excepts)} if peer.excepts else {"cidr": peer.cidr}


def _plain_selector(selector: Selector) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, words in (("network", selector.networks), ("host", selector.hosts), ("name", selector.names)):
        if words:
            found[key] = words[0] if len(words) == 1 else list(words)
    if selector.labels:
        found["labels"] = dict(selector.labels)
    if selector.expressions:
        found["expressions"] = [_plain_requirement(one) for one in selector.expressions]
    return found


def _plain_requirement(one: Requirement) -> dict[str, Any]:
    found: dict[str, Any] = {"key": one.key, "operator": one.operator}
    return found | ({"values": list(one.values)} if one.values else {})
