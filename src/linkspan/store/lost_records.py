"""Lost records: those that the store does not have any more, although nobody removed them.

**Removal is a written fact.** A host that deletes a record leaves a tombstone, ``gone/KEY``, in the same
transaction. A record that is missing without a tombstone was lost: the store was emptied, restored from a backup, or
is another one. The record then stays in memory (and so the kernel's state stays), and its owner puts it back. Two sorts
of records are never lost: those that expire by themselves (EPHEMERAL), and those that nobody would put back, which are
the records of a host without a record, and a block that no lease lists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from linkspan.core.model import Host, Lease
from linkspan.core.store_contract import Record
from linkspan.store import records
from linkspan.store.record_cache import RecordCache
from linkspan.store.records import CLAIMS, GONE, SHARED, AddressRecord, BlockRecord, block_key, claimant
from linkspan.store.request import MOST_BYTES

OF_HOSTS: Mapping[str, type] = {"hosts": Host, "leases": Lease, "blocks": BlockRecord, "addresses": AddressRecord}
"""Records that belong to one host, which alone puts them back; by the first word of the key."""


class LostRecords:
    """The lost records of ``known``, on the host with the id ``host``."""

    def __init__(self, known: RecordCache, host: str) -> None:
        self.keys: set[str] = set()
        """The keys of the records that are lost now."""
        self.displaced: dict[str, bytes] = {}
        """This host's claims, by key, that another host's claim has replaced in the store."""
        self.rewritten: dict[str, bytes] = {}
        """This host's leases, by key, as they were before somebody else rewrote them."""
        self._written: dict[str, bytes] = {}
        """This host's leases, by key, as it wrote them last, or tried to."""
        self.withheld: frozenset[str] = frozenset()
        """Keys of records that are not in force because they contradict others."""
        self._recalled: frozenset[str] = frozenset()
        """Keys of the blocks that the snapshot had at the start."""
        self._known = known
        self._host = host

    def recall(self) -> None:
        """Note which blocks the snapshot had: these are all that is known now."""
        self._recalled = frozenset(self._known.keys_under("blocks/"))

    def withhold(self, keys: Iterable[str]) -> None:
        """Note the records that are not in force because they contradict others."""
        self.withheld = frozenset(keys)

    def _owner(self, key: str) -> str:
        """Return the id of the host that owns a record, '' if none does, as for an address that was released."""
        kind, _, rest = key.partition("/")
        if kind == "hosts":
            return rest
        if kind == "leases":
            return rest.rpartition("/")[2]
        owner = claimant(self._known.records[key].value) if key.startswith(CLAIMS) else ""
        return "" if owner == SHARED else owner

    def is_mine(self, key: str) -> bool:
        """Return whether this host puts back a lost record: it does so for its own, and for those without an owner."""
        return self._owner(key) in (self._host, "")

    def listers(self, networks: Iterable[str]) -> dict[str, set[str]]:
        """Return the ids of the hosts whose leases in these networks list a block, by the block's key."""
        found: dict[str, set[str]] = {}
        for lease in (one for name in networks for one in self._known.read(f"leases/{name}/", Lease).values()):
            for text in lease.prefixes:
                found.setdefault(block_key(lease.network, text), set()).add(lease.host)
        return found

    def missed(self, key: str, listing: Collection[str]) -> Record | None:
        """Return the record that the store should have in place of a missing one, None if it does not count as lost.

        ``listing`` has the hosts whose leases listed the block (if it is one) before the store's last change.

        - If another claim had replaced this host's own, that own claim is returned.
        - A block that no lease lists was never in force, and perhaps its owner does not know of it: nobody would put
          it back. If others wrote a block in this host's name, and this host's lease does not list it, it is not lost
          either.
        - That does not hold for a block that is lost already, and for one from the snapshot: a restored store has old
          leases, which do not list the blocks that it lost.
        """
        if self._host in listing and key in self.displaced:
            return Record(key, self.displaced.pop(key), self._known.records[key].revision)
        owner = self._owner(key) if key.startswith("blocks/") else ""
        seen = bool(owner) and key not in self.keys and key not in self._recalled
        if seen and (not listing or (owner == self._host and owner not in listing)):
            return None
        return None if self.counts_for_nothing(key) else self._sound(key)

    def counts_for_nothing(self, key: str) -> bool:
        """Return whether a missing record does not count as lost.

        That is so if its host has no record, if it was withheld, and for a lease of which no block has a record and
        whose host owns no exact address. A lease counts as lost also if another host owns its block now: before a
        restore the block may have been the lease's.
        """
        if (owner := self._owner(key)) not in ("", self._host) and f"hosts/{owner}" not in self._known.records:
            return True
        if not key.startswith("leases/") or (lease := self._known.value(key, Lease)) is None:
            return key in self.withheld
        if any(block_key(lease.network, text) in self._known.records for text in lease.prefixes):
            return False
        exact = self._known.under(f"addresses/{lease.network}/").values()
        return not any(claimant(one.value) == lease.host for one in exact)

    def _sound(self, key: str) -> Record | None:
        """Return the last valid version of a record; None if no version was valid: such a record is not lost.

        One that is too large for a request of an agent is none of an agent's, and nobody can put it back.
        """
        record = self._known.records[key]
        if len(key.encode()) + len(value_to_put_back(record)) > MOST_BYTES:
            return None
        if key.startswith("claims/"):  # their values are names, not JSON
            return record
        if (type_ := OF_HOSTS.get(key.partition("/")[0])) is not None:
            self._known.value(key, type_)  # perhaps nobody has read it yet
        before = self._known.earlier(key)
        if key not in self._known.reasons and records.well_formed(record.value):
            return record
        return Record(key, before, record.revision) if before and records.well_formed(before) else None

    def is_removed(self, key: str) -> bool:
        """Return whether a lost record has a tombstone."""
        return GONE + key in self._known.records

    def compare(self, old: Record, new: Record) -> None:
        """Keep a claim of this host, or of all hosts, that another host's claim has replaced."""
        before, after = claimant(old.value), claimant(new.value)
        if before in (self._host, SHARED) and after not in ("", before):
            self.displaced[new.key] = old.value
        elif after == self._host:
            self.displaced.pop(new.key, None)

    def note_written(self, puts: Mapping[str, bytes]) -> None:
        """Note this host's leases among records that it is about to write: the watch may report them first."""
        own = f"/{self._host}"
        self._written.update((k, v) for k, v in puts.items() if k.startswith("leases/") and k.endswith(own))

    def compare_lease(self, old: Record | None, new: Record) -> None:
        """Keep a lease of this host that somebody else has rewritten, until it is again as this host wrote it."""
        if self._owner(new.key) != self._host:
            return
        if old is None or new.value in (self._written.get(new.key), self.rewritten.get(new.key)):
            self.rewritten.pop(new.key, None)
        else:
            self.rewritten.setdefault(new.key, old.value)


def value_to_put_back(record: Record) -> bytes:
    """Return the value with which a lost record is put back."""
    return records.put_back(record.value) if record.key.startswith(CLAIMS) else record.value
