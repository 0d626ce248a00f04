"""Protocols of the kernel and of daemons: netlink, nftables, namespaces, D-Bus, vici, files, packets.

- A netlink batch asks for one acknowledgement, with its last message. Errors come without being asked for, in
  order.
- Netlink is packed with ``struct``, not with pyroute2. What was left for pyroute2 (tbf, ctnetlink) is less code on
  the sockets that exist anyway, and saves 9 MB of memory.
- Each message of netlink has one reader (``link_messages``, ``address_messages`` and so on). Drivers, probes and
  traces use it, so an attribute means the same to all of them.
- A container's namespace is addressed by inode and distinguished by cookie (``namespaces``). One netlink socket is
  created inside it and used from outside. It is closed with the batch, because an open socket would keep a dead
  container's namespace alive.
- An agent has one inotify instance for everything that it watches (``inotify``): root has 128, and a lab has an
  agent for each of its hosts. If no instance is left, the agent polls every few seconds, and doctor warns that the
  agent cannot notice who turns forwarding on.
"""
