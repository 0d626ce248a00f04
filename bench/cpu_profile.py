"""CPU time of the whole machine by part of the kernel, by perf(1): for bench/peers.py --profile, no program.

perf takes a sample of each core every half millisecond, with the kernel's functions that are under way. The
innermost of them that one of the groups knows decides: a copy of memory counts for what copies. A core that has
nothing to do counts for nothing. A sample is taken by an interrupt. So what runs while interrupts are off is counted
for where they are on again, which is nearly always a function of the same group.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

PERIOD = 500_009
"""Nanoseconds between two samples of a core: prime, so that they do not keep step with the kernel's own timers."""
LEAD = 1.0
"""Seconds until samples are taken: what is measured is under way by then."""
KERNEL = 1 << 63
"""Addresses of the kernel's functions begin here (Documentation/arch/x86/x86_64/mm.rst, and arm64's memory.rst)."""

RULES, TRACKING, NAT = "nftables rules", "connection tracking", "NAT"
DEVICES, TUNNEL, ROUTING = "bridge, veth and queues of devices", "vxlan and UDP tunnel", "IP and routing"
TCP, SCHEDULER = "TCP and sockets", "scheduler and wakeups"
OWN, OTHER = "the benchmark's programs", "other"
IDLE = "idle"
GROUPS: dict[str, str] = {
    NAT: r"_*nf_nat_|_*nf_ct_nat|nft_(nat|masq|redir)_|nf_(masq|redirect)|get_unique_tuple|l4proto_manip|manip_pkt"
    r"|xt_(nat|masquerade|dnat|snat)|(masquerade|dnat|snat|redirect)_tg",
    TRACKING: r"_*nf_(conntrack|ct|confirm|defrag|tcp)|ipv[46]_(conntrack|confirm)|_*hash_conntrack|init_conntrack"
    r"|resolve_normal_ct|early_drop|gc_worker|ctnetlink|tcp_in_window",
    RULES: r"_*nft?_|ipt_|xt_|\w+_mt(_v\d)?(\.|$)|ip_set",
    TUNNEL: r"_*vxlan|_*udp|gro_cell|_*iptunnel|_*ip_tunnel|skb_udp|skb_tunnel",
    DEVICES: r"veth_|br_|_*dev_|_*netif_|_*netdev_|_*napi_|process_backlog|net_[rt]x_action|enqueue_to_backlog"
    r"|validate_xmit|sch_direct_xmit|_*qdisc_|noqueue|fq_codel|pfifo|tcf_|cls_|bpf_prog_|skb_do_redirect|skb_mac_gso"
    r"|_*skb_g[rs]o|skb_segment|(inet|ipv6|tcp|tcp4|tcp6|eth)_g[rs]o_|_*eth_(type|header)|get_rps_cpu|rps_",
    ROUTING: r"_*ip_|_*ip6_|_*ipv[46]_|_*fib|inet_(addr|select|iif)|rt_|_*mkroute|_*neigh|_*dst_|arp_|_*icmp"
    r"|find_exception",
    TCP: r"_*tcp|_*inet_|_*inet6_|_*sock_|_*sk_|_*lock_sock|_*release_sock|do_accept|_*move_addr|reqsk|secure_"
    r"|bictcp|cubictcp|_*(do_|x64_|se_|arm64_)?sys_(socket|connect|accept|send|recv|shutdown|setsock|getsock|bind|listen)",
    SCHEDULER: r"_*schedule|_*sched_|_*wake_up|try_to_wake_up|ttwu|_*(en|de)queue_(task|entit)|pick_(next|task|eevdf)"
    r"|select_(task|idle)|finish_task_switch|_*switch_to|prepare_task|set_next|put_prev|update_(curr|load|rq|cfs|se|min)"
    r"|reweight|cpu_startup_entry|do_idle|_*tick_|_*hrtimer|cpuidle|menu_|haltpoll|_*call_function|_*flush_smp|_*smp_call"
    r"|(asm_)?sysvec_(resched|call_func)|ep_(poll|send)|_*futex|psi_|cpuacct|rcu_(core|gp|sched|do_batch)|wait_woken"
    r"|autoremove_wake|default_wake",
}  # fmt: skip
"""Beginnings of kernel functions' names, by group; the first group that knows a name has it."""
_IDLE = re.compile(r"(pv_native_safe|native_safe|acpi_safe)_halt|(default|arch_cpu|mwait|intel|poll)_idle|cpu_do_idle")
"""Functions in which a core waits for an interrupt; what an interrupt then does has them among its callers."""
_KNOWN = re.compile("|".join(f"(?P<g{n}>{names})" for n, names in enumerate(GROUPS.values())))
_NAMES = tuple(GROUPS)


class Sample(NamedTuple):
    """A sample: the program that a core ran, and the functions under way, the innermost first, with their addresses."""

    program: str
    frames: tuple[tuple[int, str], ...]


def samples(script: Iterable[str]) -> Iterator[Sample]:
    """Yield the samples in the lines of `perf script -F comm,ip,sym`: a program, its frames, and an empty line."""
    program, frames = "", list[tuple[int, str]]()
    for line in script:
        words = line.split(None, 1)
        if not words:
            if program:
                yield Sample(program, tuple(frames))
            program, frames = "", []
        elif not program:
            program = line.strip()
        else:
            symbol = words[1].strip() if len(words) > 1 else ""
            frames.append((int(words[0], 16), symbol))
    if program:
        yield Sample(program, tuple(frames))


def group_of(sample: Sample, own: Collection[str]) -> str:
    """Return the group that a sample counts for; ``own`` are the names of the benchmark's programs."""
    if sample.frames and _IDLE.match(sample.frames[0][1]):
        return IDLE
    for address, symbol in sample.frames:
        if address < KERNEL:
            break
        if known := _KNOWN.match(symbol):
            return _NAMES[int((known.lastgroup or "g0")[1:])]
    return OWN if sample.program in own else OTHER


def spent(taken: Iterable[Sample], own: Collection[str]) -> dict[str, float]:
    """Return the seconds of CPU time by group, without what cores were idle."""
    found = Counter(group_of(sample, own) for sample in taken)
    return {group: found[group] * PERIOD / 1e9 for group in (*GROUPS, OWN, OTHER)}


def unknown(taken: Iterable[Sample], own: Collection[str], count: int = 8) -> Mapping[str, int]:
    """Return the most frequent innermost functions of what no group knows, and whose they are."""
    found = Counter(
        f"{sample.program}: {sample.frames[0][1] if sample.frames else 'its own code'}"
        for sample in taken
        if group_of(sample, own) == OTHER
    )
    return dict(found.most_common(count))


# ------------------------------------------------------------------ perf


def check() -> None:
    """End the program where perf is missing, or where it could not name the kernel's functions."""
    if shutil.which("perf") is None:
        sys.exit("error: no perf: apt-get install linux-perf (on Ubuntu linux-tools-generic)")
    with Path("/proc/kallsyms").open() as symbols:
        hidden = not any(int(line.split(None, 1)[0], 16) for line in islice(symbols, 100))
    if hidden:
        sys.exit("error: the kernel hides its functions' addresses: sysctl -w kernel.kptr_restrict=1")


class Recording:
    """perf, which takes samples of all cores for so many seconds, and begins LEAD seconds after this was made."""

    def __init__(self, file: Path, seconds: float) -> None:
        self._file = file
        wait = ("sh", "-c", f"echo begun; exec sleep {LEAD + seconds}")
        self._process = subprocess.Popen(
            [
                *("perf", "record", "--quiet", "--no-buildid", "--no-buildid-cache", "--all-cpus", "-g"),
                *("--kernel-callchains", "--event", "cpu-clock", "--count", str(PERIOD), "--output", str(file)),
                *("--delay", f"{LEAD * 1000:.0f}", "--", *wait),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # perf has read what runs on the machine; the delay begins

    def samples(self) -> list[Sample]:
        """Wait for its end, and return the samples."""
        _, said = self._process.communicate()
        if self._process.returncode:
            sys.exit(f"error: perf record: {said}")
        argv = ["perf", "script", "--input", str(self._file), "--fields", "comm,ip,sym"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        self._file.unlink()
        if done.returncode:
            sys.exit(f"error: perf script: {done.stderr}")
        return list(samples(done.stdout.splitlines()))
