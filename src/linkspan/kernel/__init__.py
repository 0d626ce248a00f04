"""This machine: the drivers (``drivers``), what can be asked (``probe``), the protocols (``io``), and the worker.

One thread at a time uses the drivers (``worker``), so a change and a resync never interleave. Usually it is the
worker's own thread, in the order of the calls. The event loop's thread does the short work of an attach itself
while the drivers are free (``run_brief``), because the way to another thread and back costs a quarter of an attach.
The loop computes what the worker needs, and passes it as values (``Mates``, a snapshot of the peers). The worker reads
no dictionary of the loop, and what it reports of failures is replaced and never changed.

``events`` turns the kernel's events into the kinds of state to look at again. ``agent/healer`` decides when.

The user-space IPIP endpoint is started by its file, isolated (``python -IS``), because it needs the standard
library only. Its path is part of its argv, and another argv restarts it. So the path stays as it is.
"""
