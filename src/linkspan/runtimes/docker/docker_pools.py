"""Docker's pools: the linkspan network of each.

The engine asks for a pool before it passes the network's name from ``-o network=``. A pool that the user
named by its subnet belongs to a network at once. Any other is *pending*: it gets a gateway of its own, which
comes back with CreateNetwork together with the network's name.
"""

from __future__ import annotations

import secrets

import msgspec

from linkspan.cluster.networks import Networks
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid, NotFound
from linkspan.core.model import Network
from linkspan.kernel.io.durable_files import Memory
from linkspan.runtimes.docker.docker_types import GATEWAY, Call

PENDING = "pending/"
"""Prefix of the ids of pools without a network yet; other ids are NETWORK/FAMILY."""
ANY = {4: "0.0.0.0/0", 6: "::/0"}
"""Subnet of a pending pool, which `docker network inspect` shows forever."""


class DockerNetwork(msgspec.Struct, frozen=True):
    """A network of the engine: its linkspan network, and the ids of its pools."""

    network: str
    pools: tuple[str, ...] = ()


class Pools:
    """The pools of the engine's networks."""

    def __init__(self, networks: Networks, known: Memory[DockerNetwork]) -> None:
        self._networks = networks
        self._known = known
        self._asked: dict[str, str] = {}
        """Networks named by --ipam-opt, by their pending pools; a repeated CreateNetwork finds them again."""

    def requested(self, call: Call) -> dict[str, object]:
        """Answer RequestPool. Raises Invalid or NotFound."""
        family = 6 if call.v6 else 4
        name = str((call.options or {}).get("network", ""))
        unknown = ", ".join(sorted((call.options or {}).keys() - {"network"}))
        if unknown:
            raise Invalid(f"--ipam-opt {unknown} is unknown to IPAM driver linkspan", "the only option is network=NAME")
        if call.sub_pool:
            raise Invalid(
                "--ip-range is not known to IPAM driver linkspan", "linkspan address reserve does that"
            )
        if call.pool:
            network = self._of_subnet(prefix(call.pool), name)
            return _told(f"{network.name}/{family}", prefix(call.pool), _gateway(network, family))
        if name and not any(pool.family == family for pool in self._networks.get(name).prefixes):
            raise Invalid(
                f"network {name} has no pool of IPv{family}, of which Docker asks for addresses",
                f"add one: linkspan network update {name} --add-pool",
            )
        # Its own pool cannot serve as a named network's pending pool either: the engine asks again and again
        # for another pool as long as a route of the host overlaps with it, and such a route is the network's
        # own.
        gateway = self._unused(family)
        pool_id = self.id_of(ANY[family], gateway)
        if name:
            self._asked[pool_id] = name
        return _told(pool_id, prefix(ANY[family]), f"{gateway}/0")

    def named(self, pool_id: str) -> str:
        """Return the linkspan network named together with a pool, "" if there is none."""
        if pool_id.startswith(PENDING):
            return self._asked.get(pool_id, "")
        return pool_id.split("/")[0]

    def _unused(self, family: int) -> str:
        """Return an address that no pending pool has as its gateway; link-local, so that nobody else has it."""
        used = {one for known in self._known.entries.values() for one in known.pools}
        while True:
            packed = (
                b"\xa9\xfe" + secrets.token_bytes(2)
                if family == 4
                else b"\xfe\x80" + bytes(6) + secrets.token_bytes(8)
            )
            address = Prefix(packed, len(packed) * 8).address
            if self.id_of(ANY[family], address) not in used:
                return address

    def _of_subnet(self, subnet: Prefix, name: str = "") -> Network:
        for network in self._networks.all():
            if name in ("", network.name) and any(pool.holds(subnet) for pool in network.prefixes):
                return network
        raise NotFound(
            f"subnet {subnet} is in no linkspan network's pool", "`linkspan network list` shows the pools"
        )

    def id_of(self, pool: str, gateway: str) -> str:
        """Return the id of a pool in CreateNetwork: its network's, or the pending one with this gateway."""
        found = prefix(pool)
        if found.length:
            return f"{self._of_subnet(found).name}/{found.family}"
        return f"{PENDING}{prefix(gateway).address}/{found.family}"

    def network_of(self, pool_id: str) -> tuple[str, int]:
        """Return the linkspan network of a pool, and its family. Raises NotFound."""
        name, _, family = pool_id.rpartition("/")
        if pool_id.startswith(PENDING):
            name = next((n.network for n in self._known.entries.values() if pool_id in n.pools), "")
        if not name:
            raise NotFound(f"pool {pool_id} is of no network of Docker's", "create the network again")
        return name, int(family)


def _told(pool_id: str, pool: Prefix, gateway: str) -> dict[str, object]:
    return {"PoolID": pool_id, "Pool": str(pool), "Data": {GATEWAY: gateway}}


def _gateway(network: Network, family: int) -> str:
    """Return the network's gateway of a family, with its pool's length; the engine wants one inside the pool."""
    pool = next(p for p in network.prefixes if p.family == family)
    found = next((g for _, g in network.pairs if g.family == family and pool.holds(g.single())), None)
    return f"{found.address if found else pool.address}/{pool.length}"
