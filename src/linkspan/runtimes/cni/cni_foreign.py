"""Foreign keys in a CNI configuration: refused, unless the network has that property anyway.

A configuration is often copied from one of the reference plugins bridge and ptp. Each of their keys has its
own reason; an unknown key may be a typing error. An ADD is the first call that can refuse them: a DEL must
not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from linkspan.core.model import Network
from linkspan.runtimes.cni.cni_types import UNSUPPORTED, Conf, Failure, RuntimeConfig

RESERVED = "cni.dev/"
"""Prefix of the specification's own keys, now or later (SPEC.md, section 1)."""
_RUNTIME = "runtimeConfig."


def _keys(kind: type[msgspec.Struct]) -> set[str]:
    """Return a type's keys, as JSON has them."""
    return {field.encode_name for field in msgspec.structs.fields(kind)}


_KNOWN = {*_keys(Conf), "type", "capabilities", "socket"} - {"foreign"}
_CAPABILITIES = _keys(RuntimeConfig)


def foreign(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a decoded configuration that linkspan does not know (``Conf.foreign``)."""
    runtime = raw.get("runtimeConfig")
    inner = runtime.items() if isinstance(runtime, dict) else ()
    found = {key: value for key, value in raw.items() if key not in _KNOWN and not key.startswith(RESERVED)}
    return found | {_RUNTIME + key: value for key, value in inner if key not in _CAPABILITIES}


def refuse(conf: Conf, network: Network) -> None:
    """Raise Failure if a configuration asks for something that the network does not have."""
    kept = _kept(network) if conf.foreign else {}
    for key, value in conf.foreign.items():
        values, hint = kept.get(key, ((), ""))
        if any(type(one) is type(value) and one == value for one in values):
            continue
        if key.startswith(_RUNTIME):
            hint = f"leave the capability out; linkspan has {', '.join(sorted(_CAPABILITIES))}"
        said = msgspec.json.encode(value).decode()[:100]
        raise Failure(
            UNSUPPORTED,
            f"network {network.name}: {key} {said} in the configuration is not supported",
            hint or f"leave {key} out; linkspan knows {', '.join(sorted(_KNOWN))}",
        )


def _kept(network: Network) -> dict[str, tuple[tuple[object, ...], str]]:
    """Return keys of other plugins: the values that this network has anyway, and what to do about others."""
    name, masquerade = network.name, network.masquerade and not network.internal
    return {
        "ipam": (({},), "leave ipam out: linkspan gives addresses from the network's pools"),
        "mtu": (
            (0, network.mtu),
            f"leave mtu out: the network has {network.mtu}, and `linkspan network update {name} --mtu` changes it",
        ),
        "ipMasq": (
            (masquerade,),
            f"leave ipMasq out: network {name} {'has' if masquerade else 'has no'} masquerading, "
            "which `linkspan network create` decides (--no-masquerade, --internal)",
        ),
        "vlan": ((0,), "leave vlan out: linkspan has no VLANs; separate networks isolate containers"),
        "bridge": ((network.bridge,), "leave bridge out: linkspan makes the network's bridge itself"),
        "isGateway": ((True,), "leave isGateway out: a linkspan network always has a gateway"),
        "isDefaultGateway": (
            (not network.internal,),
            f"leave isDefaultGateway out: network {name} is {'' if network.internal else 'not '}internal",
        ),
        "hairpinMode": ((True,), "leave hairpinMode out: a container reaches itself by its published ports"),
        "macspoofchk": ((True,), "leave macspoofchk out: linkspan always checks the MAC from which a container sends"),
        "promiscMode": ((False,), "leave promiscMode out: hairpin is set for each port instead"),
        "forceAddress": ((False,), "leave forceAddress out: the gateway's address is the network's"),
    }
