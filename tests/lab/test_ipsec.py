"""IPsec in the lab: nothing in clear whatever breaks, keys that are renewed on the way, and nobody else gets in."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.agent import healer
from linkspan.kernel.io import vici
from linkspan.lab import sockets
from support.lab.certificate_authority import Authority
from support.lab.ipsec_runs import IpsecRun
from support.lab.migration_runs import HOSTS, Flows
from support.lab.underlay_capture import Capture, Echoes
from support.polling import SHARED, until

MTU = 1400
NAT = 4500


@pytest.fixture(scope="module")
def cluster() -> Iterator[IpsecRun]:
    """Give three hosts with IPsec in user space, and one key for all."""
    found = IpsecRun()
    try:
        found.run("up", "--backend ipsec")
        yield found
    finally:
        found.run("down")


def _clean(capture: Capture) -> None:
    capture.stop()
    assert capture.count > 0
    assert capture.clear == []


def test_nothing_is_in_clear_from_the_first_packet_on(cluster: IpsecRun) -> None:
    """A network is created while its first containers ping, by TCP, UDP and ping, of all sizes; then it is deleted."""
    with cluster.capture() as capture:
        cluster.create("fresh", "10.247.0.0/16", backend="ipsec")
        cluster.run("attach", "h1", "f1", "--network fresh")
        cluster.run("attach", "h2", "f2", "--network fresh")
        with cluster.pinged("f1", "f2"), Flows(cluster, "f1", "f2"):
            cluster.reaches("f1", "f2")
    _clean(capture)
    for name in ("f1", "f2"):
        cluster.run("detach", name)
    cluster.delete("fresh")
    cluster.well()
    with cluster.asks("h1") as asked:
        children = [child for found in vici.connections(asked).values() for child in found.children]
    assert not [child for child in children if "10.247." in child]


def test_keys_are_renewed_while_packets_flow(cluster: IpsecRun) -> None:
    """Both kinds of associations: no pair loses more than a second, the old keys go, and nothing is in clear."""
    before = {host: cluster.spis(host) for host in HOSTS}
    with cluster.capture() as capture, cluster.pinged("c1", "c3"), Flows(cluster) as flows:
        for host in ("h1", "h2"):
            with cluster.asks(host) as asked:
                for one in vici.associations(asked):
                    children = [{"child-id": str(child.number)} for child in one.children]
                    for wish in (*children, {"ike-id": str(one.number)}):
                        with contextlib.suppress(vici.Refused):  # the peer may just have done so
                            asked.rekey(wish)
        for host in HOSTS:
            until(lambda host=host: not before[host] & cluster.spis(host), f"{host} has other keys")
    flows.check(MTU)
    _clean(capture)
    cluster.well()


def test_the_daemon_is_killed(cluster: IpsecRun) -> None:
    """On whichever side: it is started again and is back in time; until then packets go nowhere."""
    for host, one, other in (("h1", "c1", "c2"), ("h3", "c1", "c3")):
        with cluster.capture() as capture, cluster.pinged(one, other), cluster.pinged(other, one):
            since = time.monotonic()
            cluster.run("break", host, "helper-kill")
            cluster.back(since, one, other)
        _clean(capture)
        cluster.well()


def test_daemon_and_agent_are_killed(cluster: IpsecRun) -> None:
    """Nobody is there to repair, and nothing leaves in clear; the agent's next start brings all back in time."""
    with cluster.capture() as capture, cluster.pinged("c1", "c2"), cluster.pinged("c2", "c1"):
        cluster.run("break", "h2", "agent-kill")
        cluster.run("break", "h2", "helper-kill")
        cluster.cut_off("c1", "c2")
        cluster.run("mend", "h2")
        cluster.back(time.monotonic())
    _clean(capture)
    cluster.well()


def test_an_agent_s_restart_is_not_noticed(cluster: IpsecRun) -> None:
    """The same associations serve before, meanwhile, and afterwards; nothing is healed that was not broken."""
    before = cluster.spis("h2")
    with cluster.capture() as capture, Flows(cluster) as flows:
        cluster.restarted("h2")
        cluster.well()
    flows.check(MTU)
    _clean(capture)
    assert cluster.spis("h2") == before


def test_what_somebody_broke_is_mended(cluster: IpsecRun) -> None:
    """A connection that was unloaded is loaded again, and a device that was removed comes back with a new daemon."""
    with cluster.asks("h1") as asked:
        asked.unload_conn({"name": "ls-h3"})
    until(lambda: "ls-h3" in _connections(cluster, "h1"), "the connection is back")
    cluster.ip("h1", "link del ipsec0")
    cluster.reaches("c1", "c3")
    cluster.well()


def _connections(cluster: IpsecRun, host: str) -> set[str]:
    with cluster.asks(host) as asked:
        return set(vici.connections(asked))


def test_forged_sources_and_replays_get_nothing_through(cluster: IpsecRun) -> None:
    """A host that sends with another host's container as source, and a host that replays captured packets."""
    echoes = Echoes(f"{cluster.name}-c1")
    target, theirs = cluster.address("c1"), cluster.address("c2")
    cluster.reaches("c3", "c1")
    try:
        cluster.run("break", "h3", "agent-kill")
        cluster.ip("h3", f"addr add {theirs}/32 dev ipsec0")
        ping = ["ip", "netns", "exec", f"{cluster.name}-h3", "ping", "-c3", "-i0.1", "-W1", "-I", theirs, target]
        assert subprocess.run(ping, capture_output=True, check=False).returncode != 0
        assert theirs not in echoes.look()
        cluster.ip("h3", f"addr del {theirs}/32 dev ipsec0")
        cluster.run("mend", "h3")

        cluster.reaches("c2", "c1")
        cluster.reaches("c3", "c1")
        cluster.takes_once(echoes, _is_data)
    finally:
        echoes.close()
    cluster.well()


def _is_data(frame: bytes) -> bool:
    """Return whether a frame is ESP in UDP: IKE has four zero bytes there (RFC 3948 section 2.2)."""
    return frame[23:24] == b"\x11" and frame[36:38] == NAT.to_bytes(2, "big") and frame[42:46] not in (b"", bytes(4))


def test_another_key_gets_nothing_through(cluster: IpsecRun, tmp_path: Path) -> None:
    """A host with another shared key is cut off; it and its peers report that; the right key brings it back."""
    other, right = tmp_path / "other.psk", cluster.folder / "ipsec.psk"
    other.touch(mode=0o600)
    other.write_text("another key than all others have\n")
    cluster.set("h3", psk_file=str(other))
    cluster.cut_off("c1", "c3")
    cluster.told("h1", "IPsec is down", "h3")
    cluster.peers_tell("h3 has another shared key")
    cluster.reaches("c1", "c2")
    cluster.set("h3", psk_file=str(right))
    cluster.reaches("c1", "c3")
    cluster.well()


def test_a_key_file_that_is_no_good_is_named(cluster: IpsecRun, tmp_path: Path) -> None:
    """Others may read it, another user owns it, or it is missing: associations continue, and the error has a fix."""
    file = tmp_path / "h3.psk"
    file.touch(mode=0o600)
    file.write_text((cluster.folder / "ipsec.psk").read_text())
    before = cluster.spis("h3")
    cluster.set("h3", psk_file=str(file))
    until(lambda: not before & cluster.spis("h3"), "h3 proves itself again")
    cluster.reaches("c3", "c1")
    file.chmod(0o640)
    cluster.told("h3", f"{file} must belong to root")
    file.chmod(0o600)
    os.chown(file, 65534, -1)
    cluster.told("h3", f"{file} must belong to root")
    os.chown(file, 0, -1)
    kept = file.rename(tmp_path / "kept")
    cluster.told("h3", f"read the secret in {file}: no such file")
    cluster.reaches("c3", "c1")
    kept.rename(file)
    until(lambda: str(file) not in cluster.not_well("h3"), "h3 is well")
    cluster.set("h3", psk_file=str(cluster.folder / "ipsec.psk"))
    cluster.reaches("c3", "c1")
    cluster.well()


def test_what_is_secret_is_told_nowhere(cluster: IpsecRun) -> None:
    """No plan, status, log, command line or record has the key, and the plan shows only its place."""
    secret = (cluster.folder / "ipsec.psk").read_text().strip()
    plan = cluster.exec("h1", "linkspan plan -o commands")
    assert "secret = ***" in plan
    logs = [path.read_text(errors="replace") for path in cluster.folder.glob("h*/state/**/*.log")]
    records = [path.read_bytes().decode(errors="replace") for path in (cluster.folder / "store").glob("*")]
    public = [plan, cluster.exec("h1", "linkspan status -o json", code=-1), *map(cluster.log, HOSTS), *logs, *records]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            public.append(path.read_text(errors="replace"))
        except OSError:
            continue
    assert not any(secret in text for text in public)


def test_a_trace_tells_by_what_it_is_encrypted(cluster: IpsecRun) -> None:
    """With the association's SPI, which both hosts have; and without an association, that is the reason."""
    cluster.reaches("c1", "c2")
    found = cluster.call("h1", "GET", "/v1/trace?source=c1&target=c2")
    assert found["reachable"]
    assert found["path_mtu"] == MTU
    by_action = {hop["action"]: hop for hop in found["hops"]}
    spi = by_action["encrypted"]["detail"].rpartition(" ")[2]
    assert by_action["encrypted"]["detail"] == f"by IPsec for h2, AES-GCM-16-128, SPI {spi}"
    assert by_action["decrypted"]["detail"] == f"by IPsec from h1, AES-GCM-16-128, SPI {spi}"
    assert spi in cluster.spis("h2")
    assert by_action["left"]["headers"][1:4] == ["ip 192.0.2.1>192.0.2.2", f"udp {NAT}", f"esp {spi}"]


def test_a_port_that_another_holds_is_named_with_its_holder(cluster: IpsecRun) -> None:
    """The first user keeps it; the host is reported, and is back when it is free."""
    with cluster.timed("h3", healer, FULL=5.0):  # its longest pause between two tries
        cluster.run("break", "h3", "agent-kill")
        cluster.run("break", "h3", "helper-kill")
        with sockets.inside(f"{cluster.name}-h3"):
            holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with holder:
            until(lambda: _bound(holder), "the port is free")
            cluster.run("mend", "h3")
            cluster.told("h3", f"UDP port {NAT}, which IKE needs, is in use by process {os.getpid()}")
        cluster.inside("h3", "nft add table inet other")  # which lets the agent look around
        cluster.inside("h3", "nft delete table inet other")
        cluster.reaches("c3", "c1")
    cluster.well()


def _bound(holder: socket.socket) -> bool:
    try:
        holder.bind(("0.0.0.0", NAT))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def certified(cluster: IpsecRun, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Let all hosts prove themselves by certificates, with a list of those that are revoked."""
    authority = Authority(tmp_path_factory.mktemp("pki") / "authority")
    crl = authority.revoked()
    for host in HOSTS:
        _given(cluster, host, {"ipsec.psk-file": "", **authority.signed(host), "ipsec.crl": crl})
    for one, other in (("c1", "c2"), ("c1", "c3"), ("c3", "c2")):
        cluster.reaches(one, other)
    cluster.well()
    return authority


def _given(cluster: IpsecRun, host: str, settings: dict[str, str]) -> None:
    """Give a host another certificate, and let it take that up."""
    cluster.call("h1", "PATCH", f"/v1/hosts/{host}", settings)


FAULTS = [
    ("expired", "", (-30, -1), "h3's certificate is valid from"),
    ("for another host", "h9", (-1, 30), "this host's certificate is not for h3"),
    ("of tomorrow, as with a clock that is a day off", "", (1, 30), "by this host's clock that is not now"),
]


@pytest.mark.parametrize(("what", "name", "days", "reason"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_certificate_that_is_no_good_is_named(
    cluster: IpsecRun, certified: Authority, what: str, name: str, days: tuple[int, int], reason: str
) -> None:
    """With the peer, the reason and what to do; nothing gets through until there is a good one."""
    _given(cluster, "h3", certified.signed("h3", name, days))
    cluster.cut_off("c1", "c3")
    until(lambda: reason in "".join(map(cluster.not_well, HOSTS)), f"{what}: {reason}", 40 * SHARED)
    cluster.reaches("c1", "c2")
    _given(cluster, "h3", certified.signed("h3"))
    cluster.reaches("c1", "c3")
    cluster.well()


def test_a_certificate_of_another_authority_is_named(
    cluster: IpsecRun, certified: Authority, tmp_path: Path
) -> None:
    """Its own authority does not help a host that others do not trust."""
    stranger = Authority(tmp_path / "stranger")
    _given(cluster, "h3", stranger.signed("h3") | {"ipsec.crl": stranger.revoked()})
    cluster.cut_off("c1", "c3")
    cluster.peers_tell("is signed by another authority")
    _given(cluster, "h3", certified.signed("h3") | {"ipsec.crl": certified.revoked()})
    cluster.reaches("c1", "c3")
    cluster.well()


def test_a_revoked_certificate_gets_nothing_through(cluster: IpsecRun, certified: Authority) -> None:
    """At once, because the new list ends its associations; the other hosts continue."""
    certified.revoked("h3")
    cluster.cut_off("c1", "c3")
    cluster.cut_off("c2", "c3")
    cluster.peers_tell("h3's certificate was revoked")
    cluster.reaches("c1", "c2")
    _given(cluster, "h3", certified.signed("h3"))
    cluster.reaches("c1", "c3")
    cluster.well()


def test_files_that_others_may_change_are_named(cluster: IpsecRun, certified: Authority) -> None:
    """A user who may write the revocation list decides whom hosts trust. Existing associations stay."""
    crl = certified.crl
    for mode in (0o664, 0o646):
        crl.chmod(mode)
        cluster.told("h1", f"{crl} (crl for IPsec) can be changed by others than root", f"chmod go-w {crl}")
        cluster.reaches("c1", "c2")
        crl.chmod(0o644)
        cluster.reaches("c1", "c3")
        cluster.well()


def test_a_list_that_is_no_good_changes_nothing(cluster: IpsecRun, certified: Authority) -> None:
    """Somebody may just be writing it. The list from before counts, and ends no association."""
    crl = certified.crl
    good, before = crl.read_bytes(), cluster.spis("h1")
    crl.write_bytes(good[: len(good) // 2])
    cluster.told("h1", f"{crl} is no crl that strongSwan takes")
    assert before == cluster.spis("h1")
    _given(cluster, "h1", certified.signed("h1"))  # all files are loaded anew: this one is kept
    until(lambda: not before & cluster.spis("h1"), "h1 proves itself again")
    cluster.reaches("c1", "c2")
    before = cluster.spis("h1")
    crl.write_bytes(good)
    cluster.well()
    assert before == cluster.spis("h1")


def test_a_network_migrates_to_ipsec_and_back(cluster: IpsecRun) -> None:
    """While packets flow between all pairs; the daemon goes with its last network and comes with its first."""
    for way, size in (("vxlan", 1450), ("ipsec", MTU)):
        with Flows(cluster) as flows:
            cluster.moved(way)
            cluster.clean()  # containers may send what the new way carries by then
        flows.check(size)
        for host in HOSTS:
            there = "ipsec0" in cluster.inside(host, "ip -br link")
            assert there == (way == "ipsec")
    cluster.well()
