"""Records that all hosts share: the engines, the replica of each host, schemas and validation.

``core/store_contract`` is the contract: transactions with conditions, and a watch from a revision. One test suite runs
against all engines (SQLite, etcd, memory).

Records, by key
    ``settings/hosts``, ``settings/cluster``, ``settings/control``, ``hosts/ID``, ``alive/ID``, ``networks/NAME``,
    ``leases/NETWORK/ID`` (blocks, own addresses, and ``endpoints``: the host's offer for each backend),
    ``blocks/NETWORK/CIDR``, ``addresses/NETWORK/IP``, ``allowances/SOURCE/TARGET/PROTOCOL/PORT``,
    ``reservations/NETWORK/CIDR``, ``endpoints/HOST/ID/IFNAME``, ``gone/KEY`` (a tombstone), ``ask/HOST/ID`` and
    ``answer/HOST/ID``, ``upkeep/etcd``. A record is decoded once for each change.

Rules
    - Everything reads from ``replica``, so a store that is away stops nothing. Of endpoints it has this host's own:
      ``cluster`` says who keeps which others, and reads the rest in the store.
    - **Removal is a written fact.** A record that is missing without a tombstone was lost. It stays in force, its
      owner puts it back, and nothing new is claimed until then. If a host has no record, nothing of it counts as lost.
    - ``record_form`` and ``validation`` check a record by itself: its key, its size, the bounds of its numbers, the
      shape of each backend's offer (``check_offer``). A record that fails is named and stops no other. Its last
      valid version stays in force, in the snapshot too (``record_history``). If somebody deletes the spoilt key by
      hand, that version is written back.
    - ``compare_and_swap`` serves records of which several hosts change a part each (settings, pools). It writes
      only over what was read, so no host undoes what another host did, or brings back what another host removed.
    - ``fence`` makes late writes harmless. A host lost its underlay address and gave up on a write. The kernel
      sent that write once the address was back, and so restored a lease with an address that the host had given up
      (seen once in thirty changes of address on a busy machine). So each write requires that its records are as they
      were.

Schema
    A schema only adds fields. An agent of schema N reads what older agents and agents of schema N+1 wrote. When it
    rewrites a record it keeps the fields that it does not know, at every depth (``records``). A record that is two
    schemas ahead is skipped and named. All agents write the cluster's schema (``settings/cluster``, 1 if it is
    missing), never a newer one than they know. `cluster finalize` raises it to the lowest schema that all hosts'
    records say they read. The layout of SQLite's tables has a number of its own.

Engines
    - The SQLite file has no table of changes. A deleted key stays as a row without a value, and an index by revision
      is the log. So the file does not grow with liveness, and a watcher gets the last change of each key, all of
      one moment.
    - SQLite's file is known by its own inode. Overlayfs may change a folder's inode at a reboot.
    - Every etcd call compares the cluster's id in the same transaction, so linkspan never reads or writes another
      cluster's records. The JSON gateway alone is used. A trial showed no fault with TLS, passwords or failover, so
      grpc stubs were not needed.
    - A watch proves that it lives even if nobody writes. After two quiet seconds the agent asks etcd, on the watch's
      own connection, which revision it has reached. If etcd does not answer, the agent opens the watch again. An
      answer to another call proves nothing: the watch's own connection may use an address that is gone.
    - A *standing* record exists for as long as its connection keeps it (``Store.keep``). To keep it is no change: it
      costs etcd no raft entry, and no watch reports it. A connection to etcd has one etcd lease for all of its
      standing records (``etcd_lease``). SQLite moves the time at which they expire, without a revision and without a
      wait for the disk.
    - A full etcd (alarm NOSPACE) grants no etcd lease, but it renews and ends the existing ones. So a host whose
      record is missing there may live (``Store.full``).
    - A call that lasts (a watch, keepalives) is one HTTP request, and its body takes further messages. It needs
      ``Connection: close``: otherwise Go's server reads the whole body before it begins to answer.
    - ``upkeep`` keeps etcd small: it has its own design notes.
"""
