"""The SDN controller: settings, election, the devices that it programs, and its own API.

``holders`` reads claims from the store, ``backends/sdn/fabric`` collects what switches have seen, and
``backends/sdn/flows`` is the pure function from both to every switch's flows. A reconciler for each device
(``devices``) makes observed equal desired, through ``kernel/drivers/openflow`` or ``kernel/drivers/frr``.
These drivers have the same contract as the agent's. A driver for another kind of device is one file there,
with ``observe`` and ``apply``.

Choices, and why
    - *`ovs-ofctl`, not os-ken.* os-ken needs the switch to call us and to know each controller. It brings a dozen
      packages, and leaves bundles, retries and the parsing of matches to us. ovs-ofctl belongs to Open vSwitch,
      speaks OpenFlow 1.3 over unix, TCP and TLS, and takes a batch as one bundle: all or nothing. 2,000 flows in a
      batch and a dump of as many cost it 25 and 11 ms. OVSDB is not needed: a switch's own configuration (ports,
      TLS, what it does with hosts' own traffic) is its operator's.
    - *No packet comes to the controller.* The switch's own `learn` action finds hosts and links: an answer to our
      question makes the switch note port and MAC in a table. So there is no connection to keep and nothing that a
      container can flood. A controller that takes over reads at once what the one before it found.
    - *Hosts are asked.* A host answers an ARP probe without a sender's address whatever routes it has. For IPv6 it
      is solicited from the gateway's link-local address. The answer goes to the gateway's MAC, so no flow has to
      look at the hosts' own traffic.
    - *Notes of links carry MACs made from the cluster's id, and a link counts when both ends have heard each
      other.* A forged LLDP frame would make a host's port one between switches, whose packets are believed. A frame
      that was heard on a host's own port and sent on at another switch is heard at one end only.
    - *Notes are limited for each port, by its own cookie.* A host that answers with ever new MACs leaves room for
      the notes of other ports.
    - *One virtual gateway serves all networks.* A host has one neighbour for each address family. Isolation is by
      the source's prefix, in the metadata. Packets from the gateway are admitted by its MAC (``gateways`` in
      ``core/ruleset``), and no host may send from that MAC.
    - *The answer to a solicitation sets an advertisement's flags and option by the stack (`push`, `pop`).* With the
      kernel's data path, Open vSwitch 3.5 refuses `set_field` for these two, and the whole bundle with them. What
      uses the stack it accepts and executes in its daemon, which makes such answers with either data path
      (``tests/kernels`` checks it).
    - *Each device has a thread of its own.* A device that hangs delays no other. The devices do one thing together:
      nobody asks for hosts before all that answer have flows, because a switch without flows forwards what it
      should note.
    - *A look each 0.6 s, and no notifications.* OpenFlow 1.3 reports the removal of flows only if each was added
      with a flag, and it never reports changed flows.
    - *The record ``alive/(controller)`` elects one of several controllers.* Who has it is the leader, and steps
      down half a second before the record can expire. No host can have that name. Agents ask the leader for a part
      of a trace as they ask each other.
    - *Flows are spared* (``flows.spared``) if their host is not found or no way to it is known: for 3 s after a
      takeover, for 3 s after each switch's first answer, and for as long as a switch was never seen. What another
      controller put is right; this one may not know yet why.
    - *A network of backend sdn is refused while no controller is active* (``cluster/controller_status``). Hosts
      would send into nothing, and only the switches' counters would show it.
"""
