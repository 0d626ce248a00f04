"""Endpoints of this host: attach, detach, update and check, the journal, and recovery from a lost journal.

One attach
    ``attach`` allocates addresses from memory, writes its intent to the journal, applies the endpoint's states,
    writes the result and answers. There is no undo log. If an agent is killed during an attach or a detach, the
    next agent finds the row. That endpoint is not desired, so the first resync removes what is left of it.

Which namespace
    A container's network namespace is known by its inode **and** its cookie (SO_NETNS_COOKIE;
    ``Endpoint.namespace``). The kernel gives the inode of a deleted namespace to the next one at once. It never
    uses a cookie twice. States name a namespace by its inode alone, so the endpoints of two namespaces with one
    inode must never exist together:

    - Before an endpoint is attached, or is found where a runtime moved it, ``delivery.make_way`` detaches the
      endpoints of the dead namespace. A descriptor holds the living namespace open meanwhile.
    - Every function that opens a namespace compares the cookie. So a namespace that linkspan never attached
      receives nothing that was meant for a dead container.
    - An older release's journal may have no cookie. Then the veth pair says which namespace it leads into
      (RTM_GETNSID). If the pair is gone, the endpoint is gone.
    - A kernel before 5.14 has no cookies. There the inode is all that linkspan can compare.

Who knows the endpoints
    Three sources know them: the journal, the kernel, and the store's records of this host. At its start the agent
    compares the journal with the kernel (alternative names of veth pairs, the MACs and addresses in our rules,
    published ports) and with the store (``recovery``; ``reconstruction`` is the pure part).

    - Addresses are read from our own rules, not from inside the container, because a container could claim another
      one's address there.
    - The kernel does not know a container's id, but the name of a veth pair is a digest of it. So an id that a
      runtime names later is recognised (``rename``).
    - If the sources do not say enough about a pair, it is desired as it was observed until its grace time ends
      (``orphans``). The same holds for the pair of a row whose network has no record, not even a tombstone. The row
      says whose pair it is as soon as the network is back.
    - The journal and the file ``journal.witness`` beside it carry the same number. If the numbers differ, the
      journal is not the one that the last agent wrote.

Several networks
    Each endpoint's own states follow from the endpoint and its network alone. What follows from all interfaces of a
    container (policy rules, their routing tables, the target of published ports) is one source of states,
    ``("container", INODE)``. It is applied in one batch with the endpoint's own. ``Registry.one_in`` serialises the
    changes of one namespace's endpoints. ``multihoming`` has the rules and what can go wrong with them.

MAC addresses
    A MAC is derived from the endpoint's address. So a neighbour cache that remembers the address's last holder is
    still right.
"""
