"""Answers to CNI calls: a result in the requested version, or an error object."""

from __future__ import annotations

from itertools import zip_longest

import msgspec
from msgspec.structs import replace

from linkspan.backends.bridge import host_mac
from linkspan.core.addresses import mac_text, prefix
from linkspan.core.errors import (
    Conflict,
    Denied,
    Exhausted,
    Invalid,
    KernelError,
    LinkspanError,
    NotFound,
    Unavailable,
)
from linkspan.core.model import Endpoint, Network
from linkspan.runtimes.cni.cni_types import (
    CONFIGURATION,
    CONFLICT,
    DENIED,
    EXHAUSTED,
    INTERNAL,
    KERNEL,
    NAMESPACE,
    TRY_LATER,
    VERSIONS,
    Conf,
    Dns,
    Failure,
    Interface,
    Ip,
    Result,
    Route,
    RuntimeDns,
)

_WHOLE = {4: "0.0.0.0/0", 6: "::/0"}
_CODES: tuple[tuple[type[LinkspanError], int], ...] = (
    (Invalid, CONFIGURATION),
    (NotFound, NAMESPACE),  # networks and endpoints are looked up before, so this is the namespace
    (Conflict, CONFLICT),
    (Exhausted, EXHAUSTED),
    (Denied, DENIED),
    (Unavailable, TRY_LATER),
    (KernelError, KERNEL),
)


def version() -> bytes:
    """Return the answer to VERSION."""
    return msgspec.json.encode({"cniVersion": VERSIONS[-1], "supportedVersions": VERSIONS})


def failure(error: LinkspanError) -> Failure:
    """Turn one of our errors into a CNI error."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), INTERNAL)
    return Failure(code, error.message, error.hint)


def error_object(failed: Failure, spoken: str) -> bytes:
    """Return a CNI error object in the call's version."""
    fields = {"cniVersion": spoken, "code": failed.code, "msg": failed.message, "details": failed.details}
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:  # a file name that is not UTF-8 and came in by an OS error
        return msgspec.json.encode(
            {k: v.encode(errors="replace").decode() if isinstance(v, str) else v for k, v in fields.items()}
        )


def result(
    conf: Conf, endpoint: Endpoint, network: Network, sandbox: str, nameservers: tuple[str, ...] = ()
) -> bytes:
    """Return the result of an ADD: prevResult's, and after it the new attachment."""
    previous = conf.prev_result or Result()
    interfaces = list(previous.interfaces or ())
    if endpoint.host_ifname:
        interfaces.append(
            Interface(endpoint.host_ifname, mac_text(host_mac(network, endpoint.host_ifname)), endpoint.mtu)
        )
    interfaces.append(Interface(endpoint.ifname, endpoint.mac, endpoint.mtu, sandbox))
    index = len(interfaces) - 1
    ips: list[Ip] = []
    defaults: dict[str, str] = {}
    for address, text in zip_longest(endpoint.addresses, endpoint.gateways[: len(endpoint.addresses)]):
        gateway = prefix(text).address if text else ""
        ips.append(Ip(address, gateway=gateway, interface=index))
        if gateway and not network.internal:
            defaults.setdefault(_WHOLE[prefix(text).family], gateway)
    runtime = conf.runtime_config.dns if conf.runtime_config else None
    added = Result(
        conf.cni_version,
        tuple(interfaces),
        (*(previous.ips or ()), *ips),
        (*(previous.routes or ()), *map(Route, defaults, defaults.values())),
        dns(Dns(nameservers=nameservers), previous.dns, conf.dns, runtime),
    )
    return msgspec.json.encode(in_version(added, conf.cni_version))


def dns(*layers: Dns | RuntimeDns | None) -> Dns:
    """Merge resolver settings: a later value replaces an earlier one."""
    merged = Dns()
    for layer in filter(None, layers):
        if isinstance(layer, RuntimeDns):
            layer = Dns(layer.servers, "", layer.searches, layer.options)
        merged = replace(merged, **{k: v for k, v in msgspec.structs.asdict(layer).items() if v})
    return merged


def in_version(full: Result, asked: str) -> Result:
    """Return the result with the fields of this version (all four compare correctly as text)."""
    interfaces, ips, routes = full.interfaces or (), full.ips or (), full.routes or ()
    if asked < "1.0.0":
        ips = tuple(replace(ip, version="6" if ":" in ip.address else "4") for ip in ips)
    else:
        ips = tuple(replace(ip, version="") for ip in ips)
    if asked < "1.1.0":
        interfaces = tuple(Interface(i.name, i.mac, sandbox=i.sandbox) for i in interfaces)
        routes = tuple(Route(route.dst, route.gw) for route in routes)
    return Result(asked, interfaces, ips, routes, full.dns or Dns())


def differences(previous: Result, endpoint: Endpoint) -> list[str]:
    """Return what the result of an endpoint's plugin chain lacks of the endpoint.

    A later plugin may add interfaces, addresses and routes, and change MAC and MTU; it may not remove
    anything.
    """
    found = []
    index = interface_index(previous, endpoint.ifname)
    if index is None:
        found.append(f"prevResult has no interface {endpoint.ifname} in a sandbox")
    listed = {ip.address for ip in previous.ips or () if ip.interface in (None, index)}
    found += [f"prevResult has no address {text}" for text in endpoint.addresses if text not in listed]
    return found


def interface_index(found: Result, ifname: str) -> int | None:
    """Return the position of the container's interface in a result."""
    for index, interface in enumerate(found.interfaces or ()):
        if interface.name == ifname and interface.sandbox:
            return index
    return None


def shown(previous: Result, endpoint: Endpoint) -> Interface:
    """Return the container's interface in a result; without a MAC or MTU if the result has none."""
    index = interface_index(previous, endpoint.ifname)
    return Interface(endpoint.ifname) if index is None else (previous.interfaces or ())[index]
