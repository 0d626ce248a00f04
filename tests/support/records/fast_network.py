"""A VXLAN network with a fast path, and a container of it."""

from __future__ import annotations

from linkspan.core.model import Endpoint
from support.records.peers import network

DEVICE = "lsx64"
"""The network's link on a host: its VNI is 100."""
NETWORK = network("vxlan", (4, 6), 1450, fast="true", vni="100")
CONTAINER = Endpoint(
    id="c1", ifname="eth0", network="demo", addresses=("10.77.1.2/32", "fd77:0:0:1::2/128"), mac="02:00:00:00:00:01",
    mtu=1450, host_ifname="lsr1",
)  # fmt: skip
