"""Trace: where a packet goes, by the kernel's own answers, on one host or across the cluster.

Parts
    ``trace.trace`` is a generator. It yields (host, where the packet comes in) and receives that host's part. So
    the same code runs on one host, across a cluster by asking (``agent/cluster_trace``), and in tests over
    namespaces without agents. A part (``between_hosts``) ends where the packet is delivered, dropped, or leaves by
    the underlay. It includes what is around the packet at that point. The neighbour table believes for half a
    minute what it heard last, so the next hop on the underlay is asked by ARP or neighbour solicitation. If it is
    silent, the other host's own view (its link is down) is preferred as the reason. A part that no host told is
    never called reachable.

Three verdicts
    A wrong "reachable" costs more than no answer. So the verdict is reachable, broken or unknown. In each
    namespace, at every hook that the packet passes (``netfilter_hooks``), the walk asks: all tables of nftables and
    iptables by their priorities, with the marks, TTL, translations and `notrack` that one chain sets and the next
    one sees; bridge, netdev and ARP hooks; XFRM policies; policy rules. A match is true, false or not known. If it
    is not known whether a rule applies, both cases are worked through. The rule is named only if the packet's fate
    depends on it (``verdict.Doubts``). Programs (XDP, tcx, tc filters) and other programs' queueing disciplines
    cannot be read, so each is an unknown place. The walk continues after such a place, because a certain stop later
    outweighs it. The neighbour table is compared with the MAC that the other end has or answers with. If the table
    has no entry, the next hop is asked.

    No kernel shows what is between two hosts. So each host adds what its own pings show (``cluster/peer_ping``): a
    peer that is silent, also when it is asked once more, is an unknown place. So is the link by which a packet
    leaves for a host outside linkspan, or comes from one (``Unknown.beyond``). There an answer to a live packet
    proves the way, and silence proves nothing.

    A traced packet represents many. A client's port is any of those that its kernel chooses from
    (``Packet.client``), a tunnel's flow may be new or old (``FLOWING``), and a connection's later segments may meet
    other rules than its first (``Packet.later``). A rule is certain if it says the same for all of them. A single
    live packet decides about packets like itself: it proves its own size (a second ping proves the path's MTU), and
    leaves doubts about later segments (``Unknown.later``) as they were.

Routers and live packets
    A router between hosts is not linkspan's, and nobody can ask it. So if the way leads through one, the peer's own
    address in the network is pinged by the very way that the packet takes, with DF and in several sizes at once.
    What comes back is the path's MTU, and an ICMP error of a router gives the reason. A live trace listens on all
    hosts for a mark that is chosen before it is sent: the payload of an echo request, or the sequence number of a
    SYN (set by TCP_REPAIR, the only way to choose it).

Rejected
    Questions to other hosts about single routes, neighbours, FDB entries, verdicts and MTUs. A part is one answer,
    and describes one moment (``cluster/questions``).
"""
