"""Kubernetes' NetworkPolicy (networking.k8s.io/v1) as policies: a namespace is the network with its name.

What it cannot mean here is refused in words: labels of namespaces, because networks have none, and named ports, because
containers do not say which of their ports has which name.
"""

from __future__ import annotations

from typing import get_args

import msgspec
import yaml

from linkspan.core.errors import Invalid
from linkspan.policy.model import (
    Operator,
    Peer,
    Policy,
    Ports,
    Protocol,
    Requirement,
    Rule,
    Selector,
    checked,
)
from linkspan.policy.yaml_nodes import Reader, empty, line

VERSION, KIND = "networking.k8s.io/v1", "NetworkPolicy"
LISTS = ("List", f"{KIND}List")
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
    if (version, kind) != (VERSION, KIND):
        raise reader.wrong(node, f"begins a {kind or '?'} of {version or '?'}", f"linkspan takes {KIND} of {VERSION}")
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


def _rules(reader: Reader, node: yaml.Node | None, ends: str, namespace: str) -> tuple[Rule, ...]:
    found = []
    for one in reader.items(node, "rules") if node is not None else ():
        parts = reader.fields(one, (ends, "ports"), "a rule")
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
    if not there:
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
        if (only.key, only.operator) == (NAMESPACE, "In"):
            return only.values
    raise reader.wrong(
        node,
        "selects namespaces by labels, and a network, which stands for a namespace, has none",
        f"select it by its name: {NAMESPACE}: NETWORK",
    )


def _selector(reader: Reader, node: yaml.Node | None, networks: tuple[str, ...]) -> Selector:
    if node is None:
        return Selector(networks=networks)
    found = reader.fields(node, ("matchLabels", "matchExpressions"), "a selector")
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
    return Ports(kind, first, reader.number(found["endPort"], "endPort") if "endPort" in found else first)
