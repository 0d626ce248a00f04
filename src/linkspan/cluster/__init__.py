"""The cluster as this host sees it: networks, leases and blocks, the other hosts, and who owns which address.

Who does what
    - ``membership``: this host's record, and the order in which it follows changed records.
    - ``blocks``, ``leases``: who owns which addresses, and this host's claims. Each claim is one transaction. It
      succeeds only if the record is absent and the network still exists. A host that is not alive keeps what it owns
      (``alive/HOST``, ``presence``).
    - ``participation``: the networks in which this host has a lease, and peers (below).
    - ``allocator``: the blocks in memory. From its own blocks a host gives addresses without asking the store.
      `--ip`, `--ipam exact` and identities go through ``leases``.
    - ``exact_addresses``: keeps this host's exact addresses in the store equal to those of its containers. So it
      corrects a release while the store was away, or a kill between two steps, later and without a note on disk.
    - ``grants``: the part of a lease that counts (below). ``conflicts``: blocks that a lease lists and another host
      owns.
    - ``presence``: this host's record of liveness, and how the others learn of a death.
    - ``liveness``: for how long hosts have been silent, and ``reclaim_after`` (below).
    - ``peers``: the states that this host needs for each peer. A peer is one source, ``("peer", NETWORK, HOST)``,
      from ``backend.peer(view, network, peer)``. After a change of a record only the states of the peers that it
      names are computed again; for an exact address these are its former and its present holder.
    - ``shared_states``: states that serve all networks and all peers of a backend, such as a BGP speaker.
    - ``onlink_peers``: which peers answer on the underlay's link. It asks in the background, and one silence
      changes nothing.

    The settings of all hosts are one record, ``settings/hosts``. Backends see a host with its own settings on top
    of these (``Hosts.whole``). A host's place in a pool follows from its id, so hosts that start together seldom
    try the same block.

In which networks a host takes part
    A host has a lease, and so peers, in networks that have a container on it, and in those that its setting
    ``networks`` names. With an allowance between two networks a host needs the routes of both, so it takes part in
    both. The first attach claims the block (``Cluster.take_part``), before it takes any lock of the registry: what
    follows from a lease (a smaller MTU, a network that is gone) may change other endpoints. The attach then waits until
    this host has its states for the peers. The peers learn of the new lease by their watches, a few milliseconds later.

    A lease stays after the last container, until the host is removed: the container may come again, and its address
    with it. Agents of the release before claim in every network. To them a host without a lease is one that has not
    claimed yet. The hosts that take part in a network report faults of its records (``status``).

Which of two claims is the earlier one
    Wall clocks jump, and revisions mean nothing across a restore. One thing is certain: a host makes a claim only
    if the store has no claim there. Take a host that had a block (its snapshot or one of its containers says so; its
    lease alone proves nothing, because others may write it) or an exact address (one of its containers has it). If it
    finds another host's claim in that place, the store had lost the first claim when the other one was made. So **the
    claim that was lost is the earlier one**. Its host writes it over the other one with ``over: LOSER``, on the
    condition that the other claim did not change meanwhile. This is final: a host that finds itself named in ``over``
    has lost. No clock decides, with one exception. If the place was empty, the owner writes its claim back with
    ``back``. Two claims with ``back`` (the store was restored twice) are compared by their times. The time of a new
    claim is later than the times of all blocks in the store, so a clock that was set back does not make a claim old. A
    host that no longer knows the time of its own claim loses. Claims for shared blocks follow the same rules.

    A removal is no conflict, because the lease has a tombstone. But if the restore lost the tombstone too, the
    removed record is back: no host can distinguish it from a record that was created again.

    A block that a lease lists and another host owns is **frozen** on the lease's host. That host gives no address
    from it, gives up its own address in it, and its containers keep theirs. All hosts see this from the two records
    alone. Routes of the block lead to the owner. The loser's containers are reached by routes of their own, like
    exact addresses, unless the owner has the same address or it is the gateway. The owner gives out none of the
    addresses that other hosts' containers have in its block. When the last container is gone the loser drops the
    block from its lease. If a lease lists a block that nobody owns, because the winner was removed, its host claims
    it again.

``reclaim_after``
    It is off by default, and it is a setting in the store because all hosts need the same value. It binds a host from
    the moment that the host's own record says so (``withdraws``): other hosts reclaim only from a host that has
    promised. The silent host counts by CLOCK_BOOTTIME (CLOCK_MONOTONIC stops while a machine is suspended) from
    before it sent its last keepalive. The file ``spoke`` keeps that time over restarts of the agent; after a reboot
    the time is unknown, and counts as infinitely long ago. Other hosts count from when they saw the liveness record
    expire, and start again if their own connection or watch was away. So their time always ends later. To reclaim is
    to overwrite with ``over``, as above, on the condition that the owner's ``alive`` record is absent and the block's
    record is unchanged. A host that comes back finds itself the loser, and the rules above apply to its containers. A
    host whose agent does not run cannot keep the promise, because states in the kernel do not end by themselves.

What a record counts for
    Whoever can write to the store can claim anything, and mistakes happen. So agents compare records where they use
    them:

    - A lease is its host's claim. Routes, allowed IPs, guards, BGP filters and the controller use only the part
      that ``grants`` leaves (``Leases.grant``; ``Leases.serving`` for this host). Claims and conflicts use the
      lease as it is written.
    - A host's own lease may list a block without an owner, because the host claims it again. In another host's
      lease such a block does not count. A prefix that overlaps a pool and is no block of it cannot have been
      claimed, so its host takes it out (``Conflicts.settle``). A block outside all pools stays, and is not claimed:
      after a restore the store may not know the pool, and containers have addresses of it. A host releases an
      unused block that its lease does not list.
    - Networks exclude each other by pool, bridge name and ``claims`` (a VNI). ``Networks`` keeps the networks in
      force apart from those that are written. The one that was in force here stays. The snapshot omits withheld
      networks, so this is true over restarts, too. Otherwise the lower revision wins. A network whose pool covers this
      host's own routes or any host's underlay is withheld only if it is new. A network in force stays in force
      if somebody adds such a route later; ``status`` names it.
    - A pool in force excludes a host whose underlay address lies in it, not the other way round: one host's record
      must not be able to take a network from everybody.

Questions to other hosts
    Agents have no connection to each other except the store. A question is the record ``ask/HOST/ID``, and its
    answer is ``answer/HOST/ID``. Both have a TTL, and the asker removes them (``questions``). There are four
    questions, and none changes anything: how does this packet continue on your host (``walk``), where do you see this
    echo request (``listen``), which of your peers' test packets do not reach you (``probe``), and, to the active SDN
    controller, what are your problems (``well``). One coarse question replaces a dozen about routes, neighbours and
    rules: a host's part of a trace costs one answer through the store, and describes one moment.

Plain routes
    ``direct=true`` and host-gw use plain routes for peers on the link (``onlink_peers``): the kernel reaches the
    peer without a router, each of the two records has the other host in its prefix, and the peer answered ARP or
    neighbour solicitation. The records alone decide what is *accepted*, so both hosts agree on that before either
    knows whether the other answers. Until a peer answers, the tunnel carries its packets. A neighbour in the
    kernel's table counts as an answer, so an agent's start changes no path.

Records of endpoints
    ``endpoint_records`` writes each endpoint to ``endpoints/HOST/ID/IFNAME`` after its attach, for names, lists and
    traces. These records have no tombstones and are not in the snapshot. Their host corrects them at its start, and
    when the store lost them.

    They are most of a store's records, and a host needs few of them. So the replica has only this host's own, and three
    parts share the rest:

    - ``interest`` says which ones this host needs: those in networks with a container here, on the hosts that have a
      lease there. A host has a lease in each network in which it has a container, so the leases are the index, and
      nobody reads all endpoints to learn which ones matter. A network matters for a minute after its last container,
      and for a minute after somebody asked about a conflict in it.
    - ``remote_endpoints`` has these, packed: addresses, names, and the container's usual name. It reads a host's
      records when the host begins to matter, and then follows the watch. An agent has one watch, of all records,
      because tombstones and revisions rely on its order. The host's id in the key shows which changes do not matter.
    - ``endpoint_records`` reads the others from the store, page by page, when somebody lists, shows or traces them.

    Measured with ids of 64 digits, a name and two labels: a record takes 3.3 KB decoded, as every agent had all of
    them, and 0.6 KB packed (613 and 568 bytes with 20,000 and 100,000 of them). Reading one that matters takes 16
    microseconds, another one 2. Take 1,000 hosts with 100 containers each in 20 networks, and a host that is in two of
    them. Its replica has 4,040 records instead of 104,040, and it keeps 10,000 endpoints: 13 MB, and 0.7 s of processor
    time at the start. If every host is in all 20 networks, it is 26 MB and 1.6 s. A list of 100,000 costs the agent
    2.2 s of processor time, 200 records at a time.

    Possible faults, and the answer to each:

    - *A change comes while its host is being read.* It is kept, and adopted again after the answer. So a container that
      went meanwhile does not come back by an older answer.
    - *The watch ends, and the store is listed again.* All that matters is read again. Until then the known state stays.
    - *The store is away.* The known state stays, so names stay. A list is refused, because it would not be complete. A
      trace goes on with the known state: the addresses of the others, with their hosts.
    - *An agent starts.* It serves before it has read the others' endpoints. Names stay as the files have them until all
      endpoints of a network are read (``RemoteEndpoints.whole``).
    - *An address must not be given, because the loser of a block has it.* That needs the loser's endpoints. An
      allocation from such a block waits until they are read (``Allocator``), and is refused if they cannot be.
    - *A record cannot be read.* ``status`` names it, and its last readable version stays, if it matters here.
"""
