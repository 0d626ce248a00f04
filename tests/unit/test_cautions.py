from __future__ import annotations

import msgspec
import pytest
from replicas import network

from linkspan.cautions import cautions
from linkspan.model import Underlay

HERE = Underlay("eth0", ("192.0.2.1/24",), mtu=1500)


@pytest.mark.parametrize(
    ("pool", "hosts", "mtu", "words"),
    [
        ("10.244.0.0/22", 4, 1450, []),
        ("10.244.0.0/22", 5, 1450, ["has 4 blocks of /24, and there are 5 hosts"]),
        ("10.244.0.0/22", 4, 1451, ["MTU 1451 is more than this host's underlay carries, 1450"]),
    ],
)
def test_too_few_blocks_and_too_large_packets_are_warned_of(
    pool: str, hosts: int, mtu: int, words: list[str]
) -> None:
    """Each in a sentence with the way out; what will do is not."""
    made = msgspec.structs.replace(network(pool=pool), mtu=mtu)
    said = list(cautions(made, hosts, HERE))
    assert [word in one for word, one in zip(words, said, strict=True)] == [True] * len(words)


def test_a_network_of_exact_addresses_has_no_blocks_to_run_out_of() -> None:
    """One address is enough for a host."""
    made = msgspec.structs.replace(network(pool="10.244.0.0/24"), mtu=1450, ipam="exact")
    assert list(cautions(made, 9, HERE)) == []
