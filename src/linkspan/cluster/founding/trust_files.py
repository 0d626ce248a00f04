"""Files of trust in the state folder: what a host has of its cluster, and what only a voter has."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlencode

import msgspec

from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.remedies import reason, remedy
from linkspan.core.store_url import OWN_CLIENTS, OWN_PEERS, OWN_SIGNER, TRUST, etcd_parts
from linkspan.kernel.io.durable_files import write
from linkspan.kernel.io.private_files import alone, apart
from linkspan.store.vault import ROOT, user_of

FOLDER = "cluster"
"""The folder in the state folder, for root alone."""
RECORDS = "linkspan"
"""Prefix of the records in linkspan's own etcd, as the store's URL has it."""
RECORDS_PREFIX = f"/{RECORDS}/"
"""The same, as etcd's keys begin."""


class Voter(msgspec.Struct, frozen=True):
    """A voter's own part: the address of its servers, and whether systemd runs its etcd (else it is a helper).

    ``joins`` are the members of the cluster that its etcd joins at its first start, itself among them, as etcd's
    --initial-cluster has them; '' on the host that began the cluster. ``former`` is the address by which the others
    still know it after a change, '' if none; ``moving``: not all of its files are for the new one yet.
    """

    address: str
    systemd: bool = False
    joins: str = ""
    former: str = ""
    moving: bool = False

    @property
    def clients(self) -> str:
        """Return ADDRESS:PORT of etcd for clients."""
        return _at(self.address, OWN_CLIENTS)

    @property
    def peers(self) -> str:
        """Return ADDRESS:PORT of etcd for other voters."""
        return _at(self.address, OWN_PEERS)

    @property
    def signer(self) -> str:
        """Return ADDRESS:PORT of the signer."""
        return _at(self.address, OWN_SIGNER)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the addresses that its servers' certificates name."""
        return tuple(dict.fromkeys((self.address, "127.0.0.1")))


def _at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class TrustFiles:
    """The files of one host, by their names. All are root's alone."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.folder = state_dir / FOLDER
        self.authority = self.folder / "client-ca.pem"
        """The client authority's certificate, which every host has."""
        self.certificate = self.folder / "host.pem"
        self.coming = self.folder / "host-next.pem"
        """A certificate from a signer, while it is checked."""
        self.key = self.folder / "host.key"
        self.password = self.folder / "password"
        """The password of this host's user in etcd."""
        self.authority_key = self.folder / "client-ca.key"
        self.peer_authority = self.folder / "peer-ca.pem"
        self.peer_authority_key = self.folder / "peer-ca.key"
        self.root_password = self.folder / "root-password"
        self.other_root_password = self.folder / "root-password-other"
        """The next one while it is changed (``root_password``), and the one before until etcd has taken the next."""
        self.revoked = self.folder / "revoked.json"
        """The serial numbers that this voter's etcd refuses, as ``revocation`` marks them."""
        self.left = self.folder / "left"
        """Exists once this host has left its cluster, until it has forgotten it."""
        self._voter = self.folder / "voter.json"

    def voter(self) -> Voter | None:
        """Return this host's part as a voter, None if it is none. Raises Invalid if the file is damaged."""
        try:
            return msgspec.json.decode(self._voter.read_bytes(), type=Voter)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            hint = "restore the file from a backup, or make this a new host: linkspan uninstall"
            raise Invalid(f"{self._voter}, which says that this host is a voter, cannot be read", hint) from error

    def keep_voter(self, voter: Voter) -> None:
        """Write down this host's part as a voter."""
        self.put(self._voter, msgspec.json.encode(voter))

    @property
    def _voters(self) -> tuple[Path, ...]:
        """Files that only a voter has: its secrets, and last the file that says that it is one."""
        authorities = (self.authority_key, self.peer_authority, self.peer_authority_key)
        return (*authorities, self.root_password, self.other_root_password, self.revoked, self._voter)

    def voters_left(self) -> bool:
        """Return whether this host has anything that only a voter has."""
        return any(file.exists() for file in self._voters)

    def forget_voter(self) -> None:
        """Remove what only a voter has. Raises Unavailable with a name."""
        self._remove(*self._voters)

    def forget_cluster(self) -> None:
        """Remove all of them: this host is in no cluster any more. Raises Unavailable with a name."""
        self.forget_voter()
        self._remove(self.authority, self.certificate, self.key, self.password)

    def _remove(self, *paths: Path) -> None:
        for file in paths:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise Unavailable(f"{file}: {reason(error)}", remedy(error, file, "it must go")) from error

    def put(self, file: Path, content: bytes) -> None:
        """Write a file for root alone. Raises Unavailable with its name."""
        apart(self.folder)
        try:
            write(file, content, 0o600)
        except OSError as error:
            raise Unavailable(f"{file}: {reason(error)}", remedy(error, file, "it is needed to join")) from error

    def once(self, file: Path, make: Callable[[], bytes]) -> bytes:
        """Return a file's content; make it if it is missing. Raises LinkspanError with its name."""
        if not file.exists():
            self.put(file, make())
        return alone(str(file))

    def secret(self, file: Path) -> str:
        """Return the random password in a file; make it if it is missing."""
        return self.once(file, lambda: secrets.token_urlsafe(24).encode() + b"\n").decode()

    def url(self, endpoints: Iterable[str], host: str) -> str:
        """Return the store's URL for this host."""
        return self._url(endpoints, RECORDS, user_of(host), self.password)

    def root_url(self, endpoints: Iterable[str], prefix: str = TRUST) -> str:
        """Return the URL of what is under a prefix, for a voter: as root."""
        return self._url(endpoints, prefix, ROOT, self.root_password)

    def _url(self, endpoints: Iterable[str], prefix: str, user: str, password: Path) -> str:
        files = {"ca": self.authority, "cert": self.certificate, "key": self.key, "password-file": password}
        options = urlencode({"user": user} | {word: str(path) for word, path in files.items()}, safe="/")
        return f"etcd://{','.join(endpoints)}/{prefix}?{options}"

    def owns(self, url: str) -> bool:
        """Return whether a store's URL is of linkspan's own etcd: then it names this host's certificate."""
        return url.startswith("etcd://") and etcd_parts(url).cert == str(self.certificate)
