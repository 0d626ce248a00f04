"""``doctor``: is this machine fit for containers' networks, and what is in the way. It changes nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from linkspan.core.errors import LinkspanError
from linkspan.diagnose.doctor import (
    dns_checks,
    engine_checks,
    host_checks,
    kernel_features,
    link_checks,
    program_checks,
    runtime_checks,
)
from linkspan.diagnose.doctor.checks import Check, Status, Surroundings
from linkspan.diagnose.trace.kernel_answers import KernelAnswers
from linkspan.diagnose.trace.questions import Questions
from linkspan.kernel.io.namespaces import Namespaces

_FEATURES = {
    "namespaces": ("network namespaces", "run as root; the kernel needs CONFIG_NET_NS"),
    "veth": ("veth pairs", "modprobe veth, or a kernel with CONFIG_VETH"),
    "bridge": ("bridges", "modprobe bridge, or a kernel with CONFIG_BRIDGE; or use --opt mode=routed"),
    "nft inet": ("nftables with NAT", "modprobe nf_tables nft_chain_nat nft_masq nft_fib_inet nft_ct"),
    "nft bridge": ("nftables on bridges", "modprobe nft_meta_bridge, or use --opt mode=routed"),
    "tbf": ("token buckets", "modprobe sch_tbf; only containers with a bandwidth limit need it"),
}
_DISPENSABLE = frozenset({"tbf", "bridge", "nft bridge"})
"""Without these, what is routed and has no bandwidth limit works."""


def examine(namespaces: Namespaces, around: Surroundings) -> list[Check]:
    """Examine this machine, in any thread that is in the host's namespace; takes about 0.1 s."""
    asked = KernelAnswers(namespaces)
    try:
        return machine(asked, around)
    finally:
        asked.close()


def machine(asked: Questions, around: Surroundings) -> list[Check]:
    """Return every check of the machine; one that cannot be made is skipped with the reason."""
    found = list(_kernel())
    for name, check in _checks(asked, around):
        try:
            found += check
        except (LinkspanError, OSError, subprocess.SubprocessError) as error:
            found.append(Check(name, "skip", f"could not look: {error}"))
    return found


def _checks(asked: Questions, around: Surroundings) -> tuple[tuple[str, Iterator[Check]], ...]:
    return (
        ("forwarding", host_checks.forwarding(asked, around)),
        ("rp_filter", host_checks.rp_filter(asked)),
        ("br_netfilter", host_checks.br_netfilter(asked)),
        ("iptables FORWARD", host_checks.forward_policy(asked, around)),
        ("nft forward", host_checks.nft_forward(asked, around)),
        ("firewalld", host_checks.firewalld_zone(around)),
        ("conntrack", host_checks.conntrack(asked)),
        ("neighbours", host_checks.neighbours(around)),
        ("neighbour search", link_checks.neighbours(asked, around)),
        ("links above", link_checks.others_above(around)),
        ("bridge ports", host_checks.bridge_ports(around)),
        ("nft", runtime_checks.nft_version()),
        ("systemd-networkd", runtime_checks.networkd(around)),
        ("MTU", host_checks.mtus(around)),
        ("CNI configuration", runtime_checks.cni(around)),
        ("containerd", engine_checks.containerd(around)),
        ("Docker", engine_checks.docker(around)),
        ("Podman", engine_checks.podman(around)),
        ("names", dns_checks.server(around)),
        ("programs", program_checks.installed(around)),
        ("disk", runtime_checks.disk(around)),
        ("clock", runtime_checks.clock()),
    )


def _kernel() -> Iterator[Check]:
    why = kernel_features.probe()
    for name, (words, fix) in _FEATURES.items():
        if not (reason := why.get(name, "")):
            yield Check(f"kernel {name}", "ok", f"{words}: tried, and they work")
        else:
            status: Status = "warn" if name in _DISPENSABLE else "fail"
            yield Check(f"kernel {name}", status, f"{words}: {reason}", fix)
