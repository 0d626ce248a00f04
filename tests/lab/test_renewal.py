"""Certificates of linkspan's own etcd renew themselves, on a voter and on a client, while all goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest
from cryptography import x509

from linkspan.cluster.founding.validity import Validity, parsed
from linkspan.core.store_url import OWN_CLIENTS
from support.lab.bare_runs import BareRun
from support.polling import SHARED, until

LIFE = 60
"""Seconds: the shortest that the setting takes. Renewed after 30 to 48."""
_ASK = """
import asyncio, pathlib
from linkspan.cluster.founding.renewal import ask
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import LinkspanError
try:
    asyncio.run(ask(TrustFiles(pathlib.Path({state!r})), ["192.0.2.1:5381"]))
except LinkspanError as error:
    print(error.told)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[BareRun]:
    """Give two bare hosts in a cluster whose certificates are good for LIFE seconds."""
    found = BareRun()
    try:
        found.up(2)
        settings = found.folder / "h1" / "agent.toml"
        settings.write_text(f"{settings.read_text()}certificate_life = {LIFE}\n")
        token = found.init()
        found.join("h2", token)
        found.exec("h1", "linkspan network create demo --pool 10.244.0.0/16 --backend vxlan")
        for host, container in (("h1", "c1"), ("h2", "c2")):
            found.run("attach", host, container)
        until(lambda: found.pings("c1", found.address("c2")), "c1 reaches c2")
        yield found
    finally:
        found.run("down")


def certificates(cluster: BareRun) -> dict[str, Validity]:
    """Return the certificates of both hosts."""
    etcd = cluster.folder / "h1" / "state" / "etcd"
    files = {host: cluster.files(host).certificate for host in ("h1", "h2")}
    files |= {name: etcd / f"{name}.pem" for name in ("server", "peer")}
    return {name: parsed(file.read_bytes()) for name, file in files.items()}


def _has_store(cluster: BareRun, host: str) -> bool:
    return bool(cluster.status(host)["store"]["ok"])


def connections(cluster: BareRun, host: str) -> set[str]:
    """Return the local addresses of a host's connections to etcd."""
    lines = cluster.inside(host, f"ss -Htn state established dport = {OWN_CLIENTS}").splitlines()
    return {line.split()[2] for line in lines}


def test_certificates_are_renewed_in_time_and_no_watch_is_lost(cluster: BareRun) -> None:
    """All four, before they expire; streams to etcd stay open, and when the old ones have expired all still works."""
    old = certificates(cluster)
    streams = connections(cluster, "h2")
    with cluster.no_loss("c1", cluster.address("c2")):
        until(
            lambda: all(one.serial != old[name].serial for name, one in certificates(cluster).items()),
            "all certificates are renewed", LIFE,
        )  # fmt: skip
    for name, one in certificates(cluster).items():
        assert 0.5 * LIFE - 1 <= one.made - old[name].made <= LIFE, name
    until(lambda: all(time.time() > one.end for one in old.values()), "the old ones have expired")
    assert streams & connections(cluster, "h2")
    assert cluster.status("h2")["store"]["ok"]
    assert {one["problem"] for host in ("h1", "h2") for one in cluster.status(host)["certificates"]} == {""}
    for host in ("h2", "h1"):  # the next agent begins with what is on the disk
        cluster.run("break", host, "agent-kill")
        cluster.run("mend", host)
    for host in ("h1", "h2"):
        until(partial(_has_store, cluster, host), f"{host} has its store", 30 * SHARED)


def test_a_voter_that_was_off_for_too_long_comes_back_by_itself(cluster: BareRun) -> None:
    """It has the keys; a client that was off for too long is told what to do, and does it."""
    for host in ("h2", "h1"):
        cluster.run("break", host, "agent-kill")
    until(lambda: all(time.time() > one.end for one in certificates(cluster).values()), "all have expired", 2 * LIFE)
    for host in ("h1", "h2"):
        cluster.run("mend", host, code=-1)
    until(lambda: cluster.status("h1")["store"]["ok"], "h1 has its store")
    until(lambda: "expired on" in cluster.exec("h2", "linkspan status", code=3), "h2 says that it is too late")
    said = cluster.exec("h2", "linkspan doctor", code=-1)
    assert "fail    certificate host" in said
    assert "linkspan cluster join TOKEN" in said
    assert cluster.join("h2", cluster.token()["token"])["host"] == "h2"
    until(lambda: cluster.status("h2")["store"]["ok"], "h2 has its store again")
    until(lambda: cluster.pings("c1", cluster.address("c2")), "c1 reaches c2")


def test_a_forgotten_host_renews_nothing_and_all_its_certificates_are_revoked(cluster: BareRun) -> None:
    """The earlier ones, too: a copy of one may be somewhere."""
    known = certificates(cluster)["h2"]
    until(lambda: certificates(cluster)["h2"].serial != known.serial, "h2 has another one", 2 * LIFE)
    state = str(cluster.files("h2").state_dir)
    ask = ["ip", "netns", "exec", f"{cluster.name}-h2", sys.executable, "-c", _ASK.format(state=state)]
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == ""
    serials = {known.serial, certificates(cluster)["h2"].serial}
    cluster.exec("h1", "linkspan cluster forget h2")
    said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    assert "is not in the cluster any more" in said
    listed = x509.load_der_x509_crl((cluster.folder / "h1" / "state" / "etcd" / "revoked.der").read_bytes())
    assert serials <= {one.serial_number for one in listed}
