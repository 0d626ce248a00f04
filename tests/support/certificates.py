"""Certificates, made again for each test by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """The files of a certificate and of its key."""

    cert: str
    key: str


class Authority:
    """One that signs certificates for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self.cert, self._key = str(folder / "ca.pem"), str(folder / "ca.key")
        self._make("ca", "-x509", "-addext", "basicConstraints=critical,CA:TRUE")

    def certificate(self, name: str) -> Pair:
        """Return a new one, for a server or a client."""
        names = "subjectAltName=IP:127.0.0.1,IP:127.0.1.1"
        self._make(name, "-x509", "-CA", self.cert, "-CAkey", self._key, "-addext", names)
        return Pair(str(self._folder / f"{name}.pem"), str(self._folder / f"{name}.key"))

    def _make(self, name: str, *options: str) -> None:
        where = ("-keyout", f"{self._folder}/{name}.key", "-out", f"{self._folder}/{name}.pem")
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        argv = ("openssl", "req", *kind, "-subj", f"/CN={name}", *where, *options)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
