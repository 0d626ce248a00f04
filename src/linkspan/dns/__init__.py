"""DNS for containers: one server per network and host, and what each server is told.

``zone`` is pure: it turns endpoints into a server's files, its process and set elements. ``service`` applies them
in a task of its own, so no attach waits for DNS. Twice a second it checks what sends no event (resolv.conf), and it
plans again only if that changed. Names have no records of their own. They follow from the endpoints that hosts
publish (``remote_names``) and from which hosts are alive (``cluster/presence.py``): a dead host's names are gone
within 5 s.

What could go wrong, and why it does not
    - *A server that watches its files takes one of a user's 128 inotify instances, and a host may have more
      networks than that.* The server watches nothing. SIGHUP makes it read both files (``Process.hup``). ``nohup``
      protects it from a SIGHUP that comes too early.
    - *A burst of containers causes a write and a reload for each.* There is one file for this host's names and one
      for the others'. ``service`` waits 0.05 s for further changes and leaves 0.15 s between two reloads.
    - *The first look of a new agent stops the servers.* They are desired before that look (``take_over``). While
      the store has not answered, the other hosts' names stay as the file has them.
    - *The gateway's address is not yet, or no longer, on a link.* A server starts with the network's first
      container and outlives the last one by a while. A bound socket outlives its address. Of several pools the
      server listens at the gateways of those that the host uses, because the host has no other gateway.
    - *Another process has the port.* The agent looks before a start and names that process. Then there is no
      server, no rule that leads to one, and no server address in a runtime's result.
    - *A server hangs.* Each second it is asked for a name that only it can answer. If it misses three questions and
      used no processor time meanwhile, it hangs. During a storm of questions it uses processor time.
    - *A question comes from outside, or from another network.* The chain ``input`` refuses it by (source, gateway).
      The guard has checked the source.
    - *A container receives the question, because it publishes port 53.* Questions to a server are never translated.
      The server's socket does not keep a container from publishing port 53 (``port_owners.holders``, ``besides``).
    - *A runtime takes no server from a plugin.* A map from pool to gateway leads its containers' questions to the
      host's resolvers to their network's server instead. Docker's 127.0.0.11 asks these resolvers from inside the
      container's namespace. If the host's resolver is on its loopback, Docker gives containers public resolvers, so
      questions to those are led there, too.
    - *The server forwards to itself.* Gateways are left out of what resolv.conf names, however it writes them. A
      container may be the host's resolver (its address is one, or it publishes port 53). What such a container
      asks, and what comes from another host, is led to no server. dnsmasq finds the remaining loops itself
      (``--dns-loop-detect``).
    - *One container asks so much that others get no answer.* Rules count open TCP connections and UDP packets for
      each source (``ruleset._counted``), in sets that the kernel fills.
    - *The host's resolver knows another network's names and tells them.* No server forwards names that end with a
      network's whole domain.
    - *Names carry data out of an internal network.* Its server forwards to nobody.
    - *A container in several networks finds the names of one only.* A server answers everybody alike. So each
      combination of networks that a container on the host is in has a server of its own (``zone.view``). A map
      leads the questions of such a container there by its address. ``zone.views`` finds the combinations by the
      endpoints' namespaces.
    - *Somebody asks that server for names of a network that they are not in.* The chain ``input`` accepts by
      (source, gateway, port), with one element for each address of the containers in that combination. The element
      goes with the endpoint, and the entries of connection tracking go with the element
      (``Naming._forget_questions``).
    - *Servers of two combinations want one port.* The port follows from the networks' names. In the rare case of a
      collision the combination that comes later in the alphabet takes the next port (``zone.ports``).

A name with a dot is answered only inside the network's domain. Otherwise anyone who may name a container could pose
as any outside host. If two containers on different hosts have one name, both are answered, as for an alias. They
are not in conflict, and nothing could say which of them is right.
"""
