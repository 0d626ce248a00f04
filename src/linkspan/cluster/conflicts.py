"""Conflicts: blocks that two hosts claim, as after a restore of the store, with the winner and the consequences.

A lease lists the blocks that its host has claimed, and a block's record names the one owner. If they differ, the
lease's host is the loser, and every host sees that by itself. The loser's block is frozen: the loser gives out no
address from it any more, and its running containers keep theirs. The routes of the block lead to the owner. The
loser's containers have a route each, except those whose address a container of the owner has too. When the last of
them is gone the loser drops the block. Meanwhile it has claimed another one, for the host itself and for new
containers.

The owner gives out none of the addresses that the loser's containers have.

Somebody else may write a host's lease, too. The host puts it back as it knew it, without blocks that are another host's
now and in which it has no container: an old state folder lists those, too. If it did not know it, as after the loss of
its state folder, a block in it is no proof of a claim: the host lets another host's block go, unless it has a
container there. It claims those of the free blocks in it that are blocks of the network, because they may be its own
lost ones. If its lease does not list a block that it owns, it releases it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import msgspec

from linkspan.cluster.blocks import earlier, is_block, is_strange
from linkspan.cluster.endpoint_records import EndpointRecords
from linkspan.cluster.grants import gateways
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.clock import now
from linkspan.core.errors import Invalid
from linkspan.core.event_log import EventLog
from linkspan.core.model import Network
from linkspan.store import records
from linkspan.store.records import ENDPOINTS, SHARED, BlockRecord, block_key, lease_key
from linkspan.store.replica import Replica
from linkspan.store.request import MOST_KEYS

log = logging.getLogger("linkspan.cluster.conflicts")

UNLISTED = 60.0
"""Seconds until an own block that the lease does not list is released: an attach that uses it ends before."""


class ClaimConflict(msgspec.Struct, frozen=True):
    """A conflict about a block or exact address (``what``, as text), which ``winner`` owns and ``loser`` claims too.

    Hosts are ids. ``containers`` has the names of the loser's containers in it, ``doubled`` the addresses that a
    container of each host has.
    """

    network: str
    what: str
    winner: str
    loser: str
    containers: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()


class Conflicts:
    """All open conflicts, as this host sees them."""

    def __init__(
        self,
        replica: Replica,
        hosts: Hosts,
        leases: Leases,
        endpoint_records: EndpointRecords,
        event_log: EventLog,
    ) -> None:
        self._replica = replica
        self._hosts = hosts
        self._leases = leases
        self._endpoint_records = endpoint_records
        self._event_log = event_log
        self._lost: dict[tuple[str, str], dict[str, str]] = {}
        """By (network, host): the blocks that the host has lost, with their owners' ids."""
        self.fresh: set[tuple[str, str]] = set()
        """The (network, host) pairs whose lost blocks changed; the caller clears it once it has followed them."""
        self._unlisted: dict[tuple[str, Prefix], float] = {}
        """Since when (``core.clock.now``) this host owns an unused block that its lease does not list."""

    @property
    def pending(self) -> bool:
        """Return whether this host will release a block."""
        return bool(self._unlisted)

    def look(self, networks: Collection[str], changed: Collection[str] | None = None) -> None:
        """Find lost blocks in these networks, and report new and settled conflicts.

        Only the blocks of the ``changed`` networks are compared; None: of all.
        """
        again = [name for name in networks if changed is None or name in changed]
        found = {pair: lost for pair, lost in self._lost.items() if pair[0] in networks and pair[0] not in again}
        for name in again:
            for (host, block), owner in self._leases.lost(name).items():
                found.setdefault((name, host), {})[block] = owner
        self._unlisted = {key: since for key, since in self._unlisted.items() if key[0] in networks}
        before, self._lost = self._lost, found
        fresh = {pair for pair in before.keys() | found.keys() if before.get(pair) != found.get(pair)}
        self.fresh |= fresh
        for name, host in sorted(fresh):
            old, new = before.get((name, host), {}), found.get((name, host), {})
            for block in sorted(new.keys() - old.keys()):
                log.warning("%s", self._why(name, f"block {block}", new[block], host))
                self._tell(name, self._why(name, f"block {block}", new[block], host))
            for block in sorted(old.keys() - new.keys()):
                self._tell(name, f"block {block} of network {name} is claimed by one host only again")

    def _tell(self, network: str, text: str) -> None:
        self._event_log.add("lease", text, network=network)

    def _why(self, network: str, what: str, winner: str, loser: str) -> str:
        first = "shared" if winner == SHARED else f"host {self._hosts.name(winner)}'s"
        return (
            f"{what} of network {network} is {first}, by the earlier claim, and host {self._hosts.name(loser)} "
            "claims it too: it gives no new addresses from it"
        )

    def lost_by(self, network: str, host: str) -> Mapping[str, str]:
        """Return the blocks of a network that a host has lost, with their owners' ids."""
        return self._lost.get((network, host), {})

    def concern(self, key: str) -> bool:
        """Return whether a record is an endpoint of a host that has lost a block: its route may change."""
        return key.startswith(ENDPOINTS) and any(host == key.split("/")[1] for _, host in self._lost)

    def astray(self, network: Network, loser: str) -> set[Prefix]:
        """Return the addresses of a loser's containers in its lost blocks that need a route each.

        These exclude addresses that the owner itself or one of its containers has.
        """
        name, pools = network.name, network.prefixes
        lost = self.lost_by(name, loser)
        blocks = [block for block in map(prefix, lost) if any(pool.holds(block) for pool in pools)]
        if not blocks:
            return set()
        mine = {a for a in self._endpoint_records.living(name, loser) if any(block.holds(a) for block in blocks)}
        for owner in set(lost.values()):
            lease = self._leases.of(name, owner)
            mine -= self._endpoint_records.living(name, owner)
            mine -= {prefix(text).single() for text in (lease.addresses if lease else ())}
        return mine - gateways(network)

    def elsewhere(self, network: str, block: Prefix) -> dict[Prefix, str]:
        """Return the addresses of this host's own block that others' containers have, with a text for each.

        Others are other hosts, and another agent with this host's id.
        """
        strangers = self._endpoint_records.strangers(network)
        found = {a: f"{called} of another agent with this host's id" for a, called in strangers if block.holds(a)}
        record = self._replica.value(block_key(network, block), BlockRecord)
        if record is None or not record.over:
            return found
        here = self._hosts.here.id
        for address, held in self._leases.exact(network).all.items():
            if held.host not in ("", here) and block.holds(address):
                found[address] = f"{held.called} on host {self._hosts.name(held.host)}"
        for host, address, called in self._endpoint_records.remote(network):
            if block.holds(address):
                found[address] = f"{called} on host {self._hosts.name(host)}"
        return found

    async def know(self, network: str) -> bool:
        """Wait until ``elsewhere`` is complete for this host's blocks in a network; return whether it is."""
        lease = self._leases.mine(network)
        keys = [block_key(network, text) for text in lease.prefixes] if lease is not None else []
        owned = (self._replica.value(key, BlockRecord) for key in keys)
        none_replaced = not any(record is not None and record.over for record in owned)
        return none_replaced or await self._endpoint_records.known(network)

    async def settle(self, network: Network) -> None:
        """Correct this host's claims: write earlier ones over later ones, and drop lost blocks that are unused.

        Raises Unavailable.
        """
        name, here = network.name, self._hosts.here.id
        await self._leases.put_back(name)
        await self._drop_strange(network)
        await self._claim_again(network)
        await self._release_unlisted(name)
        for block, owner in self._leases.frozen(name).items():
            key = block_key(name, block)
            found = self._replica.value(key, BlockRecord)
            mine = self._displaced(key)
            if found is None:
                continue
            if (mine is not None or self._has_container(name, block)) and earlier(mine, found, here):
                at = mine.at if mine else found.at
                ours = BlockRecord(here, at, back=True, over=owner)
                if await self._replica.write({key: ours}, unchanged={key: await self._replica.revision(key)}):
                    log.warning(
                        "block %s of network %s was this host's before host %s claimed it", block, name, owner
                    )
            else:
                held = any(block.holds(address) for address, _ in self._endpoint_records.held(name, here))
                await self._let_go(name, block, keep=held)

    def _has_container(self, name: str, block: Prefix) -> bool:
        """Return whether a container here has an address of a block that is no exact one: this host had the block."""
        exact = self._leases.exact(name).of_host(self._hosts.here.id)
        held = (address for address, _ in self._endpoint_records.held(name, self._hosts.here.id))
        return any(block.holds(address) and address not in exact for address in held)

    def _displaced(self, key: str) -> BlockRecord | None:
        """Return this host's claim of a block that another claim has replaced, None if it is not known."""
        try:
            mine = records.decode(self._replica.displaced[key], BlockRecord)
        except (KeyError, Invalid):
            return None
        return mine if mine.owner == self._hosts.here.id else None

    async def _claim_again(self, network: Network) -> None:
        """Claim the blocks of this host's lease that nobody owns any more, because their owner was removed.

        A prefix that is no block of the network is not claimed: somebody else may have added it to the lease.
        """
        lease = self._leases.mine(network.name)
        for block in lease.blocks if lease else ():
            key = block_key(network.name, block)
            if key not in self._replica.records and is_block(network, block):
                ours = BlockRecord(self._hosts.here.id, self._leases.time(network.name))
                await self._replica.write({key: ours}, absent=[key])

    async def _release_unlisted(self, name: str) -> None:
        """Release this host's blocks that its lease has not listed for UNLISTED seconds, and that no container uses.

        This host lists every block in the transaction that claims it, so somebody else has rewritten the lease.
        """
        here = self._hosts.here.id
        async with self._leases.changing:
            lease = self._leases.mine(name)
            if lease is None or not self._replica.settled:
                return
            used = {address for address, _ in self._endpoint_records.held(name, here)}
            used |= {one.single() for e in self._endpoint_records.own() if e.network == name for one in e.prefixes}
            unlisted = {block for block, owner in self._leases.blocks(name).items() if owner == here}
            unlisted = {b for b in unlisted - set(lease.blocks) if not any(b.holds(address) for address in used)}
            since = {(name, block): self._unlisted.get((name, block), now()) for block in unlisted}
            self._unlisted = {key: at for key, at in self._unlisted.items() if key[0] != name} | since
            due = sorted(block for (_, block), at in since.items() if now() - at >= UNLISTED)[: MOST_KEYS // 2]
            keys = [key for block in due if (key := block_key(name, block)) in self._replica.records]
            if not keys:
                return
            same = {key: self._replica.records[key].revision for key in (*keys, lease_key(name, here))}
            if await self._replica.write({}, deletes=keys, unchanged=same):
                blocks = ", ".join(map(str, due))
                log.warning("network %s: released %s, because this host's lease does not list it", name, blocks)
                for block in due:
                    del self._unlisted[name, block]

    async def _drop_strange(self, network: Network) -> None:
        """Remove blocks from this host's lease that it cannot have claimed, because somebody else added them."""
        async with self._leases.changing:
            lease = self._leases.mine(network.name)
            if lease is None or not any(is_strange(network, block) for block in lease.blocks):
                return
            key = lease_key(network.name, lease.host)
            left = [text for text in lease.prefixes if not is_strange(network, prefix(text))]
            changed = msgspec.structs.replace(lease, prefixes=tuple(left))
            await self._replica.write({key: changed}, unchanged={key: await self._replica.revision(key)})

    async def _let_go(self, name: str, block: Prefix, keep: bool) -> None:
        """Drop the host's own address in a lost block from the lease, and the block unless containers ``keep`` it."""
        async with self._leases.changing:
            lease = self._leases.mine(name)
            if lease is None:
                return
            key = lease_key(name, lease.host)
            left = msgspec.structs.replace(
                lease,
                prefixes=tuple(text for text in lease.prefixes if keep or prefix(text) != block),
                addresses=tuple(text for text in lease.addresses if not block.holds(prefix(text).single())),
            )
            if left != lease:
                await self._replica.write({key: left}, unchanged={key: await self._replica.revision(key)})

    def open(self) -> list[ClaimConflict]:
        """Return every open conflict about a block, with the loser's containers in it."""
        found = []
        for (name, loser), blocks in sorted(self._lost.items()):
            for text, owner in sorted(blocks.items()):
                block = prefix(text)
                held = {a: called for a, called in self._endpoint_records.held(name, loser) if block.holds(a)}
                theirs = self._endpoint_records.living(name, owner)
                names = tuple(sorted(set(held.values())))
                doubled = tuple(a.address for a in sorted(held.keys() & theirs))
                found.append(ClaimConflict(name, f"block {text}", owner, loser, names, doubled))
        return found

    def told(self, dispute: ClaimConflict) -> dict[str, object]:
        """Return a conflict for `status`, with the hosts' names, the reason and the fix."""
        winner = "" if dispute.winner == SHARED else self._hosts.name(dispute.winner)
        loser = self._hosts.name(dispute.loser)
        why = self._why(dispute.network, dispute.what, dispute.winner, dispute.loser)
        if dispute.doubled:
            why += f"; containers of both have {', '.join(dispute.doubled)}"
        fix = f"wait: the conflict ends when host {loser} drops its claim"
        if dispute.containers:
            names = ", ".join(dispute.containers)
            fix = (
                f"detach {names} on host {loser} and attach them again: they get other addresses, "
                "and the conflict ends"
            )
        return {
            "network": dispute.network,
            "what": dispute.what,
            "winner": winner,
            "loser": loser,
            "containers": list(dispute.containers),
            "doubled": list(dispute.doubled),
            "why": why,
            "fix": fix,
        }
