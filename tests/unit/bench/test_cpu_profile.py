"""bench/cpu_profile.py: which part of the kernel a sample of perf counts for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

import cpu_profile as profile

SCRIPT = """\
python3
\tffffffffffff81a0 memcpy
\tffffffffffff81a1 __nf_conntrack_alloc
\tffffffffffff81a2 nf_hook_slow
\tffffffffffff81a3 ip_rcv
\tffffffffffff81a4 do_syscall_64
\t    55d010 _PyEval_EvalFrameDefault

swapper
\tffffffffffff81b0 pv_native_safe_halt
\tffffffffffff81b1 default_idle

tmux: server
\t    7f0010 [unknown]
"""


def sample(*symbols: str, program: str = "swapper", address: int = profile.KERNEL) -> profile.Sample:
    """Return a sample with these functions, the innermost first."""
    return profile.Sample(program, tuple((address, symbol) for symbol in symbols))


def test_samples_are_read_with_programs_and_functions() -> None:
    first, second, third = profile.samples(SCRIPT.splitlines())
    assert first.program == "python3"
    assert [symbol for _, symbol in first.frames][:2] == ["memcpy", "__nf_conntrack_alloc"]
    assert first.frames[0][0] >= profile.KERNEL > first.frames[-1][0]
    assert second.program == "swapper"
    assert third == profile.Sample("tmux: server", ((0x7F0010, "[unknown]"),))


@pytest.mark.parametrize(
    ("symbol", "group"),
    [
        ("nft_do_chain", profile.RULES),
        ("nft_ct_get_eval", profile.RULES),
        ("nf_hook_slow", profile.RULES),
        ("addrtype_mt_v1", profile.RULES),
        ("nf_conntrack_tcp_packet", profile.TRACKING),
        ("__nf_ct_refresh_acct", profile.TRACKING),
        ("nf_nat_inet_fn", profile.NAT),
        ("nft_masq_ipv4_eval", profile.NAT),
        ("veth_xmit", profile.DEVICES),
        ("br_handle_frame", profile.DEVICES),
        ("tcp4_gro_receive", profile.DEVICES),
        ("vxlan_rcv", profile.TUNNEL),
        ("__udp4_lib_rcv", profile.TUNNEL),
        ("fib_table_lookup", profile.ROUTING),
        ("ip_forward", profile.ROUTING),
        ("tcp_v4_rcv", profile.TCP),
        ("__sys_accept4", profile.TCP),
        ("try_to_wake_up", profile.SCHEDULER),
        ("do_idle", profile.SCHEDULER),
    ],
)
def test_a_function_belongs_to_its_part_of_the_kernel(symbol: str, group: str) -> None:
    assert profile.group_of(sample(symbol), ()) == group


def test_a_helper_counts_for_its_caller() -> None:
    assert profile.group_of(sample("memcpy", "skb_copy", "veth_xmit", "ip_output"), ()) == profile.DEVICES


def test_a_core_that_waits_is_idle_and_an_interrupt_that_wakes_it_is_not() -> None:
    waits = ("pv_native_safe_halt", "default_idle", "do_idle")
    assert profile.group_of(sample(*waits), ()) == profile.IDLE
    assert profile.group_of(sample("handle_softirqs", *waits), ()) == profile.SCHEDULER
    assert profile.group_of(sample("nft_do_chain", "handle_softirqs", *waits), ()) == profile.RULES


def test_a_program_counts_for_the_benchmark_if_it_is_its_own() -> None:
    user = sample("_PyEval_EvalFrameDefault", "tcp_v4_rcv", program="python3", address=0x1000)
    assert profile.group_of(user, {"python3"}) == profile.OWN
    assert profile.group_of(user, {"iperf3"}) == profile.OTHER
    assert profile.group_of(sample("do_syscall_64", program="python3"), {"python3"}) == profile.OWN
    assert profile.group_of(profile.Sample("python3", ()), ()) == profile.OTHER


def test_time_is_the_number_of_samples_without_idle_ones() -> None:
    taken = [sample("nft_do_chain")] * 3 + [sample("pv_native_safe_halt")] * 5 + [sample("cpu_relax")]
    spent = profile.spent(taken, ())
    assert spent[profile.RULES] == pytest.approx(3 * profile.PERIOD / 1e9)
    assert sum(spent.values()) == pytest.approx(4 * profile.PERIOD / 1e9)
    assert profile.unknown(taken, ()) == {"swapper: cpu_relax": 1}
