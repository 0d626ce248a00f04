"""IPsec: ESP between hosts; an instance of strongSwan's daemon, our own, agrees on the keys.

Daemon, device and credentials are one source of states. Connections (who the peer is) and their children
(what is encrypted) are states of peers, keyed by peer and by pair of prefixes. The driver loads a peer's
connection as a whole. Whether an association is established is no state. ``agent/ipsec_sessions`` starts what is
missing, ends duplicates, and reads the reason for people from the daemon's log. One XFRM interface serves all peers.
Routes name the peer by `encap xfrm if_id`, associations name the sender by a mark, and the guard admits a packet only
if mark and source belong together.

When associations are started
    In the background, by the agent, at a bounded rate: 100 exchanges at once, then 50 a second. A host with a thousand
    peers has all of them after 18 s, or after half of that, because the peers start, too. The daemon starts none by
    itself (``start_action``, ``dpd_action``): it would start a thousand at once, and again after each outage.

    To start them by the first packet (trap policies) was rejected, for three reasons. The packet is dropped, by the
    kernel (net.core.xfrm_larval_drop) and by the daemon in user space, so each first connection between two hosts
    would wait for a retransmission. In user space older versions of strongSwan start nothing then (strongswan#147;
    6.0.1 does). And a wrong credential or a firewall between two hosts would show only when somebody needs the path:
    `status`, `doctor` and `trace` could not distinguish an idle path from a broken one.

    So an association that is not up has one of two reasons. Its turn has not come: `status` and `doctor` count those,
    and no check fails. Or it was tried: then `status` says what the peer answered.

What could go wrong, and why it does not
    - *kernel-libipsec insists on routes of its own, and they would win over ours in a migration.* They are in table
      76, behind a rule (40000) after all tables that count.
    - *A credential whose file changed still counts beside the new one.* All credentials are unloaded and loaded
      again, and what was established with them is ended.
    - *XFRM sends a packet through postrouting once before it encrypts it, with the underlay's device as output.*
      The seal accepts packets that are about to be encrypted (`rt ipsec exists`).
    - *Both hosts start at once, and each ends the other's association.* One of the two starts at once and the other
      a second later. Only the first one ends duplicates.
    - *An agent of this version comes to a daemon that one before it configured.* The daemon would end the associations
      of a child whose start action changes. So such connections are loaded with the old action until they go, or the
      daemon starts again.
    - *A new daemon does not know where a peer behind a NAT is.* The agent remembers it, and the daemon tries there
      once.
    - *A host restarts and knows nothing, while the other one uses the old association.* The first message of a new
      daemon says so (INITIAL_CONTACT, RFC 7296 section 2.4), and the other host drops the old association.

Measured or found
    libipsec's device must keep its name ``ipsec0``, because the daemon looks it up by name when it adds routes. A
    CRL needs an authorityKeyIdentifier, or strongSwan does not find it. Our instance is ready 50 ms after its
    start.
"""
