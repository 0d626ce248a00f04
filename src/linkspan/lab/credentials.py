"""Credentials of a lab's etcd and its users: certificates of the lab's own authority, and passwords.

All of it is in the lab's folder, for root alone. The users' certificate has no common name: etcd's gateway
takes one with a name for a user of its own, and then refuses every call.
"""

from __future__ import annotations

import os
import secrets

from linkspan.lab import commands
from linkspan.lab.record import Lab
from linkspan.lab.topology import USER, bare, credential, etcd_address

ROOT = "root"
"""The user that etcd needs before it authenticates anybody."""
DAYS = "3650"


def make(lab: Lab) -> None:
    """Make them once. Raises NotFound if openssl is not installed."""
    where = credential(lab, "")
    if where.exists():
        return
    where.mkdir(mode=0o700)
    _certificate(lab, "ca", f"/CN=linkspan lab {lab.name}", "-addext", "basicConstraints=critical,CA:TRUE")
    signed = ("-CA", _file(lab, "ca.pem"), "-CAkey", _file(lab, "ca.key"))
    addresses = ["127.0.0.1", *(bare(etcd_address(lab, number)) for number in range(1, lab.segments + 1))]
    names = "subjectAltName=" + ",".join(f"IP:{address}" for address in addresses)
    # The gateway is a client of its own server, so the server's certificate must serve for both.
    both = "extendedKeyUsage=serverAuth,clientAuth"
    _certificate(lab, "server", "/O=linkspan lab", *signed, "-addext", names, "-addext", both)
    _certificate(lab, "client", "/O=linkspan lab", *signed, "-addext", "extendedKeyUsage=clientAuth")
    for user in (USER, ROOT):
        fd = os.open(where / user, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as written:
            written.write(f"{secrets.token_urlsafe(24)}\n")


def _file(lab: Lab, name: str) -> str:
    return str(credential(lab, name))


def _certificate(lab: Lab, name: str, subject: str, *more: str) -> None:
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", _file(lab, f"{name}.key"))
    made = ("-x509", "-days", DAYS, "-subj", subject, "-out", _file(lab, f"{name}.pem"))
    commands.run("openssl", "req", *key, *made, *more)


def password(lab: Lab, user: str) -> str:
    """Return a user's password."""
    return credential(lab, user).read_text(encoding="ascii").strip()


def environment(lab: Lab, endpoint: str) -> dict[str, str]:
    """Return the environment variables by which ``etcdctl`` uses the lab's etcd as a user with all rights."""
    return {
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": f"https://{endpoint}",
        "ETCDCTL_CACERT": _file(lab, "ca.pem"),
        "ETCDCTL_CERT": _file(lab, "client.pem"),
        "ETCDCTL_KEY": _file(lab, "client.key"),
        "ETCDCTL_USER": f"{ROOT}:{password(lab, ROOT)}",
    }
