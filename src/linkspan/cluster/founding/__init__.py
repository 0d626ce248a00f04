"""Founding: a cluster on an etcd that linkspan runs itself, and the way of hosts into it and out of it.

**Who runs what.** The first host begins as the only voter: it runs etcd, at ports of linkspan's own, and a signer. The
cluster makes further hosts voters (``voting``), up to three or five. All others are clients. Without a majority of the
voters nothing can be changed, and what runs continues.

**How a host becomes a voter.** One agent decides for the cluster (``voter_control``): it writes down whom it chose, and
adds the host to etcd's members as a learner. The host, which like every other one follows the list of members, finds
itself in it. It fetches the authorities' keys and root's password from a signer by mutual TLS (``handover``), makes its
certificates, and starts etcd with an empty data folder (``promotion``, ``data_folder``). Once etcd says that the
learner has caught up, the deciding agent makes it a voter. A host that no longer finds itself in the list puts its data
aside and drops the keys. Nobody else ever removes anything from it.

**Trust.** There are two authorities. One signs the certificates of voters for each other (``peer``), the other one
those of hosts and servers (``client``). So a host's certificate is worth nothing at the port where voters replicate. A
certificate has no common name: etcd's JSON gateway would take the name for a user of etcd, and refuse every call. A
host's id is in a URI name. What a host may write is decided by its user in etcd (store/vault.py).

**A join.** The token names the signers' addresses and the client authority's hash. The joiner takes the authority from
the signer without trust, compares its hash, and then sends the token's secret, but only over a connection that this
authority's certificate secures. So a machine in the middle learns no secret. The signer takes nothing but the key and
the host's id from the request: it sets names, usages and times itself.

**Everything can be repeated.** Each step of init and join leaves a file or a record that the next try finds. The last
step is the setting ``store`` and a restart of the agent. Until then the host's own store stays in force.
"""
