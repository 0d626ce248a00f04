"""Containers of a lab: namespaces attached to networks by the agent's API, like a runtime's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from linkspan.core.errors import Conflict, LinkspanError, Unavailable
from linkspan.core.model import checked_name
from linkspan.kernel.io.namespaces import open_namespace
from linkspan.lab import commands
from linkspan.lab.agents import client
from linkspan.lab.record import Attachment, Container, Lab

WORKERS = 4


def make(lab: Lab, containers: Sequence[Container]) -> None:
    """Make namespaces, and attach each as its record says; at once on all hosts. Raises the first error."""
    for container in containers:
        commands.add(container.namespace)
    by_host: dict[str, list[Container]] = {}
    for container in containers:
        by_host.setdefault(container.host, []).append(container)
    with ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(_attach_all, lab, group) for group in by_host.values()]:
            done.result()
    lab.save()


def _attach_all(lab: Lab, containers: Sequence[Container]) -> None:
    for container in containers:
        for attachment in container.attachments:
            attach(lab, container, attachment)


def attach(lab: Lab, container: Container, attachment: Attachment) -> dict[str, Any]:
    """Attach a container's namespace, and note the result in its record."""
    path = f"/run/netns/{container.namespace}"
    fd = open_namespace(path)
    body = {
        "id": container.name,
        "name": container.name,
        "network": attachment.network,
        "ifname": attachment.ifname,
        "ips": attachment.ip,
        "labels": attachment.labels,
        "namespace_fd": fd,
        "namespace_path": path,
    }
    try:
        endpoint: dict[str, Any] = client(lab, container.host).call("POST", "/v1/attach", body)
    except LinkspanError as error:
        raise error.within(f"host {container.host}") from error
    finally:
        os.close(fd)
    attachment.ifname, attachment.mtu = endpoint["ifname"], endpoint["mtu"]
    attachment.addresses, attachment.gateways = endpoint["addresses"], endpoint["gateways"]
    return endpoint


def add(
    lab: Lab,
    host: str,
    name: str,
    network: str,
    ips: list[str],
    ifname: str = "",
    labels: Mapping[str, str] = {},
) -> dict[str, Any]:
    """Add a container, or one more interface to an existing one, and return its endpoint."""
    checked_name(name, "container")
    lab.host(host)
    known = next((one for one in lab.containers if one.name == name), None)
    if name in {one.name for one in lab.hosts}:
        raise Conflict(f"{name} is a host of lab {lab.name}", "give the container another name")
    if known and known.host != host:
        raise Conflict(
            f"container {name} is on host {known.host}", f"linkspan lab detach {name} --lab {lab.name}"
        )
    attachment = Attachment(network, ips, ifname, dict(labels))
    container = known or Container(name, host, f"{lab.name}-{name}")
    container.attachments.append(attachment)
    if known is None:
        if commands.there(container.namespace):
            raise Conflict(f"a network namespace {container.namespace} exists already", "use another name")
        lab.containers.append(container)
    lab.save()
    try:
        if known is None:
            commands.add(container.namespace)
        endpoint = attach(lab, container, attachment)
    except LinkspanError:
        container.attachments.remove(attachment)
        if known is None:
            commands.delete(container.namespace)
            lab.containers.remove(container)
        lab.save()
        raise
    lab.save()
    return endpoint


def remove(lab: Lab, name: str) -> int:
    """Detach a container and remove its namespace; return how many interfaces it had."""
    container = lab.container(name)
    try:
        gone = client(lab, container.host).call("POST", "/v1/detach", {"id": name, "ifname": "", "network": ""})
    except LinkspanError as error:
        raise error.within(f"host {container.host}") from error
    commands.delete(container.namespace)
    lab.containers.remove(container)
    lab.save()
    return int(gone["detached"])


def mtus(lab: Lab) -> dict[str, int]:
    """Return the MTU for each address, from the agents, or the last known one if an agent does not answer."""
    found = {a: one.mtu for c in lab.containers for one in c.attachments for a in one.addresses}
    for host in lab.hosts:
        try:
            endpoints = client(lab, host.name).call("GET", "/v1/endpoints?network=")
        except Unavailable:
            continue
        found |= {
            address: one["path_mtu"] or one["mtu"]
            for one in endpoints
            for address in one["addresses"]
            if address in found
        }
    return found
