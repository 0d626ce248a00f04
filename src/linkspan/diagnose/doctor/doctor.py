"""``doctor``: checks whether this machine can run container networks, and what is in the way. It changes nothing."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from linkspan.core.errors import LinkspanError
from linkspan.diagnose.doctor import (
    dns_checks,
    host_checks,
    kernel_features,
    link_checks,
    program_checks,
    system_checks,
)
from linkspan.diagnose.doctor.checks import Check, Checks, Status, Surroundings
from linkspan.diagnose.trace.kernel_answers import KernelAnswers
from linkspan.diagnose.trace.kernel_view import KernelView
from linkspan.kernel.io.namespaces import Namespaces

_FEATURES = {
    "namespaces": ("network namespaces", "run as root; the kernel needs CONFIG_NET_NS"),
    "veth": ("veth pairs", "modprobe veth, or a kernel with CONFIG_VETH"),
    "bridge": ("bridges", "modprobe bridge, or a kernel with CONFIG_BRIDGE; or use --opt mode=routed"),
    "nft inet": ("nftables with NAT", "modprobe nf_tables nft_chain_nat nft_masq nft_fib_inet nft_ct"),
    "nft bridge": ("nftables on bridges", "modprobe nft_meta_bridge, or use --opt mode=routed"),
    "nft taddr": (
        "rules about IPv6 neighbour advertisements",
        "nftables 1.0.7 or later; until then a container can answer for another one's IPv6 address on its bridge",
    ),
    "tbf": ("token buckets", "modprobe sch_tbf; only containers with a bandwidth limit need it"),
}
_DISPENSABLE = frozenset({"tbf", "bridge", "nft bridge", "nft taddr"})
"""Without these, routed endpoints without a bandwidth limit still work."""
_FILES = (host_checks, link_checks, system_checks, dns_checks, program_checks)


def examine(namespaces: Namespaces, around: Surroundings, runtimes: Checks) -> list[Check]:
    """Examine this machine and its ``runtimes``, in any thread in the host's namespace; takes about 0.1 s."""
    with contextlib.closing(KernelAnswers(namespaces)) as asked:
        return machine(asked, around, runtimes)


def machine(asked: KernelView, around: Surroundings, runtimes: Checks) -> list[Check]:
    """Return every check of the machine; skip those that fail to run, with the reason."""
    found = list(_kernel())
    for name, look in (*(check for file in _FILES for check in file.CHECKS), *runtimes):
        try:
            found += look(asked, around)
        except (LinkspanError, OSError, subprocess.SubprocessError) as error:
            found.append(Check(name, "skip", f"the check failed: {error}"))
    return found


def _kernel() -> Iterator[Check]:
    why = kernel_features.probe()
    for name, (words, fix) in _FEATURES.items():
        if not (reason := why.get(name, "")):
            yield Check(f"kernel {name}", "ok", f"{words}: tried, and they work")
        else:
            status: Status = "warn" if name in _DISPENSABLE else "fail"
            yield Check(f"kernel {name}", status, f"{words}: {reason}", fix)
