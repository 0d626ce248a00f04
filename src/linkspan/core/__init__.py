"""Nouns and pure logic: the model, states, contracts, errors, the reconciler, fights, and the rules.

The reconciler
    ``desired`` keeps states by source, and ``reconcile`` makes observed equal desired. A state waits while the link
    that it needs could not be made. A link with that name may belong to another program, which keeps it unchanged.
    ``supervise`` runs every task that must last as long as the agent: after a fault of linkspan the task starts
    again.

Fights
    If another program undoes linkspan's changes, that is a fight (``fights``, pure): three repairs at once, then
    pauses of 4 to 60 s, one event, and a line in `status`. An object counts only if it is wrong by itself. What
    fell with its link, its table or its setting is put back together with that. An object that the kernel refuses
    is no fight: if a cable is unplugged, the next chance must not be missed. Guards are put back at every look.
    While they are not in force, the host's ends of the containers' links are down: the reconciler puts ``Veth`` with
    ``up=False`` and nothing on it, whatever is desired.

Rules (``ruleset``)
    - Rules never change with the number of containers. They are fixed chains over sets. Isolation compares pool
      addresses, which the guards have made trustworthy, so bridged and routed networks share it. It rejects with an
      ICMP error if it can, because a silent drop costs users an hour.
    - Packets from other hosts are admitted by plain hash sets, keyed by device (and VTEP MAC) and the source cut to
      its network's block length. A map leads from the pool to the chain for that length. Sets with intervals would
      need fewer rules, but to remove one of 4,000 elements from such a set takes 50 ms (measured; 0.06 ms from a
      hash set).
    - One set of tunnels' peers (source, protocol, port) and one set of their ports (protocol, port) serve every tunnel
      that has a port. IPIP has no port, and its protocol number is no part of the same lookup, so it has sets of its
      own.
    - Containers may not send to peers' tunnel ports. Such a packet, masqueraded, would reach the peer with the
      address of its host, and the peer would believe it.
    - There is no flowtable. It forwards before the guard has seen the packet, by addresses and ports alone, so
      another peer could send into a flow that it knows. Instead every packet passes few rules.
    - A port is published by DNAT in two hooks, without a proxy. 127.0.0.1 needs route_localnet on our links, and
      the guard drops packets for 127.0.0.0/8 that come in there. `::1` cannot be published, because the kernel has
      no such switch for IPv6.

Output
    ``escapes`` makes control characters visible wherever text leaves linkspan. The command line passes everything
    that an agent says through it. In JSON and log lines they are JSON escapes.
"""
