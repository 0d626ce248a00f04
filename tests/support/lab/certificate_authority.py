"""An authority that signs hosts' certificates and takes them back: openssl's own, in a folder."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

_CONF = """
[ca]
default_ca = ours
[ours]
database = {folder}/index
new_certs_dir = {folder}
serial = {folder}/serial
crlnumber = {folder}/crlnumber
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
default_days = 30
default_crl_days = 30
crl_extensions = list
policy = any
unique_subject = no
[any]
commonName = supplied
[list]
authorityKeyIdentifier = keyid
"""


class Authority:
    """One authority; every file of it is in its folder, keys for root alone."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        (folder / "index").touch()
        for name in ("serial", "crlnumber"):
            (folder / name).write_text("01\n")
        (folder / "conf").write_text(_CONF.format(folder=folder))
        self._openssl("req", "-x509", "-days", "30", "-subj", f"/CN={folder.name}", *self._new("ca"))
        self.certificate, self.crl = folder / "ca.pem", folder / "crl.pem"

    def signed(self, host: str, name: str = "", days: tuple[int, int] = (-1, 30)) -> dict[str, str]:
        """Return the settings of a host with a new certificate, for ``name`` and from one day to another from now."""
        name = name or host
        self._openssl("req", "-subj", f"/CN={name}", *self._new(host))
        (self.folder / "names").write_text(f"subjectAltName=DNS:{name}\n")
        first, last = (f"{_day(number):%Y%m%d%H%M%SZ}" for number in days)
        request, made = self.folder / f"{host}.pem", self.folder / f"{host}.crt"
        wish = ("-in", str(request), "-out", str(made), "-extfile", str(self.folder / "names"))
        self._ca("-batch", "-notext", "-startdate", first, "-enddate", last, *wish)
        files = {"certificate": made, "key": self.folder / f"{host}.key", "ca": self.certificate}
        return {f"ipsec.{word}": str(path) for word, path in files.items()}

    def revoked(self, host: str = "") -> str:
        """Take a host's certificate back, where one is given, and return the list of those that are."""
        if host:
            self._ca("-revoke", str(self.folder / f"{host}.crt"))
        self._ca("-gencrl", "-out", str(self.crl))
        return str(self.crl)

    def _new(self, name: str) -> tuple[str, ...]:
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        return (*kind, "-keyout", str(self.folder / f"{name}.key"), "-out", str(self.folder / f"{name}.pem"))

    def _ca(self, *words: str) -> None:
        self._openssl("ca", "-config", str(self.folder / "conf"), *words)

    def _openssl(self, *argv: str) -> None:
        done = subprocess.run(("openssl", *argv), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def _day(number: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=number)
