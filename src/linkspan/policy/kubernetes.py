"""Kubernetes' NetworkPolicy and ClusterNetworkPolicy as policies: a namespace is the network with its name.

What it cannot mean here is refused in words: labels of namespaces, because networks have none, and named ports, because
containers do not say which of their ports has which name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, get_args

import msgspec
import yaml

from linkspan.core.errors import Invalid
from linkspan.policy import names
from linkspan.policy.model import (
    Operator,
    Peer,
    Policy,
    Ports,
    Protocol,
    Requirement,
    Rule,
    RuleAction,
    Selector,
    Tier,
    checked,
)
from linkspan.policy.yaml_nodes import Reader, empty, line

VERSION, KIND = "networking.k8s.io/v1", "NetworkPolicy"
CLUSTER_VERSIONS = ("policy.networking.k8s.io/v1alpha2", "policy.networking.k8s.io/v1beta1")
CLUSTER_KIND = f"Cluster{KIND}"
LISTS = ("List", f"{KIND}List", f"{CLUSTER_KIND}List")
W = TypeVar("W")
_SELECTOR = ("matchLabels", "matchExpressions")
ENDS = {"from": "from belongs to ingress, and egress has to", "to": "to belongs to egress, and ingress has from"}
"""What to write instead of the other direction's key."""
NAMESPACE = "kubernetes.io/metadata.name"
"""The label that Kubernetes gives each namespace: its name."""


def policies(reader: Reader, node: yaml.Node) -> list[Policy]:
    """Return the policies of a document, which may be a list of them. Raises Invalid with the line and the reason."""
    found = reader.mapping(node, "an object of Kubernetes")
    kind = reader.text(found["kind"], "kind") if "kind" in found else ""
    if kind in LISTS:
        items = reader.items(found["items"], "items") if "items" in found else []
        return [policy for one in items for policy in policies(reader, one)]
    version = reader.text(found["apiVersion"], "apiVersion") if "apiVersion" in found else ""
    if kind == CLUSTER_KIND and version in CLUSTER_VERSIONS:
        return [_cluster_policy(reader, node)]
    if (version, kind) != (VERSION, KIND):
        fix = f"linkspan takes {KIND} of {VERSION}, and {CLUSTER_KIND} of {' and '.join(CLUSTER_VERSIONS)}"
        raise reader.wrong(node, f"begins an object of kind {kind or '?'} of {version or '?'}", fix)
    found = reader.fields(node, ("apiVersion", "kind", "metadata", "spec", "status"), f"a {KIND}")
    meta = reader.mapping(found["metadata"], "metadata") if "metadata" in found else {}
    if "name" not in meta:
        raise reader.wrong(node, f"begins a {KIND} without a name", "give it metadata.name")
    namespace = reader.text(meta["namespace"], "namespace") if not empty(meta.get("namespace")) else "default"
    if "spec" not in found:
        raise reader.wrong(node, f"begins a {KIND} without a spec")
    spec = reader.fields(found["spec"], ("podSelector", "policyTypes", "ingress", "egress"), "a spec")
    given = reader.texts(spec["policyTypes"], "policyTypes") if "policyTypes" in spec else ()
    # Without policyTypes an empty list of egress closes nothing, as Kubernetes' defaults have it.
    sends = not empty(spec.get("egress")) and bool(reader.items(spec["egress"], "egress"))
    types = given or ("Ingress", *(("Egress",) if sends else ()))
    for word in types:
        if word not in ("Ingress", "Egress"):
            raise reader.wrong(spec["policyTypes"], f"has the policy type {word!r}", "use Ingress and Egress")
    try:
        return [
            checked(
                Policy(
                    name=f"{namespace}.{reader.text(meta['name'], 'name')}",
                    select=_selector(reader, spec.get("podSelector"), (namespace,)),
                    ingress=_rules(reader, spec.get("ingress"), "from", namespace) if "Ingress" in types else None,
                    egress=_rules(reader, spec.get("egress"), "to", namespace) if "Egress" in types else None,
                    file=reader.file,
                    line=line(node),
                )
            )
        ]
    except Invalid as error:
        raise error if error.message.startswith(reader.file) else error.within(reader.file) from error


_ACTIONS: Mapping[str, RuleAction] = {"Accept": "allow", "Deny": "deny", "Pass": "pass"}
_TIERS: Mapping[str, Tier] = {"Admin": "admin", "Baseline": "baseline"}


def _cluster_policy(reader: Reader, node: yaml.Node) -> Policy:
    """Return a ClusterNetworkPolicy: a policy of the tier above or below, with the name that it has."""
    found = reader.fields(node, ("apiVersion", "kind", "metadata", "spec", "status"), f"a {CLUSTER_KIND}")
    meta = reader.mapping(found["metadata"], "metadata") if "metadata" in found else {}
    if "name" not in meta or "spec" not in found:
        raise reader.wrong(node, f"begins a {CLUSTER_KIND} without a name or a spec", "give it metadata.name and spec")
    spec = reader.fields(found["spec"], ("tier", "priority", "subject", "ingress", "egress"), "a spec")
    for key in ("tier", "priority", "subject"):
        if key not in spec:
            raise reader.wrong(found["spec"], f"begins a spec without {key}")
    peer = _cluster_peer(reader, spec["subject"])
    if peer.select is None:
        raise reader.wrong(spec["subject"], "begins a subject that is no pods", "give it namespaces or pods")
    try:
        return checked(
            Policy(
                name=reader.text(meta["name"], "name"),
                tier=_word(reader, spec["tier"], "tier", _TIERS),
                order=reader.number(spec["priority"], "priority"),
                select=peer.select,
                ingress=_cluster_rules(reader, spec.get("ingress"), "from"),
                egress=_cluster_rules(reader, spec.get("egress"), "to"),
                file=reader.file,
                line=line(node),
            )
        )
    except Invalid as error:
        raise error if error.message.startswith(reader.file) else error.within(reader.file) from error


def _word(reader: Reader, node: yaml.Node, what: str, known: Mapping[str, W]) -> W:
    word = reader.text(node, what)
    if word not in known:
        raise reader.wrong(node, f"has the {what} {word!r}", f"use {', '.join(known)}")
    return known[word]


def _cluster_rules(reader: Reader, node: yaml.Node | None, ends: str) -> tuple[Rule, ...] | None:
    found = []
    for one in reader.items(node, "rules") if node is not None else ():
        keys = ("name", "action", ends, "protocols")
        parts = reader.given(one, keys, "a rule", needs=("action", ends), elsewhere=ENDS)
        protocols = reader.items(parts["protocols"], "protocols") if "protocols" in parts else []
        peers = reader.items(parts[ends], ends)
        found.append(
            Rule(
                action=_word(reader, parts["action"], "action", _ACTIONS),
                peers=tuple(peer for each in peers for peer in _cluster_peers(reader, each, ends)),
                ports=tuple(_protocol(reader, each) for each in protocols),
                line=line(one),
            )
        )
    return tuple(found) or None


def _cluster_peers(reader: Reader, node: yaml.Node, ends: str) -> list[Peer]:
    """Return what a peer means; several addresses are several peers."""
    keys = reader.mapping(node, "a peer")
    if "networks" in keys and ends == "to":
        found = reader.given(node, ("networks",), "a peer with networks", needs=("networks",))
        return [Peer(cidr=cidr) for cidr in reader.texts(found["networks"], "networks")]
    if "domainNames" in keys and ends == "to":
        found = reader.given(node, ("domainNames",), "a peer with domainNames", needs=("domainNames",))
        return [Peer(dns=dns_names(reader, found["domainNames"]))]
    return [_cluster_peer(reader, node)]


def _cluster_peer(reader: Reader, node: yaml.Node) -> Peer:
    there = reader.mapping(node, "a peer")
    for key, why in _UNMEANT.items():
        if key in there:
            raise reader.wrong(node, f"has {key}, {why}", "use namespaces, pods, or networks")
    found = reader.given(node, ("namespaces", "pods"), "a peer")
    if len(found) != 1:
        raise reader.wrong(node, "has a peer that is not one of namespaces and pods", "make each a peer of its own")
    if "namespaces" in found:
        return Peer(select=Selector(networks=_networks(reader, _written(reader, found["namespaces"]))))
    keys = ("namespaceSelector", "podSelector")
    pods = reader.given(found["pods"], keys, "pods", needs=keys)
    networks = _networks(reader, _written(reader, pods["namespaceSelector"]))
    return Peer(select=_selector(reader, _written(reader, pods["podSelector"]), networks))


def _written(reader: Reader, node: yaml.Node) -> yaml.Node:
    """Return a selector. Raises Invalid for a key without a value, which would mean all."""
    reader.given(node, _SELECTOR, "a selector")
    return node


_UNMEANT = {
    "nodes": "and hosts have no labels here",
    "domainNames": "and a client's address does not say by which name it is called",
}


def _protocol(reader: Reader, node: yaml.Node) -> Ports:
    found = reader.given(node, ("tcp", "udp", "sctp", "destinationNamedPort"), "a protocol")
    if "destinationNamedPort" in found:
        raise reader.wrong(node, "has a named port, and containers give their ports no names", "write the number")
    if len(found) != 1:
        raise reader.wrong(node, "has not one protocol", "make each of tcp, udp and sctp a protocol of its own")
    (protocol, of) = next(iter(found.items()))
    kind = msgspec.convert(protocol, Protocol)
    inner = reader.given(of, ("destinationPort",), protocol)
    if not inner:
        return Ports(kind)
    port = reader.given(inner["destinationPort"], ("number", "range"), "destinationPort")
    if len(port) != 1:
        raise reader.wrong(of, "has not one of number and range", "give one of them")
    if "number" in port:
        first = reader.number(port["number"], "number")
        return _span(reader, of, kind, first, first)
    span = reader.given(port["range"], ("start", "end"), "a range", needs=("start", "end"))
    return _span(reader, of, kind, reader.number(span["start"], "start"), reader.number(span["end"], "end"))


def _rules(reader: Reader, node: yaml.Node | None, ends: str, namespace: str) -> tuple[Rule, ...]:
    found = []
    for one in reader.items(node, "rules") if node is not None else ():
        parts = reader.fields(one, (ends, "ports"), "a rule", elsewhere=ENDS)
        peers = reader.items(parts[ends], ends) if ends in parts else []
        ports = reader.items(parts["ports"], "ports") if "ports" in parts else []
        found.append(
            Rule(
                peers=tuple(_peer(reader, peer, namespace) for peer in peers),
                ports=tuple(_port(reader, port) for port in ports),
                line=line(one),
            )
        )
    return tuple(found)


def _peer(reader: Reader, node: yaml.Node, namespace: str) -> Peer:
    there = reader.mapping(node, "a peer")
    found = reader.fields(node, ("podSelector", "namespaceSelector", "ipBlock"), "a peer")
    if "ipBlock" in found:
        if len(there) > 1:
            raise reader.wrong(node, "has an ipBlock beside a selector", "make them two peers")
        block = reader.fields(found["ipBlock"], ("cidr", "except"), "an ipBlock")
        if "cidr" not in block:
            raise reader.wrong(node, "has an ipBlock without a cidr")
        excepts = reader.texts(block["except"], "except") if "except" in block else ()
        return Peer(cidr=reader.text(block["cidr"], "cidr"), excepts=excepts)
    if not found:
        raise reader.wrong(node, "has a peer that says nothing", "give it a podSelector")
    networks: tuple[str, ...] = (namespace,)
    if "namespaceSelector" in found:
        networks = _networks(reader, found["namespaceSelector"])
    return Peer(select=_selector(reader, found.get("podSelector"), networks))


def _networks(reader: Reader, node: yaml.Node) -> tuple[str, ...]:
    """Return the networks that a namespaceSelector means; () means all."""
    selector = _selector(reader, node, ())
    if selector == Selector():
        return ()
    if selector.labels.keys() == {NAMESPACE} and not selector.expressions:
        return (selector.labels[NAMESPACE],)
    if not selector.labels and len(selector.expressions) == 1:
        only = selector.expressions[0]
        if (only.key, only.operator) == (NAMESPACE, "In") and only.values:  # () would mean all
            return only.values
    raise reader.wrong(
        node,
        "selects namespaces by labels, and a network, which stands for a namespace, has none",
        f"select it by its name: {NAMESPACE}: NETWORK",
    )


def _selector(reader: Reader, node: yaml.Node | None, networks: tuple[str, ...]) -> Selector:
    if node is None:
        return Selector(networks=networks)
    found = reader.fields(node, _SELECTOR, "a selector")
    return Selector(
        labels=reader.pairs(found["matchLabels"], "label") if "matchLabels" in found else {},
        expressions=expressions(reader, found["matchExpressions"]) if "matchExpressions" in found else (),
        networks=networks,
    )


def expressions(reader: Reader, node: yaml.Node) -> tuple[Requirement, ...]:
    """Return a list of conditions on labels."""
    made = []
    for one in reader.items(node, "expressions"):
        found = reader.fields(one, ("key", "operator", "values"), "an expression")
        for key in ("key", "operator"):
            if key not in found:
                raise reader.wrong(one, f"begins an expression without {key}")
        operator = reader.text(found["operator"], "operator")
        if operator not in get_args(Operator):
            raise reader.wrong(one, f"has the operator {operator!r}", f"use {', '.join(get_args(Operator))}")
        values = reader.texts(found["values"], "values") if "values" in found else ()
        key = reader.text(found["key"], "key")
        made.append(Requirement(key, msgspec.convert(operator, Operator), values))
    return tuple(made)


def dns_names(reader: Reader, node: yaml.Node) -> tuple[str, ...]:
    """Return the DNS names of a peer, as DNS has them."""
    texts = reader.texts(node, "DNS names")
    try:
        return tuple(dict.fromkeys(map(names.name, texts)))
    except Invalid as error:
        raise reader.wrong(node, f"has a name that means nobody: {error.message}", error.hint) from error


def _port(reader: Reader, node: yaml.Node) -> Ports:
    found = reader.fields(node, ("protocol", "port", "endPort"), "a port")
    protocol = reader.text(found["protocol"], "protocol").lower() if "protocol" in found else "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise reader.wrong(node, f"has the protocol {protocol!r}", "use TCP, UDP or SCTP")
    kind = msgspec.convert(protocol, Protocol)
    if "port" not in found:
        if "endPort" in found:
            raise reader.wrong(node, "has an endPort without a port")
        return Ports(kind)
    word = reader.text(found["port"], "port")
    if not word.isdigit():
        raise reader.wrong(
            node, f"has the named port {word!r}, and containers give their ports no names", "write the number"
        )
    first = reader.number(found["port"], "port")
    return _span(reader, node, kind, first, reader.number(found["endPort"], "endPort") if "endPort" in found else first)


def _span(reader: Reader, node: yaml.Node, protocol: Protocol, first: int, last: int) -> Ports:
    """Return ports. Two zeros, which would mean the whole protocol, are refused as all others that are none."""
    if not 1 <= first <= last <= 65535:
        raise reader.wrong(node, f"has the ports {first} to {last}", "ports are 1 to 65535, the lower one first")
    return Ports(protocol, first, last)
