"""SDN: the underlay's own switches or routers carry the packets, and a controller programs them.

A host's part is a backend like any other (``backend``), constant in the number of peers. The gateway is a
neighbour on the underlay's own device, so protocol number 76 marks it as ours there. ``fabric`` collects what
switches have seen, and ``flows`` is the pure function from the records and the fabric to every switch's
flows. The package ``controller`` has the rest and its design notes.
"""
