"""Policy: who may talk to whom, by labels.

A policy selects endpoints by labels, network, host or name, and says what may come in (``ingress``) and go out
(``egress``). It is a record ``policies/NAME``, the same for all hosts. A packet's way through a policy:

1. ``document`` reads YAML files, ``kubernetes`` those of Kubernetes' APIs. Both make ``model`` values, each rule
   with its line. Only the command line does that, so the agent has no YAML in memory.
2. ``judge`` is the one meaning of policies: a pure function from two parties, a protocol and a port to a verdict with
   the policy and line. `policy can`, `who-can` and `test` ask it, and the agent asks it which flows to cut.
3. ``rules`` says the same in nftables: ``readings`` has the names, ``endpoint_elements`` what an endpoint adds. A test
   compares both on random policies.
4. ``agent/policy_enforcement.py`` keeps the states up to date. ``endpoints/registry.py`` adds an endpoint's elements to
   what an attach puts. So a container is under its policies before its link is up.

**Meaning.** Rules are looked at by the policies' order, then their names, then as they are written. The first that
matches decides. If none does, an endpoint that a policy isolates is refused, and else its network's default counts. A
policy isolates a direction that it has if it allows something there, or nothing at all (no rule); one that only denies
leaves the rest as it was. These are the semantics of Kubernetes' NetworkPolicy, with order and deny in addition. A
default-deny network is a last policy that isolates all its endpoints for what comes in.

**Tiers.** Policies of tier admin come before all others, and those of tier baseline after them, before the networks'
defaults. They isolate nothing, and a rule of theirs may pass a connection on to the next tier, past the rest of its
own. What the usual policies isolate never comes to the baseline. These are the semantics of ClusterNetworkPolicy.

**Staged policies** are records of another kind, ``staged/NAME``, so agents of earlier versions never enforce them. What
would be is a judge of its own (``regime``): the enforced policies, with staged ones in their places. Its chains,
``staged_out`` and ``staged_in``, are like those below, come after them, and pass everything. Only endpoints that a
staged policy selects, or the version that it replaces, enter them. What they would refuse is counted in dynamic sets,
by both addresses, protocol and port. The kernel keeps these counts over restarts; the judge says whose each is.

**The log** of refused packets is a rule with nflog in the chain to which all refusing rules lead. The kernel copies
packets only while somebody listens, so it costs nothing to have the rule. The judge says which line refused a packet.

**Enforcement.** Ingress is enforced on the receiver's host, egress on the sender's, each in a base chain of its own at
``forward``, because ``accept`` ends only one base chain. Without policies there are no such chains, so no packet pays.

    policy_out   established flows pass; packets from a policed endpoint go to the chain of their family
                 a TCP packet to it that begins no connection and belongs to none: reset
    policy_out4  an invalid packet (late, or out of its connection's window): drop
                 a TCP packet that begins no connection and belongs to none: reset
                 an address of a pool that no known endpoint or host has: drop, so that a retry succeeds
                 the map policed_by_out4 leads from the endpoint's address to the chain of its policies
    policy_out4_by_DIGEST    the policies about it, in order: a jump to the chain of each, and then, if one of them
                             isolates, to the chain that refuses
    policy_out4_DIGEST       a policy's rules; each ends with accept, or there
    policy_out4_DIGEST_no    what it isolates goes to policy_refused (log, reject)
    policy_out4_after_TIER   where rules lead that pass something on to the next tier: a map leads from there to a chain
                             of the endpoint's later policies
    policy_in    the same for packets to a policed endpoint

Each selector of peers is a set of addresses, ``chosen4_DIGEST``, which several rules share. Endpoints with the same
policies share a chain ``..._by_DIGEST``, whose name follows from its content. So rules grow with policies and with
combinations of them, never with containers. A new flow pays for the policies about its endpoint only, an established
one for none. An endpoint that comes or goes is a few elements of plain sets and one of a map (by netlink, without
libnftables, which would take 2 ms and more), and another label moves it to another chain within one transaction.

**A change of one policy** costs what differs, and not what there is (``regime_difference``). Policies that are the same
objects are not read again. Other ports or lines are that policy's own chains: no endpoint is looked at. Other peers are
elements of their selectors' sets: other hosts' endpoints are compared with these selectors alone. If it is about other
endpoints, or is new, those on this host get another chain. Large new sets are filled before the rules that use them.

**Flows that a change forbids** are cut. Their entries in connection tracking are deleted after the rules are there. The
next TCP packet of either end then belongs to no connection, and the rules above reset it. UDP is judged again with its
next packet. If the policed end sends that one, it is a flow that this end begins: the other direction judges it.
A TCP connection that connection tracking met in the middle is judged both ways: its first tracked packet, which may be
an answer, does not say who began it.

**A container and its own host** always reach each other, as in Kubernetes: neither passes ``forward``. Networks stay
isolated from each other, whatever a policy allows (``core/ruleset.py``).

**DNS names.** A peer by name is a set whose elements end by themselves (``name_rules``). The agent fills it with what
the networks' name servers answer (``agent/policy_names.py``). A name only ever opens: a rule that denies by name would
miss the first packets. The judge knows the names of an address from the agent, which has them of this host alone, so
`policy can` answers about names from the records, and about addresses as far as this host knows.

Rejected: dnsmasq's ``--nftset`` (elements without an end; not put again when the cache answers; a name means all names
below it), an own name server in between (DNS would need the agent), to hold answers back until the set is filled
(NFQUEUE, which many kernels lack, and a stopped agent would stop DNS).

**Bridges.** The bridge family has no connection tracking and no reject on many kernels. So a bridge whose network a
policy may be about passes its frames to the inet family (``BridgeFilter``: br_netfilter, for this bridge alone), where
they come in and go out by the bridge. Addresses there are those of the guard: also link-local ones. One rule is the
bridge family's own: a container under ingress gets only packets to its addresses, because broadcasts would pass the
rules above, which go by the receiver's address.

**Ports of the host.** A container on its host's own network has no address of its own, so ingress is about the ports
that it publishes: maps lead from these, instead of from an address, to the same chains of policies. Only where a policy
may be about such a container are there rules for packets to the host. What it sends nobody can tell from the host's.

    policy_in_ports   at ``input``: established flows and the host's own pass; packets to such a port go to
    policy_in4_port   as policy_in4: the map policed_by_port4 leads from the port to the chain of its policies
    policy_out_ports  at ``output``, for who speaks first after a cut: as the same rule in policy_out

What is not enforced is said: policies that name a bridged network without br_netfilter, or one of backend host and have
egress, are refused, and those that may select its endpoints are accepted with a warning.
"""
