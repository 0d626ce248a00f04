"""The kinds of state that IPsec is made of: its device, what hosts prove themselves by, connections, their children.

The daemon's own words: a *connection* is how two hosts come to trust each other (IKE), a *child* is which packets they
then encrypt for each other (a pair of ESP security associations, renewed from time to time). Both are configuration;
whether they stand right now is the daemon's to see to, as a session is a BGP speaker's.
"""

from __future__ import annotations

from typing import Literal

from linkspan.core.addresses import Prefix
from linkspan.core.states.host import ALTNAME, Key, State
from linkspan.core.states.programs import Program

Kind = Literal["psk", "key", "certificate", "ca", "crl"]
"""What a file proves or checks: shared key, private key, this host's certificate, its authority's, revocation list."""

PRIVATE: tuple[Kind, ...] = ("psk", "key")
"""Those that are secrets: their files must be root's alone."""


CHARON = "charon"
"""The daemon's name as a Process."""
IKE_PORTS = IKE, NAT = (500, 4500)
"""UDP: RFC 7296 section 2, RFC 3948."""
LIBIPSEC = "libstrongswan-kernel-libipsec.so"
LIBIPSEC_FOLDERS = ("/usr/lib/ipsec/plugins", "/usr/lib64/ipsec/plugins", "/usr/lib/strongswan/plugins")
"""The daemon's plugin that encrypts in user space, and where distributions put it."""
CONTROL = "charon.vici"
"""The daemon's control socket, in the folder of its files."""


class Strongswan(Program, frozen=True):
    """strongSwan's daemon, the folder of its files, whether the kernel has ESP, and who holds IKE's UDP ports.

    Where the kernel has none, ``plugin`` tells whether the daemon can do it in user space (kernel-libipsec).
    """

    daemon: str
    folder: str
    kernel: bool
    plugin: bool
    holders: tuple[tuple[int, str], ...] = ()


class IpsecLink(State, frozen=True, gc=False):
    """The device by which packets go to be encrypted and come decrypted.

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
        """Whether it is the daemon's own TUN."""
        return bool(self.process)

    @property
    def altname(self) -> str:
        """The alternative name by which the device is known as ours."""
        return f"{ALTNAME}{self.name}"


class IpsecCredential(State, frozen=True, gc=False):
    """A file that the daemon has loaded. What is in it is in no state; ``current`` tells that it is what was loaded."""

    kind: Kind
    path: str
    current: bool = True

    @property
    def key(self) -> Key:
        return ("IpsecCredential", self.kind, self.path)


class IpsecConnection(State, frozen=True, gc=False):
    """How this host and a peer prove themselves to each other; ``name`` is the daemon's word for it.

    ``local`` and ``remote`` are underlay addresses, ``remote`` ANYWHERE for a peer behind a NAT, which begins by
    itself, and ``me`` and ``peer`` the identities. ``shared`` tells a shared key from certificates, and ``strict`` that
    one counts only where a revocation list says that it may. Of two hosts
    one begins, ``first``. Seconds: ``rekey`` of an ESP association, ``probe`` of silence after which the peer is asked
    whether it lives. ``encapsulated`` is ESP in UDP, whether a NAT is on the way or not; ``mark`` is on packets that
    came from the peer and names the way to it (XFRM's if_id), 0 in user space.
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
    """What is encrypted in a connection: everything from ``here`` to ``there``, and the other way round."""

    connection: str
    here: Prefix
    there: Prefix

    @property
    def key(self) -> Key:
        where = (self.here.packed, self.here.length, self.there.packed, self.there.length)
        return ("IpsecChild", self.connection, *where)

    @property
    def name(self) -> str:
        """The daemon's word for it."""
        return f"{self.here}={self.there}"


ANYWHERE = "%any"
"""The daemon's word for a peer that may come from any address."""

PREFIX = "ls-"
"""Of our connections' names: ``ls-HOSTID``."""
