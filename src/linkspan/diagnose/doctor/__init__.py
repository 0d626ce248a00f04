"""Doctor: checks of this machine, of each runtime and program, and of the underlay between hosts.

`doctor --peers` (``agent/peer_survey``, ``peer_probe``) asks every host once, all hosts of a group at the same time
(up to 200 hosts are one group). Each host listens, waits until the others listen, sends its peers what each network's
backend declares (``needs``: protocol, port, size, what is inside), and reports what it missed. So N hosts cost N
questions, no host keeps state between questions, and a new backend is probed by its declaration alone. Answers carry
faults only, and a limited number of them, because each goes through the store to every host. The packets are built by
hand (``kernel/io/packets``) and captured before any rule, with no socket on a busy port. Then the receiver compares
what came with its own rules.
"""
