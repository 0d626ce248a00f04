"""DNS for containers: one server for each network on each host, and the states and names of each server.

``zone`` is pure: it turns endpoints into a server's files, its process and set elements. ``service`` applies them
in a separate task, so no attach waits for DNS. About twice a second it reads inputs without events (resolv.conf), and
it plans again only if they changed. No records store the names: these come from the endpoints that hosts publish
(``remote_names``) and from the liveness of hosts (``cluster/presence.py``). A dead host's names are gone within 5 s.

Possible faults, and the answer to each
    - *A server that watches its files takes one of a user's 128 inotify instances, and a host may have more
      networks than that.* The server watches nothing. SIGHUP makes it read both files (``Process.hup``). ``nohup``
      protects it from a SIGHUP that comes too early.
    - *A burst of containers causes a write and a reload for each.* There is one file for this host's names and one
      for the others'. ``service`` waits 0.05 s for further changes and leaves 0.15 s between two reloads. After a
      change on another host only that host's lines are made again (``remote_names``).
    - *The first resync of a new agent stops the servers.* They become desired before that resync (``take_over``).
      While the store has not answered, the other hosts' names stay as the file has them.
    - *The gateway's address is not yet, or no longer, on a link.* A server starts with the network's first
      container and runs for some seconds after the last one. A bound socket outlives its address. If the network has
      several pools, the server listens only at the gateways of those that the host uses: the host has no others.
    - *Another process has the port.* The agent checks that before a start, and names the process. Then there is no
      server, no rule that redirects queries to one, and no server address in a runtime's result.
    - *A server hangs.* Each second the agent asks it for a name that only it can answer. A server that misses three
      questions and used no processor time meanwhile hangs. During a storm of questions it uses processor time.
    - *A question comes from outside, or from another network.* The chain ``input`` refuses it by (source, gateway).
      The guard has checked the source.
    - *A container receives the question, because it publishes port 53.* Questions to a server are never translated.
      The server's socket does not keep a container from publishing port 53 (``port_owners.holders``, ``besides``).
    - *A runtime takes no server from a plugin.* Its containers ask the host's resolvers. A map from pool to gateway
      redirects these questions to their network's server. Docker's 127.0.0.11 asks the resolvers from inside the
      container's namespace. If the host's resolver is on its loopback, Docker gives containers public resolvers, so
      questions to those are redirected, too.
    - *The server forwards to itself.* The agent leaves out gateways from the resolvers in resolv.conf, however they are
      written there. A container may be the host's resolver (its address is one, or it publishes port 53). Questions
      of such a container, and questions from another host, are not redirected. dnsmasq finds the remaining loops
      itself (``--dns-loop-detect``).
    - *One container asks so much that others get no answer.* Rules count open TCP connections and UDP packets for
      each source (``ruleset._counted``), in sets that the kernel fills.
    - *The host's resolver knows another network's names and answers them.* No server forwards names that end with a
      network's whole domain.
    - *Names carry data out of an internal network.* Its server forwards to nobody.
    - *A container in several networks finds the names of one only.* A server gives all clients the same answers. So
      each combination of networks that a container on the host is in has a server of its own (``zone.view``). A map
      redirects the questions of such a container there, by its address. ``zone.views`` finds the combinations by
      the endpoints' namespaces.
    - *A container asks that server for names of a network that it is not in.* The chain ``input`` accepts by
      (source, gateway, port), with one element for each address of the containers in that combination. The element
      is removed with the endpoint, and the entries of connection tracking with the element
      (``NameService._forget_questions``).
    - *Servers of two combinations want one port.* The port follows from the networks' names. In the rare case of a
      collision the combination that comes later in the alphabet takes the next port (``zone.ports``).

A name with a dot is answered only inside the network's domain. Otherwise anyone who may name a container could
impersonate any outside host. If two containers on different hosts have one name, the answer has the addresses of both,
as for an alias. That is no conflict, and no rule could decide which of them is right.
"""
