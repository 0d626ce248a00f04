"""CNI's terms as frozen values: configuration, result and error, with the names of SPEC.md."""

from __future__ import annotations

from typing import Any

import msgspec

from linkspan.core.model import Bandwidth

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")

# SPEC.md, "Error": below 100 are the specification's, from 100 on ours.
INCOMPATIBLE, UNSUPPORTED, UNKNOWN_CONTAINER, ENVIRONMENT, IO, DECODE, CONFIGURATION, NAMESPACE = range(1, 9)
TRY_LATER, NOT_AVAILABLE = 11, 50
INTERNAL, CONFLICT, EXHAUSTED, DENIED, KERNEL, DIFFERS = range(100, 106)


class Failure(Exception):
    """A CNI error: its code, what happened, and in ``details`` what to do."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Mapping(msgspec.Struct, frozen=True, rename="camel"):
    """One of runtimeConfig.portMappings."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = msgspec.field(default="", name="hostIP")


class RuntimeDns(msgspec.Struct, frozen=True):
    """The runtime's resolver settings."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


ANNOTATIONS = "io.kubernetes.cri.pod-annotations"


class RuntimeConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The runtime's values for the capabilities that the configuration declares."""

    port_mappings: tuple[Mapping, ...] | None = None
    ips: tuple[str, ...] | None = None
    mac: str | None = None
    bandwidth: Bandwidth | None = None
    dns: RuntimeDns | None = None
    aliases: tuple[str, ...] | None = None
    ip_ranges: tuple[Any, ...] | None = None
    annotations: dict[str, str] | None = msgspec.field(default=None, name=ANNOTATIONS)

    def annotated(self, key: str) -> str:
        """Return one of the pod's annotations, "" without it."""
        return (self.annotations or {}).get(key, "")


class Label(msgspec.Struct, frozen=True):
    """One of args.cni.labels."""

    key: str
    value: str


class CniArgs(msgspec.Struct, frozen=True):
    """The conventional part of the configuration's ``args``."""

    ips: tuple[str, ...] | None = None
    mac: str | None = None
    labels: tuple[Label, ...] | None = None


class Args(msgspec.Struct, frozen=True):
    """The configuration's ``args``; linkspan ignores what is not CNI's own."""

    cni: CniArgs | None = None


class Dns(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result's resolver settings."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Interface(msgspec.Struct, frozen=True, omit_defaults=True):
    """One interface of a result; ``sandbox`` is empty on the host's side."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = msgspec.field(default="", name="socketPath")
    pci_id: str = msgspec.field(default="", name="pciID")


class Ip(msgspec.Struct, frozen=True, omit_defaults=True):
    """One address of a result; ``interface`` is an index, and 0 is one too."""

    address: str
    version: str = ""
    gateway: str = ""
    interface: int | None = None


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """One route of a result."""

    dst: str
    gw: str = ""
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class Result(msgspec.Struct, frozen=True, rename="camel"):
    """The answer of an ADD, which later calls bring back as prevResult; a null list is Go's for none."""

    cni_version: str = ""
    interfaces: tuple[Interface, ...] | None = None
    ips: tuple[Ip, ...] | None = None
    routes: tuple[Route, ...] | None = None
    dns: Dns | None = None


class Attachment(msgspec.Struct, frozen=True):
    """One of GC's valid attachments."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str


ATTACHMENTS = "cni.dev/valid-attachments"


class Conf(msgspec.Struct, frozen=True, rename="camel"):
    """The network configuration, as far as linkspan knows it.

    ``foreign`` has everything else: keys that linkspan does not know, and values of the runtime for
    capabilities that linkspan does not have, as ``runtimeConfig.NAME``.
    """

    cni_version: str
    name: str
    runtime_config: RuntimeConfig | None = None
    args: Args | None = None
    dns: Dns | None = None
    prev_result: Result | None = None
    attachments: tuple[Attachment, ...] | None = msgspec.field(default=None, name=ATTACHMENTS)
    foreign: dict[str, Any] = {}
