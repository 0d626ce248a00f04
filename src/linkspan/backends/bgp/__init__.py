"""BGP: routes between hosts, learnt and announced by one BIRD on each host.

- BIRD's routes are no ``Route`` states. BIRD alone changes them, ten thousand at a time, and it checks the
  kernel's table every second itself. One state, ``LearntRoutes``, represents all of them. They stay while their
  speaker lives or may come back. They are swept after the restart time, and at uninstall. Their metric is
  larger than that of a tunnel's routes, so in a migration the tunnel wins. In the other direction the old
  routes stay until the speaker's routes are seen (``Peer.learnt``).
- BIRD starts with `-R` (graceful recovery, ``Process.again``) only after a death, because with `-R` it waits for
  all peers. A helper that dies again and again is restarted with growing backoff (``kernel/drivers/processes``).
- The control socket is for questions (its first word is `restrict`), with one exception: BIRD disables a session
  that could not listen for good. The agent enables it again once its address and port are free.
- The filter that refuses a prefix writes the reason into an attribute of the route. A second opinion in Python
  could differ.
- BIRD's last error says what happened to a session. A connection tried now says what would happen
  (``diagnose/doctor/bgp_reasons``). TCP MD5 is silent by design, and the kernel's counters distinguish it from a
  firewall.
- A password is a path in settings and states. The driver of ``Secret`` puts its text into the file. Without the
  text there is no file, because a session without its password would be open to anybody.
- In the mesh a host may announce its leases only. The filter of each session follows the store, so a host that was
  taken over cannot take other hosts' addresses. TTL security (RFC 5082) keeps everybody away who is not on the
  segment. A rule keeps containers away, which would arrive masqueraded as their host.
"""
