"""WireGuard: one encrypted device, one key and one port on each host.

Device, key and peers follow from the hosts' records, not from the networks. So they are one source, ``("host",
"wireguard")``. It is applied before what networks and peers have on the device, and dropped after it
(``agent/plans``).

``cluster/key_rotation`` describes how a key is changed. Its order is fixed. The host's device must have the new key
*before* other hosts send by it, because WireGuard repeats an unanswered first message only after 5 s. And the other
hosts must know the new key before the device has it. What is lost in between is what the host itself sends, until
the others have seen its record.

What could go wrong, and why it does not
    - *Two devices begin at once, their first messages cross, and both wait 5 s.* The device with the smaller key
      leaves the first word to the other for half a second.
    - *After a crash of wireguard-go, peers send for 15 s by sessions that it has forgotten.* A keepalive makes a
      session at once when the device starts again.
    - *Packets for a peer that roamed go to the address in its record.* The endpoint is written only when it changes
      in the record. The driver observes what was written last.
    - *wireguard-go's socket is one for all network namespaces of a machine.* wireguard-go and `wg` see a folder of
      the state folder as /run/wireguard.
    - *wireguard-go sets the MTU of its device when it starts.* ``WireguardKey`` also has the MTU, and is applied
      after the process.
"""
