"""CNI calls: environment and stdin, parsed once into frozen values.

Faults are found in the order of the reference library: environment, JSON, name, version, then the rest of the
configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from linkspan.core import bandwidth
from linkspan.core.addresses import mac, mac_text, prefix
from linkspan.core.errors import Invalid
from linkspan.core.model import ALIASES, AttachRequest, Bandwidth, Port, checked_ifname, checked_name
from linkspan.core.ports import joined_sources, limited
from linkspan.runtimes.cni.cni_foreign import foreign
from linkspan.runtimes.cni.cni_types import (
    ANNOTATIONS,
    ATTACHMENTS,
    CONFIGURATION,
    DECODE,
    ENVIRONMENT,
    INCOMPATIBLE,
    UNSUPPORTED,
    VERSIONS,
    CniArgs,
    Conf,
    Failure,
    Mapping,
    Result,
    RuntimeConfig,
)
from linkspan.runtimes.go_json import without_null

LIMIT = 1 << 20
LABEL = "linkspan.runtime"
"""Label of CNI's endpoints, with value ``cni``: GC considers no others."""
ANNOTATION = "linkspan/"
"""A pod's annotations that begin with this become labels of its endpoint, but for those two."""
ASKED = (f"{ANNOTATION}ip", f"{ANNOTATION}mac", f"{ANNOTATION}from")
"""Exact addresses, separated by commas, and a MAC: Kubernetes has no other way to ask for them."""

_NEEDS = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": (),
    "STATUS": (),
    "VERSION": (),
}
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_ALIAS = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_.\-]{0,251}[a-zA-Z0-9_])?")


class Environment(msgspec.Struct, frozen=True):
    """The variables, checked for the command's needs; ``namespace_fd`` is -1 for none."""

    command: str
    id: str = ""
    ifname: str = ""
    namespace: str = ""
    namespace_fd: int = -1
    namespace_error: str = ""
    own_namespace: int = 0
    may_be_own: bool = False
    args: str = ""


class Call(msgspec.Struct, frozen=True):
    """A whole call."""

    environment: Environment
    conf: Conf

    @property
    def runtime(self) -> RuntimeConfig:
        """The runtime's part of the configuration."""
        return self.conf.runtime_config or RuntimeConfig()


def environment(block: bytes) -> Environment:
    r"""Parse the block ``KEY=VALUE\0...`` and check the command's needs. Raises Failure."""
    try:
        values = dict(entry.partition("=")[::2] for entry in block.decode().split("\0"))
    except UnicodeDecodeError as error:
        name = block[: error.start].rpartition(b"\0")[2].partition(b"=")[0].decode()
        raise Failure(ENVIRONMENT, f"{name or 'a variable'} is not UTF-8") from error
    command = values.get("CNI_COMMAND", "")
    missing = [name for name in ("CNI_COMMAND", *_NEEDS.get(command, ())) if not values.get(name)]
    if missing:
        message = f"missing in the environment: {' '.join(missing)}"
        raise Failure(ENVIRONMENT, message, "the runtime sets them for each call")
    if command not in _NEEDS:
        raise Failure(ENVIRONMENT, f"unknown CNI_COMMAND {command}", f"use {', '.join(_NEEDS)}")
    container, ifname = values.get("CNI_CONTAINERID", ""), values.get("CNI_IFNAME", "")
    if _NEEDS[command]:
        _of_environment(checked_name, container, "CNI_CONTAINERID")
        _of_environment(checked_ifname, ifname)
    descriptor, own = values.get("LINKSPAN_NETNS_FD", ""), values.get("LINKSPAN_SELF_NETNS", "")
    return Environment(
        command=command,
        id=container,
        ifname=ifname,
        namespace=values.get("CNI_NETNS", ""),
        namespace_fd=int(descriptor) if _is_number(descriptor) else -1,
        namespace_error=values.get("LINKSPAN_NETNS_ERROR", ""),
        own_namespace=int(own) if _is_number(own) else 0,
        may_be_own=values.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true"),
        args=values.get("CNI_ARGS", ""),
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _of_environment(check: Callable[..., str], *values: str) -> None:
    try:
        check(*values)
    except Invalid as error:
        raise Failure(ENVIRONMENT, error.message, error.hint) from error


def spoken(stdin: bytes) -> str:
    """Return the version of the answer: the configuration's, if linkspan supports it."""
    try:
        asked = msgspec.json.decode(stdin, type=dict[str, Any]).get("cniVersion")
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return VERSIONS[-1]
    return asked if asked in VERSIONS else VERSIONS[-1]


def configuration(command: str, stdin: bytes) -> Conf:
    """Parse stdin for a command. Raises Failure."""
    if len(stdin) > LIMIT:
        raise Failure(DECODE, f"the network configuration has {len(stdin)} bytes", "at most 1 MiB is read")
    try:
        raw = _read(command, msgspec.json.decode(stdin))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failure(DECODE, f"the network configuration is not JSON: {error}") from error
    except RecursionError as error:
        raise Failure(DECODE, "the network configuration is nested too deeply") from error
    if not isinstance(raw, dict):
        raise Failure(DECODE, "the network configuration is not a JSON object")
    name, version = raw.get("name"), raw.get("cniVersion", "")
    try:
        name = checked_name(name if isinstance(name, str) else "", "the network configuration's name")
    except Invalid as error:
        raise Failure(CONFIGURATION, error.message, error.hint) from error
    if version not in VERSIONS:
        supported = f"set cniVersion to one of {', '.join(VERSIONS)}"
        raise Failure(INCOMPATIBLE, f"cniVersion {version!r} of network {name} is not supported", supported)
    if version < (since := _SINCE.get(command, "")):  # all four compare correctly as text
        raise Failure(INCOMPATIBLE, f"{command} needs cniVersion {since}; network {name} has {version}")
    if command in ("DEL", "STATUS"):  # the rest may be why an ADD was refused, and its DEL follows
        return Conf(version, name)
    try:
        conf = msgspec.convert(
            raw | {"runtimeConfig": _go_names(raw.get("runtimeConfig")), "foreign": foreign(raw)}, Conf
        )
    except (msgspec.ValidationError, RecursionError) as error:
        raise Failure(CONFIGURATION, f"configuration of network {name}: {error}") from error
    if conf.prev_result:
        _check_previous(conf.prev_result, conf.name)
    return conf


def _read(command: str, raw: object) -> object:
    """Return a decoded configuration without null values; a null GC list is Go's empty list.

    Raises Failure if GC's list has a null in it: some attachment is valid, and nobody knows which.
    """
    if isinstance(raw, dict):
        valid = raw.get(ATTACHMENTS, ())
        if valid is None:
            raw[ATTACHMENTS] = []
        elif command == "GC" and isinstance(valid, list) and None in valid:
            remedy = "give each valid attachment its containerID and ifname; nothing was removed"
            raise Failure(CONFIGURATION, f"an attachment in {ATTACHMENTS} is null", remedy)
        _renumber(raw.get("prevResult"))
    return without_null(raw)


def _renumber(previous: object) -> None:
    """Make the addresses of a prevResult count its interfaces without those that are null."""
    interfaces, ips = (previous.get(key) for key in ("interfaces", "ips")) if isinstance(previous, dict) else (0, 0)
    if not isinstance(interfaces, list) or not isinstance(ips, list) or None not in interfaces:
        return
    there = [place for place, one in enumerate(interfaces) if one is not None]
    for ip in ips:
        if isinstance(ip, dict) and ip.get("interface") in range(len(interfaces)):
            ip["interface"] = there.index(ip["interface"]) if ip["interface"] in there else None


def _go_names(runtime_config: object) -> object:
    """Return a runtimeConfig with each capability's keys in the convention's spelling.

    containerd's go-cni writes HostPort and IngressRate, because Go's JSON ignores case; annotations are the
    user's.
    """
    if not isinstance(runtime_config, dict):
        return runtime_config

    def small(value: object) -> object:
        if isinstance(value, list):
            return [small(item) for item in value]
        return {k[:1].lower() + k[1:]: v for k, v in value.items()} if isinstance(value, dict) else value

    return {k: v if k == ANNOTATIONS else small(v) for k, v in runtime_config.items()}


def _check_previous(result: Result, name: str) -> None:
    """Refuse a prevResult that could not be passed on."""
    if result.cni_version and result.cni_version not in VERSIONS:
        hint = f"the runtime must convert it to one of {', '.join(VERSIONS)}"
        what = f"prevResult of network {name} has cniVersion {result.cni_version}"
        raise Failure(CONFIGURATION, what, hint)
    for ip in result.ips or ():
        if ip.interface is not None and not 0 <= ip.interface < len(result.interfaces or ()):
            hint = "an index counts from 0 in prevResult.interfaces"
            raise Failure(CONFIGURATION, f"prevResult: {ip.address} is on interface {ip.interface}", hint)


def call(block: bytes, stdin: bytes) -> Call:
    """Parse a call. Raises Failure."""
    parsed = environment(block)
    return Call(parsed, configuration(parsed.command, stdin))


def pairs(text: str) -> dict[str, str]:
    """Parse CNI_ARGS; unknown keys are refused unless it says IgnoreUnknown. Raises Failure."""
    found: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Failure(ENVIRONMENT, f"CNI_ARGS: {pair!r} is no pair", "write KEY=VALUE;KEY=VALUE")
        found[key] = value
    lenient = found.pop("IgnoreUnknown", "0").lower()
    if lenient not in ("0", "1", "false", "true"):
        raise Failure(ENVIRONMENT, f"CNI_ARGS has IgnoreUnknown={lenient}", "write IgnoreUnknown=1")
    unknown = [key for key in found if key not in ("IP", "MAC") and not key.startswith("K8S_POD_")]
    if unknown and lenient in ("0", "false"):
        hint = "IgnoreUnknown=1 allows them"
        raise Failure(ENVIRONMENT, f"CNI_ARGS has unknown keys: {' '.join(unknown)}", hint)
    return found


def request(made: Call) -> AttachRequest:
    """Return an ADD's request to the agent: runtimeConfig before args.cni before CNI_ARGS. Raises Failure."""
    runtime, args = made.runtime, pairs(made.environment.args)
    inner = (made.conf.args.cni if made.conf.args else None) or CniArgs()
    if runtime.ip_ranges:
        value = msgspec.json.encode(runtime.ip_ranges).decode()[:200]
        hint = "linkspan gives addresses from the network's own pools; drop the ipRanges capability"
        raise Failure(UNSUPPORTED, f"runtimeConfig.ipRanges {value} is not supported", hint)
    noted_ip, noted_mac, noted_from = (runtime.annotated(key) for key in ASKED)
    ips = runtime.ips or _listed(noted_ip) or inner.ips or _listed(args.get("IP", ""))
    wanted_mac = runtime.mac or noted_mac or inner.mac or args.get("MAC", "")
    try:
        return AttachRequest(
            id=made.environment.id,
            network=made.conf.name,
            ifname=made.environment.ifname,
            name=_pod_name(args),
            ips=tuple(prefix(text).address for text in ips),
            mac=mac_text(mac(wanted_mac)) if wanted_mac else "",
            ports=limited(
                dict.fromkeys(_port(mapping) for mapping in runtime.port_mappings or ()),
                joined_sources(_listed(noted_from)),
            ),
            labels=_labels(runtime, inner, args),
            bandwidth=_bandwidth(runtime.bandwidth),
        )
    except Invalid as error:
        raise Failure(CONFIGURATION, f"network {made.conf.name}: {error.message}", error.hint) from error


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _pod_name(args: dict[str, str]) -> str:
    """Return the pod's name if linkspan accepts it as a name (a pod's may be longer)."""
    try:
        return checked_name(args.get("K8S_POD_NAME", ""), "pod")
    except Invalid:
        return ""


def _port(mapping: Mapping) -> Port:
    protocol = mapping.protocol.lower() or "tcp"
    for number, what in ((mapping.host_port, "hostPort"), (mapping.container_port, "containerPort")):
        if not 0 < number < 65536:
            raise Invalid(f"portMappings has {what} {number}", "a port is 1 to 65535")
    if protocol not in ("tcp", "udp", "sctp"):
        raise Invalid(f"portMappings has protocol {mapping.protocol!r}", "use tcp, udp or sctp")
    host_ip = prefix(mapping.host_ip).address if mapping.host_ip else ""
    return Port(host_ip, mapping.host_port, mapping.container_port, protocol)  # type: ignore[arg-type]


def _bandwidth(asked: Bandwidth | None) -> Bandwidth | None:
    """Check the limits: bits per second, bits of burst. All zero means none."""
    if asked is None or asked == Bandwidth():
        return None
    bandwidth.check(asked)
    return asked


def _labels(runtime: RuntimeConfig, inner: CniArgs, args: dict[str, str]) -> dict[str, str]:
    labels = {label.key: label.value for label in inner.labels or ()}
    for key, value in (runtime.annotations or {}).items():
        if key.startswith(ANNOTATION) and key not in (ANNOTATION, *ASKED):
            labels[key.removeprefix(ANNOTATION)] = value
    for key, label in (("NAMESPACE", "namespace"), ("NAME", "pod"), ("UID", "uid")):
        if given := args.get(f"K8S_POD_{key}"):
            labels[f"k8s.{label}"] = given
    for alias in runtime.aliases or ():
        if not _ALIAS.fullmatch(alias):
            raise Invalid(f"alias {alias!r} is not a name", "use letters, digits, _ . -")
    if runtime.aliases:
        labels[ALIASES] = ",".join(runtime.aliases)
    return {**labels, LABEL: "cni"}
