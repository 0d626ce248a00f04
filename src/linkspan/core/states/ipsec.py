"""IPsec states: the device, hosts' credentials, connections, and their children.

The terms are the daemon's: a *connection* is how two hosts authenticate each other (IKE), a *child* is which
packets they then encrypt for each other (a pair of ESP security associations, renewed from time to time).
Both are configuration. Whether they are established is the daemon's task, as a session is a BGP speaker's.
"""

from __future__ import annotations

from typing import Literal

from linkspan.core.addresses import Prefix
from linkspan.core.program import Program
from linkspan.core.states.host import ALTNAME, Key, State

Kind = Literal["psk", "key", "certificate", "ca", "crl"]
"""What a file is for: shared key, private key, this host's certificate, its authority's, revocation list."""

PRIVATE: tuple[Kind, ...] = ("psk", "key")
"""The secret ones: only root may read their files."""


CHARON = "charon"
"""The daemon's name as a Process."""
IKE_PORTS = IKE, NAT = (500, 4500)
"""UDP: RFC 7296 section 2, RFC 3948."""
LIBIPSEC = "libstrongswan-kernel-libipsec.so"
LIBIPSEC_FOLDERS = ("/usr/lib/ipsec/plugins", "/usr/lib64/ipsec/plugins", "/usr/lib/strongswan/plugins")
"""The daemon's plugin that encrypts in user space, and its path in distributions."""
CONTROL = "charon.vici"
"""The daemon's control socket, in the folder of its files."""


class Strongswan(Program, frozen=True):
    """strongSwan's daemon, the folder of its files, whether the kernel has ESP, and who uses IKE's UDP ports.

    If the kernel has no ESP, ``plugin`` says whether the daemon can encrypt in user space (kernel-libipsec).
    """

    daemon: str
    folder: str
    kernel: bool
    plugin: bool
    holders: tuple[tuple[int, str], ...] = ()


class IpsecLink(State, frozen=True, gc=False):
    """The device through which packets go to be encrypted and come decrypted.

    It is the kernel's XFRM interface, or the TUN that the daemon of this name, ``process``, makes for itself.
    """

    name: str
    mtu: int
    process: str = ""
    up: bool = True
    amiss: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("IpsecLink", self.name)

    @property
    def tun(self) -> bool:
        """Return whether it is the daemon's own TUN."""
        return bool(self.process)

    @property
    def altname(self) -> str:
        """Return the alternative name that marks the device as ours."""
        return f"{ALTNAME}{self.name}"


class IpsecCredential(State, frozen=True, gc=False):
    """A file that the daemon has loaded. Its content is in no state; ``current`` says that this content is loaded."""

    kind: Kind
    path: str
    current: bool = True

    @property
    def key(self) -> Key:
        return ("IpsecCredential", self.kind, self.path)


class IpsecConnection(State, frozen=True, gc=False):
    """Mutual authentication of this host and a peer; ``name`` is the daemon's word for it.

    ``local`` and ``remote`` are underlay addresses, ``remote`` ANYWHERE for a peer behind a NAT, which starts
    by itself, and ``me`` and ``peer`` the identities. ``shared`` distinguishes a shared key from
    certificates. ``strict``: a certificate is valid only if a revocation list confirms it. Of two hosts one
    starts, ``first``. In seconds: ``rekey`` is the lifetime of an ESP association, ``probe`` the silence
    after which the daemon asks whether the peer lives. ``encapsulated`` is ESP in UDP, with or without a NAT
    in between. ``mark`` is on packets that came from the peer and names the way to it (XFRM's if_id), 0 in
    user space.
    """

    name: str
    local: str
    remote: str
    me: str
    peer: str
    shared: bool
    strict: bool
    first: bool
    rekey: int
    probe: int
    encapsulated: bool
    mark: int

    @property
    def key(self) -> Key:
        return ("IpsecConnection", self.name)


class IpsecChild(State, frozen=True, gc=False):
    """Packets that a connection encrypts: everything from ``here`` to ``there``, and back."""

    connection: str
    here: Prefix
    there: Prefix

    @property
    def key(self) -> Key:
        where = (self.here.packed, self.here.length, self.there.packed, self.there.length)
        return ("IpsecChild", self.connection, *where)

    @property
    def name(self) -> str:
        """Return the daemon's word for it."""
        return f"{self.here}={self.there}"


ANYWHERE = "%any"
"""The daemon's word for a peer with any address."""

PREFIX = "ls-"
"""Prefix of our connections' names: ``ls-HOSTID``."""
