"""WireGuard's states as commands: keys are shown as ``***``, and those that make a key read it from its file.

A device in user space has its socket in a folder of the state folder, in which `wg` is shown it.
"""

from __future__ import annotations

import shlex

from linkspan.core.states.wireguard import AllowedIp, WireguardKey, WireguardPeer, key_id

HIDDEN = "***"


def command(state: WireguardKey | WireguardPeer | AllowedIp) -> str:
    """Return the command that makes the state."""
    device = shlex.quote(state.device)
    match state:
        case WireguardKey(_, public, port):
            return f"wg set {device} listen-port {port} private-key {HIDDEN}  # of {key_id(public)}"
        case WireguardPeer(_, public, endpoint, keepalive, shared_file):
            words = ["wg set", device, "peer", public]
            words += ["endpoint", endpoint] if endpoint else []
            words += ["persistent-keepalive", str(keepalive)] if keepalive else []
            words += ["preshared-key", HIDDEN] if shared_file else []
            return " ".join(words)
        case AllowedIp(_, prefix, public):
            return f"wg set {device} peer {public} allowed-ips +{prefix}"
