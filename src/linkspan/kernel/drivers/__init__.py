"""Drivers: each observes and applies some kinds of state on the real machine (``core/driver_contract``).

How links are changed
    - A veth pair is complete when it appears: pair, alternative name, master, hairpin and up are one send. The
      kernel processes it inside the call, so no kill can fall between two steps.
    - A driver waits for the notification of a link's deletion (0.4 ms), not for the acknowledgement (16 to 20 ms).
      It recognises the link by its index, because the name may be in use again.
    - A bridge is created with an MTU one less than its own and then changed. Only a bridge whose MTU was changed
      does not follow the MTU of its ports.

How rules are compared
    A rule is compared as nft lists it. A version of nft that prints it in another way costs one more transaction at
    start. What nft lists after a put counts only if the ruleset's generation says that nobody else changed anything
    in between. Otherwise linkspan would take a chain that somebody emptied at that moment for the right one.

WireGuard
    `wg` configures the kernel's device and wireguard-go's in the same way, with at most three commands for each
    batch. pyroute2's generic netlink knows the kernel's device only, and wireguard-go's socket is another protocol.
    Keys go through files and standard input. WireGuard has no events for its changes, so it is asked every second.

What can stop packets, and how linkspan notices
    Some attributes stop packets if they have any other value than the kernel's default. linkspan leaves them as the
    kernel makes them, so no desired state has them. A driver observes a wrong value in ``amiss``, and a put sets it
    right (``link_attributes`` has the tables, and says what was left out and why). A new attribute is one line in a
    table. Settings of links come with the link's own message (``kernel/io/devconf``). Queueing disciplines and
    forwarding have events of their own.

    - Links: flags, mode, state, protodown, master. Bridge ports: flags and state. Bridges: STP, VLAN filtering,
      ageing, the limit of learnt MACs, the querier, the calls of iptables. Noticed by: events of links; fields of
      the state, or ``amiss``.
    - A lost alternative name. Noticed by: the same events. Kind and MAC (for VXLAN also the VNI, for WireGuard and
      XFRM the group) show that the link is ours.
    - A VXLAN device with another TTL or device, one that answers for others, or one of the collecting kind. Noticed
      by: it is observed with VNI 0, so it is replaced.
    - A root qdisc of another program on one of our links. Noticed by: events of TC. The kernel's own qdiscs have
      handle 0.
    - Forwarding, rp_filter and proxy_arp of a link. Noticed by: events of netconf, and the look each second.
    - arp_ignore, proxy_arp_pvlan, route_localnet, redirects, accept_ra, disable_ipv6 of a link. Noticed by: the
      look each second.
    - arp_ignore and proxy_arp of all links, `mcast_solicit` of a link, a macvlan in mode passthru on one of ours:
      `doctor` names them.
    - An address with a peer, another scope, broadcast address, lifetime or metric, or with other flags. Noticed by:
      events of addresses; ``amiss``. The driver removes the address and adds it again.
    - A route of another type, with a hop limit, an encapsulation or several next hops. Noticed by: events of
      routes; ``amiss``.
    - A route of the host's own inside a pool, and a container's address on the host itself. Noticed by: events of
      routes and addresses. They belong to others, so `status` and `doctor` only name them.
    - Missing kernel routes of an address (table local, the prefix). Noticed by: events of routes. The address is
      ``amiss``, and is removed and added again.
    - Neighbours that the kernel never checks (permanent, noarp), and static or local entries of a bridge port.
      Noticed by: events of neighbours. On our links only linkspan's entries are right.
    - A dormant nftables table. Noticed by: events of nftables; ``amiss``.
    - Other programs' rules, policy routing, XDP and tc programs, settings of the underlay's link. They are for
      others to decide, so `trace` and `doctor` name them.
"""
