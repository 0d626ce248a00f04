"""Requests to attach: checked once, before anything is done, whoever asks."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from linkspan.core.bandwidth import LABEL, LARGEST
from linkspan.core.errors import Conflict, Invalid
from linkspan.core.model import AttachRequest, Bandwidth, Port, PortRange
from linkspan.endpoints.attach import attach
from linkspan.endpoints.build import checked
from support.records.one_host import network
from support.records.registry_stage import RegistryStage

DEMO = network("demo", "10.1.0.0/24", routed=True)
REQUEST = AttachRequest(id="c1", network="demo", ifname="eth0")


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"id": "a b"}, "^container id 'a b' is not a name$"),
        ({"name": "-x"}, "^container name '-x' is not a name$"),
        ({"ifname": "et/h0"}, "^attach c1 to demo: interface name 'et/h0' has a character that is not allowed$"),
        ({"mac": "02:00"}, "^attach c1 to demo: '02:00' is not a MAC address$"),
        ({"mac": "01:00:5e:00:00:01"}, "^attach c1 to demo: 01:00:5e:00:00:01 is not a unicast MAC address$"),
        ({"ports": (Port("", 70000, 80, "tcp"),)}, "^70000 is not a port$"),
        ({"ports": (Port("", 8080, 0, "tcp"),)}, "^0 is not a port$"),
        ({"port_ranges": (PortRange("", 9000, 8000, 80, "tcp"),)}, "^the range of ports 9000-8000 goes backwards$"),
        ({"ports": (Port("::g", 80, 80, "tcp"),)}, "^attach c1 to demo: '::g' is not an IP address or prefix$"),
        ({"ports": (Port("", 80, 80, "tcp", ("10.0.0.1/8",)),)}, "port 80/tcp: from=10.0.0.1/8 has bits after its"),
        ({"ports": (Port("::", 80, 80, "tcp", ("10.0.0.0/8",)),)}, "from=10.0.0.0/8 is of another family than ::$"),
        ({"ports": (Port("", 80, 80, "tcp", ("10.0.0.0/8",) * 65),)}, "it has 65 CIDRs in from=, and may have 64$"),
        (
            {"ports": tuple(Port("", number, number, "udp") for number in range(20000, 40000))},
            "^attach c1 to demo: its labels and published ports take 1[0-9]{3} KiB, and may take 768 KiB$",
        ),
        ({"labels": {"a": "x" * 800_000}}, "^attach c1 to demo: its labels and published ports take 781 KiB"),
        ({"bandwidth": Bandwidth(ingress_rate=LARGEST)}, "^bandwidth: ingress_rate of 17179869184 bits is out"),
        ({"labels": {LABEL: "in=fast"}}, "^attach c1 to demo: label linkspan.bandwidth: bandwidth 'fast' is"),
        (
            {"labels": {LABEL: "out=3M"}, "bandwidth": Bandwidth(ingress_rate=7_000_000)},
            "^attach c1 to demo: its bandwidth is in=7M, and out=3M by label linkspan.bandwidth",
        ),
    ],
)
def test_a_request_that_nobody_could_carry_out_is_refused_with_its_reason(fault: dict[str, object], why: str) -> None:
    """Each fault by itself; the same request without it passes unchanged."""
    assert checked(REQUEST) == REQUEST
    with pytest.raises(Invalid, match=why):
        checked(replace(REQUEST, **fault))


def test_a_refused_request_leaves_nothing(tmp_path: Path) -> None:
    """It takes no address, and no row of the journal."""

    async def run() -> None:
        stage = RegistryStage(tmp_path)
        await stage.start(DEMO)
        free = stage.member.blocks.free("demo")
        with pytest.raises(Invalid):
            await attach(stage.registry, replace(REQUEST, mac="no"), -1, "", delivered=True)
        assert (stage.member.blocks.free("demo"), stage.journal.rows()) == (free, [])
        await stage.stop()

    asyncio.run(run())


def test_one_mac_in_two_spellings_is_one_mac(tmp_path: Path) -> None:
    """The endpoint has it as records write it, and a second container cannot have it."""

    async def run() -> None:
        stage = RegistryStage(tmp_path)
        await stage.start(DEMO)
        made = await attach(stage.registry, replace(REQUEST, mac="02-00-00-00-00-AB"), -1, "", delivered=True)
        assert made.mac == "02:00:00:00:00:ab"
        other = replace(REQUEST, id="c2", mac="02:00:00:00:00:AB")
        with pytest.raises(Conflict, match="MAC 02:00:00:00:00:ab is used by c1"):
            await attach(stage.registry, other, -1, "", delivered=True)
        await stage.stop()

    asyncio.run(run())


def test_of_two_attaches_with_one_mac_at_the_same_time_one_is_refused(tmp_path: Path) -> None:
    """The second one waits for the first, and sees its MAC; in another network it may have it."""

    async def run() -> None:
        stage, side, free = RegistryStage(tmp_path), network("side", "10.2.0.0/24", routed=True), threading.Event()
        await stage.start(DEMO, side)
        wanted = [
            replace(REQUEST, id=id_, network=where, mac="02:00:00:00:00:ab")
            for id_, where in (("c1", "demo"), ("c2", "demo"), ("c3", "side"))
        ]
        busy = asyncio.create_task(stage.worker.run(free.wait, 10))
        await asyncio.sleep(0)
        coming = [asyncio.create_task(attach(stage.registry, one, -1, "", delivered=True)) for one in wanted]
        for _ in range(20):  # each comes as far as it can before the kernel has done anything
            await asyncio.sleep(0)
        free.set()
        assert await busy
        made = await asyncio.gather(*coming, return_exceptions=True)
        refused = [one for one in made if isinstance(one, BaseException)]
        assert [type(one) for one in refused] == [Conflict]
        assert {endpoint.network for endpoint in dict.values(stage.endpoints)} == {"demo", "side"}
        assert len(stage.endpoints) == 2
        await stage.stop()

    asyncio.run(run())


def test_a_mac_on_two_bridges_with_ipv6_is_refused(tmp_path: Path) -> None:
    """It makes one link-local address, by which policies would take one container for the other."""

    async def run() -> None:
        stage = RegistryStage(tmp_path)
        six = [network(name, f"fd00:{name}::/64", routed=False) for name in ("a", "b")]
        four = network("four", "10.3.0.0/24", routed=False)
        await stage.start(*six, four)
        wish = replace(REQUEST, mac="02:00:00:00:00:ab")
        await attach(stage.registry, replace(wish, network="a"), -1, "", delivered=True)
        await attach(stage.registry, replace(wish, id="c2", network="four"), -1, "", delivered=True)
        with pytest.raises(Conflict, match="MAC 02:00:00:00:00:ab is used by c1"):
            await attach(stage.registry, replace(wish, id="c3", network="b"), -1, "", delivered=True)
        await stage.stop()

    asyncio.run(run())


def test_one_host_address_in_two_spellings_is_one_port(tmp_path: Path) -> None:
    """The endpoint has it as others compare it, and a second container cannot publish it."""
    wish = PortRange("2001:DB8:0::1", 8001, 8001, 80, "tcp")

    async def run() -> None:
        stage = RegistryStage(tmp_path)
        await stage.start(DEMO)
        first = replace(REQUEST, ports=(Port("2001:db8:0:0::1", 8000, 80, "tcp"),), port_ranges=(wish,))
        made = await attach(stage.registry, first, -1, "", delivered=True)
        assert [str(port) for port in made.ports] == ["[2001:db8::1]:8000->80/tcp", "[2001:db8::1]:8001->80/tcp"]
        other = replace(REQUEST, id="c2", ports=(Port("2001:db8::0:1", 8000, 80, "tcp"),))
        with pytest.raises(Conflict, match=r"port 8000/tcp on 2001:db8::1 is in use by .* c1 of network demo"):
            await attach(stage.registry, other, -1, "", delivered=True)
        await stage.stop()

    asyncio.run(run())
