"""Needs that a lesson may have of the machine, each tried in the sandbox before the lesson begins."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from linkspan.learn.sandbox import Sandbox


class Need(msgspec.Struct, frozen=True):
    """A command that works if the machine has it, what it is called in any language, and how to get it.

    ``module`` is the alias by which the kernel itself loads the module that it needs, '' if it loads none.
    """

    run: str
    what: str
    fix: str
    module: str = ""

    @property
    def look(self) -> str:
        """Return a command that works if the machine has it, or can load it, and that loads no module then."""
        return f"modprobe -qn {self.module} 2>&1 || {{ {self.run}; }}" if self.module else self.run


_LINK = "ip link add lsneed0 type {kind} {options} && ip link delete lsneed0"
_SA = "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x7fffffff"
_ESP = (
    f"ip xfrm state add {_SA} mode tunnel aead 'rfc4106(gcm(aes))' 0x{'00' * 20} 128 && ip xfrm state delete {_SA}"
)


def _program(name: str, package: str) -> Need:
    return Need(f"command -v {name}", f"`{name}`", f"apt install {package}")


def _link(kind: str, options: str = "") -> Need:
    run, fix = _LINK.format(kind=kind, options=options), f"sudo modprobe {kind}, if this kernel has the module"
    return Need(run, f"`ip link add type {kind}`", fix, f"rtnl-link-{kind}")


NEEDS = {
    "ip": _program("ip", "iproute2"),
    "bridge-tool": _program("bridge", "iproute2"),
    "ping": _program("ping", "iputils-ping"),
    "bash": _program("bash", "bash"),
    "sysctl": _program("sysctl", "procps"),
    "nft": _program("nft", "nftables"),
    "tcpdump": _program("tcpdump", "tcpdump"),
    "python3": _program("python3", "python3"),
    "curl": _program("curl", "curl"),
    "dnsmasq": _program("dnsmasq", "dnsmasq-base"),
    "udhcpc": Need("busybox --list | grep -x udhcpc", "`busybox udhcpc`", "apt install busybox"),
    "bird": _program("birdc", "bird2"),
    "wg": _program("wg", "wireguard-tools"),
    "openvswitch": Need(
        "command -v ovs-vswitchd ovs-vsctl ovs-ofctl ovsdb-server && true <>/dev/net/tun",
        "`ovs-vswitchd`, /dev/net/tun",
        "apt install openvswitch-switch; sudo linkspan learn",
    ),
    "bridge": _link("bridge"),
    "veth": _link("veth", "peer name lsneed1"),
    "vxlan": _link("vxlan", "id 1 dstport 4789"),
    "ipip": _link("ipip", "local 192.0.2.1 remote 192.0.2.2"),
    "wireguard": _link("wireguard"),
    "esp": Need(
        _ESP,
        "`ip xfrm state add ... proto esp`",
        "sudo modprobe esp4, if this kernel has the module",
        "xfrm-type-2-50",
    ),
    "iptables": Need("iptables -S", "`iptables`", "apt install iptables; sudo modprobe ip_tables"),
    "iptables-nat": Need("iptables -t nat -S", "`iptables -t nat`", "sudo modprobe iptable_nat"),
    "br_netfilter": Need(
        "test -e /proc/sys/net/bridge/bridge-nf-call-iptables",
        "br_netfilter",
        "sudo modprobe br_netfilter (then iptables sees the packets of every bridge of this machine)",
    ),
}
"""By the word in a lesson's ``needs``."""


def lacking(sandbox: Sandbox, needs: Sequence[str]) -> list[Need]:
    """Return the needs that the sandbox does not meet."""
    wanted = [NEEDS[name] for name in needs]
    results = sandbox.results([one.run for one in wanted])
    return [one for one, (code, _) in zip(wanted, results, strict=True) if code]


def unmet(sandbox: Sandbox, needs: Sequence[str]) -> list[str]:
    """Return which of these needs the sandbox does not meet, without loading the module of a tunnel.

    A module stays in the machine's kernel, and some add a link to every namespace. So only a lesson loads one.
    """
    results = sandbox.results([NEEDS[name].look for name in needs])
    return [name for name, (code, _) in zip(needs, results, strict=True) if code]
