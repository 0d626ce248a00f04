"""Policy: who may talk to whom, by labels.

A policy selects endpoints by labels, network, host or name, and says what may come in (``ingress``) and go out
(``egress``). It is a record ``policies/NAME``, the same for all hosts. A packet's way through a policy:

1. ``document`` reads YAML files, ``kubernetes`` those of Kubernetes' APIs. Both make ``model`` values, each rule
   with its line. Only the command line does that, so the agent has no YAML in memory.
2. ``judge`` is the one meaning of policies: a pure function from two parties, a protocol and a port to a verdict with
   the policy and line. `policy can`, `who-can` and `test` ask it, and the agent asks it which flows to cut.
3. ``rules`` says the same in nftables. A test compares both on random policies.
4. ``agent/policies.py`` keeps the states up to date, and ``endpoints/registry.py`` adds an endpoint's elements to what
   an attach puts. So a container is under its policies before its link is up.

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
                 for each policy: its chain, if it selects the endpoint (the rules; each ends with accept or there)
                 for each policy that isolates: what it selects goes to policy_refused (log, reject)
                 if a tier passes something on: the later tiers are in policy_out4_after_TIER, where such rules lead
    policy_in    the same for packets to a policed endpoint

Each selector is a set of addresses, ``chosen4_DIGEST``, which several rules share. So rules grow with policies, and an
endpoint that comes or goes, or whose labels change, is a few elements of plain sets (0.04 ms, without libnftables).
Each new flow of a policed endpoint pays one lookup for each policy; established flows pay nothing for their number.
Rejected: a map from an endpoint to a chain for its combination of policies. Its elements have verdicts, which take
libnftables 2 ms for each attach.

**Flows that a change forbids** are cut. Their entries in connection tracking are deleted after the rules are there. The
next TCP packet of either end then belongs to no connection, and the rules above reset it. UDP is judged again with its
next packet. If the policed end sends that one, it is a flow that this end begins: the other direction judges it.

**A container and its own host** always reach each other, as in Kubernetes: neither passes ``forward``. Networks stay
isolated from each other, whatever a policy allows (``core/ruleset.py``).

**Bridges.** The bridge family has no connection tracking and no reject on many kernels. So a bridge whose network a
policy may be about passes its frames to the inet family (``BridgeFilter``: br_netfilter, for this bridge alone), where
they come in and go out by the bridge. Addresses there are those of the guard: also link-local ones. One rule is the
bridge family's own: a container under ingress gets only packets to its addresses, because broadcasts would pass the
rules above, which go by the receiver's address.

What is not enforced is said: policies that name a network of backend host, or a bridged one without br_netfilter, are
refused, and those that may select its endpoints are accepted with a warning.
"""
