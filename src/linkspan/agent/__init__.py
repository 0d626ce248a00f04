"""The agent of one host: composition, plans, healing, status, uninstall.

Healing
    Kernel events carry no state. They mark kinds as dirty, and 50 ms later ``healer`` observes these kinds and
    repairs what differs. Our own changes are left out: by the netlink port, and for nftables by the process that
    NFT_MSG_NEWGEN names. Notifications of forwarding entries carry no port, so the driver notes what it is about to
    change. When a tunnel device had to be replaced, addresses, entries and routes of all sources went with it. So a
    change that creates one again ends with a look at these kinds. Most settings have no events, and all settings
    are read every second. Everything is read every minute.

    What a container does inside its namespace is its own business. There a resync adds what is missing, and removes
    only policy rules and routing tables of ours that no endpoint wants. It looks into a container at the agent's
    start and after the container's veth pair had to be made again. `diff` looks into containers, too, and says that
    nothing is put back there. `status` does not look, because that costs a socket and several dumps for each
    container.

    Another program that undoes linkspan's work is a fight (``core/fights``).

Order of changes
    A network's new states are applied first, then the peers follow, and then what the network no longer needs is
    dropped (``plans``). So no entry of a peer is left without its device.

Forwarding
    If linkspan turned forwarding on, packets do not pass between links that existed before and did not forward.
    Links that other programs create later belong to those programs. No list of names would be exact enough, because
    every runtime and every user names bridges differently. Whoever writes 1 to the setting again opens the host,
    because inotify reports writes that change nothing (``forwarding``).
"""
