"""Draw the pictures of the pages: how a packet gets from container to container, one SVG for each backend.

The words in a picture are names, addresses and headers, which no language translates: the pages of all languages
use the same pictures. Colours follow the reader's choice of light or dark.

    .venv/bin/python scripts/pictures.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"

COLOURS = {  # role: strong and pale colour, on light and on dark paper
    "paper": ("#ffffff", "#ffffff", "#0d1117", "#0d1117"),
    "card": ("#d1d9e0", "#f6f8fa", "#3d444d", "#151b23"),
    "ink": ("#1f2328", "#ffffff", "#f0f6fc", "#0d1117"),
    "soft": ("#59636e", "#eff2f5", "#9198a1", "#212830"),
    "net": ("#0969da", "#ddf4ff", "#4493f8", "#10233d"),  # a container's own packet
    "way": ("#bc4c00", "#fff1e5", "#f0883e", "#341c0c"),  # what the backend adds
    "lock": ("#8250df", "#fbefff", "#ab7df8", "#271a45"),  # encrypted
    "talk": ("#1a7f37", "#dafbe1", "#3fb950", "#0f2a17"),  # what hosts and devices announce to each other
    "bad": ("#d1242f", "#ffebe9", "#f85149", "#3a1417"),
}
MONO = "ui-monospace, 'SF Mono', 'Cascadia Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SANS = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif"
ADVANCE = 0.605
"""Width of a letter of the widest of these fonts, as a part of its size."""
SIZE = 13.0


def _style() -> str:
    """Return the rules: s-ROLE is a stroke, f-ROLE a pale fill, t-ROLE a strong fill, of text and of arrows."""

    def rules(light: bool) -> str:
        found = []
        for role, colours in COLOURS.items():
            strong, pale = colours[:2] if light else colours[2:]
            found.append(
                f".s-{role}{{stroke:{strong}}}.f-{role}{{fill:{pale}}}.t-{role}{{fill:{strong}}}"
            )
        return "".join(found)

    return (
        f"text{{font-family:{MONO};font-size:{SIZE}px}}.name{{font-family:{SANS};font-weight:600}}"
        f"{rules(light=True)}@media (prefers-color-scheme:dark){{{rules(light=False)}}}"
    )


def _width(text: str, size: float = SIZE) -> float:
    return len(text) * size * ADVANCE


class Picture:
    """An SVG that grows from the bottom layer up."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, w: float, h: float, role: str, *, radius: float = 6, dashed: bool = False
    ) -> None:
        """Draw a box."""
        more = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" class="f-{role} s-{role}"'
            f' stroke-width="1.5"{more}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        role: str = "ink",
        *,
        anchor: str = "start",
        label: str = "",
        name: float = 0,
    ) -> None:
        """Write words on the base line y, behind a label in a soft colour; as a name if ``name`` is a size."""
        body = escape(words)
        if label:
            body = f'<tspan class="t-soft">{escape(label)}</tspan><tspan dx="8">{body}</tspan>'
        more = f' style="font-size:{name:g}px"' if name else ""
        kind = f"t-{role} name" if name else f"t-{role}"
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}"{more}>{body}</text>'
        )

    def line(self, points: Sequence[tuple[float, float]], role: str, *, width: float = 3, dashed: bool = False) -> None:
        """Draw a line with round corners."""
        (x, y), *rest = points
        path = f"M{x:g} {y:g}"
        for (x0, y0), (x1, y1), (x2, y2) in zip(points, points[1:], points[2:], strict=False):
            before, after = _towards(x1, y1, x0, y0), _towards(x1, y1, x2, y2)
            path += f"L{before[0]:g} {before[1]:g}Q{x1:g} {y1:g} {after[0]:g} {after[1]:g}"
        path += f"L{rest[-1][0]:g} {rest[-1][1]:g}"
        more = ' stroke-dasharray="2 5"' if dashed else ""
        self._parts.append(
            f'<path d="{path}" class="s-{role}" fill="none" stroke-width="{width:g}" stroke-linecap="round"{more}/>'
        )

    def arrow(self, x: float, y: float, towards: str, role: str) -> None:
        """Draw an arrowhead in the middle of a line."""
        turn = {"right": 0, "down": 90, "left": 180, "up": 270}[towards]
        self._parts.append(
            f'<path d="M-5 -6L7 0L-5 6Z" class="t-{role}" transform="translate({x:g} {y:g}) rotate({turn})"/>'
        )

    def dot(self, x: float, y: float, role: str, radius: float = 5.5) -> None:
        """Draw a place on a line where something is looked up, or a port."""
        self._parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" class="f-paper s-{role}" stroke-width="2.5"/>'
        )

    def chip(self, x: float, y: float, words: str, role: str, *, anchor: str = "middle") -> float:
        """Draw a device with its name; y is its middle. Return its width."""
        w = _width(words) + 22
        left = {"start": x, "middle": x - w / 2, "end": x - w}[anchor]
        self.rect(left, y - 14, w, 28, role, radius=14)
        self.text(left + w / 2, y + 4.5, words, role, anchor="middle")
        return w

    def raw(self, markup: str) -> None:
        """Add markup as it is."""
        self._parts.append(markup)

    def strip(self, middle: float, y: float, headers: Sequence[Header]) -> float:
        """Draw a packet's headers beside each other. Return the left end."""
        left = x = middle - sum(map(_header_width, headers)) / 2
        for header in headers:
            w = _header_width(header)
            self.rect(x, y, w, 34, header.role, radius=3)
            self.text(x + w / 2, y + 21.5, header.words, header.role, anchor="middle")
            x += w
        return left

    def bracket(self, left: float, right: float, y: float, words: str, role: str) -> None:
        """Draw a bracket below a part of a strip, with words under it."""
        self.line(((left + 2, y), (left + 2, y + 7), (right - 2, y + 7), (right - 2, y)), role, width=1.5)
        self.text((left + right) / 2, y + 24, words, role, anchor="middle")

    def svg(self) -> str:
        """Return the file's text."""
        frame = (
            f'<rect x="0.75" y="0.75" width="{self.width - 1.5}" height="{self.height - 1.5}" rx="12" '
            'class="f-paper s-card" stroke-width="1.5"/>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_style()}</style>\n"
            + "\n".join((frame, *self._parts))
            + "\n</svg>\n"
        )


def _towards(x: float, y: float, to_x: float, to_y: float, radius: float = 12) -> tuple[float, float]:
    """Return the point on the way from a corner to the next point where its curve ends."""
    length = max(abs(to_x - x), abs(to_y - y), 1)
    part = min(radius, length / 2) / length
    return x + (to_x - x) * part, y + (to_y - y) * part


class Header(NamedTuple):
    """A header of a packet, and the role of its colour."""

    words: str
    role: str


def _header_width(header: Header) -> float:
    return _width(header.words) + 20


INNER = (Header("IP 10.244.1.2 → 10.244.2.2", "net"), Header("TCP", "net"))
ETHERNET, FRAMED = Header("Ethernet", "soft"), Header("Ethernet", "net")
OUTER = Header("IP 192.0.2.1 → 192.0.2.2", "way")


class Way(NamedTuple):
    """Differences from backend to backend, in the picture of two hosts."""

    title: str
    sends: Sequence[tuple[str, str]]  # what the sending host looks up: kind and entry
    device: str  # the tunnel's, "" without one
    takes: Sequence[tuple[str, str]]  # what the receiving host looks at, in order
    headers: Sequence[Header]
    cost: str = ""  # in bytes, of the headers that the backend adds
    between: str = "cloud"  # what is between the hosts: cloud, switch, router, switches
    speaker: str = ""  # a program on each host that announces to the others


CHECK = ("guard", "10.244.1.0/24 ✓")
LAST = ("route", "10.244.2.2 → veth")
VTEP = "32:d6:56:4b:f6:99"

WAYS = {
    "vxlan": Way(
        "VXLAN: the frame goes to the other host in UDP",
        (("route", "10.244.2.0/24 → 10.244.2.1"), ("neigh", f"10.244.2.1 → {VTEP}"), ("fdb", f"{VTEP} → 192.0.2.2")),
        "lsx64, vni 100",
        (CHECK, LAST),
        (ETHERNET, OUTER, Header("UDP 4789", "way"), Header("VXLAN 100", "way"), FRAMED, *INNER),
        "50",
    ),
    "ipip": Way(
        "IPIP: the packet goes to the other host in an IP packet",
        (("route", "10.244.2.0/24 → 192.0.2.2"),),
        "lsipip",
        (CHECK, LAST),
        (ETHERNET, Header("IP 192.0.2.1 → 192.0.2.2 proto 4", "way"), *INNER),
        "20",
    ),
    "host-gw": Way(
        "host-gw: a plain route to the other host, nothing is wrapped",
        (("route", "10.244.2.0/24 → 192.0.2.2"), ("neigh", "192.0.2.2 → MAC h2")),
        "",
        (CHECK, LAST),
        (Header("Ethernet → MAC h2", "soft"), *INNER),
        between="switch",
    ),
    "bgp": Way(
        "BGP: hosts and routers announce to each other where containers are",
        (("route", "10.244.2.0/24 → router"),),
        "",
        (CHECK, LAST),
        (ETHERNET, *INNER),
        between="router",
        speaker="bird",
    ),
    "wireguard": Way(
        "WireGuard: the packet goes to the other host encrypted, in UDP",
        (("route", "10.244.2.0/24 → lswg"), ("peer", "10.244.2.0/24 → key h2")),
        "lswg",
        (("peer", "key h1 → 10.244.1.0/24 ✓"), CHECK, LAST),
        (
            ETHERNET,
            OUTER,
            Header("UDP 51820", "way"),
            Header("WireGuard", "way"),
            *(Header(one.words, "lock") for one in INNER),
        ),
        "60",
    ),
    "ipsec": Way(
        "IPsec: the packet goes to the other host encrypted, in ESP",
        (("route", "10.244.2.0/24 → if_id h2"), ("policy", "if_id h2 → SA h2")),
        "lsipsec",
        (("sa", "SPI → mark h1"), ("guard", "mark h1, 10.244.1.0/24 ✓"), LAST),
        (ETHERNET, OUTER, Header("ESP", "way"), *(Header(one.words, "lock") for one in INNER), Header("ICV", "way")),
        speaker="IKEv2",
    ),
    "sdn": Way(
        "SDN: a controller programs the switches, which carry the containers' addresses",
        (("route", "10.244.0.0/16 → 169.254.76.1"), ("neigh", "169.254.76.1 → MAC gw")),
        "",
        (CHECK, LAST),
        (Header("Ethernet → MAC h2", "soft"), *INNER),
        between="switches",
    ),
}

WIDTH, MIDDLE = 1000, 500.0
LEFT, RIGHT = (24.0, 428.0), (572.0, 976.0)  # the two hosts
DOWN, UP = 84.0, 916.0  # where the packet leaves and enters
TOP, FIRST = 24.0, 174.0  # of the hosts, and of the look-ups
STEP = 38.0  # from one look-up to the next
BOX = 176.0  # a container's width
LENS = 250.0  # where the packet is on the wire


class Crossing:
    """The picture of two hosts, with what is between them, and the packet on the wire below."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.rows = max(len(way.sends), len(way.takes))
        self.device = FIRST + self.rows * STEP + 2  # the tunnel's, if there is one
        self.bottom = self.device + (48 if way.device else 4)  # of the hosts
        self.wire = self.bottom + 62
        self.strip = self.wire + (78 if way.between == "switches" else 62)
        roles = {header.role for header in way.headers}
        self.outside = next((role for role in ("lock", "way") if role in roles), "net")  # between the hosts
        self.picture = Picture(WIDTH, round(self.strip + 34 + (42 if way.cost else 24)), way.title)

    def drawn(self) -> Picture:
        """Return the whole picture."""
        _lens(self.picture, self.wire, self.strip, self.way.headers)
        self._host("h1", "10.244.1.0/24", LEFT, "end")
        self._host("h2", "10.244.2.0/24", RIGHT, "start")
        self._path()
        self._underlay()
        self._speakers()
        self._container("c1", "10.244.1.2", DOWN, "start")
        self._container("c2", "10.244.2.2", UP, "end")
        self._steps(DOWN, "start", self.way.sends)
        self._steps(UP, "end", self.way.takes[::-1])
        self._packet()
        return self.picture

    def _host(self, name: str, block: str, ends: tuple[float, float], anchor: str) -> None:
        left, right = ends
        self.picture.rect(left, TOP, right - left, self.bottom - TOP, "card", radius=10)
        x = right - 20 if anchor == "end" else left + 20
        self.picture.text(x, TOP + 42, name, anchor=anchor, name=22)
        self.picture.text(x, TOP + 66, block, "net", anchor=anchor)

    def _container(self, name: str, address: str, port: float, anchor: str) -> None:
        left = port - 40 if anchor == "start" else port + 40 - BOX
        self.picture.rect(left, TOP + 20, BOX, 60, "net", radius=8, dashed=True)
        self.picture.text(left + 16, TOP + 44, name, "net", name=17)
        self.picture.text(left + 16, TOP + 66, address)
        self.picture.dot(port, TOP + 80, "net")
        self.picture.text(port + (16 if anchor == "start" else -16), TOP + 103, "eth0, veth", "soft", anchor=anchor)

    def _path(self) -> None:
        turn = self.device if self.way.device else self.bottom
        for x, towards in ((DOWN, "down"), (UP, "up")):
            self.picture.line(((x, TOP + 80), (x, turn)), "net")
            self.picture.arrow(x, TOP + 116, towards, "net")
        self.picture.line(((DOWN, turn), (DOWN, self.wire), (UP, self.wire), (UP, turn)), self.outside)
        self.picture.arrow(750, self.wire, "right", self.outside)
        for x, anchor, address in ((DOWN - 34, "start", "192.0.2.1"), (UP + 34, "end", "192.0.2.2")):
            self.picture.chip(x, self.bottom, f"eth0 {address}", "soft", anchor=anchor)
            if self.way.device:
                self.picture.chip(x, self.device, self.way.device, self.outside, anchor=anchor)

    def _steps(self, x: float, anchor: str, steps: Sequence[tuple[str, str]]) -> None:
        for number, (kind, entry) in enumerate(steps, self.rows - len(steps)):
            y = FIRST + number * STEP
            self.picture.dot(x, y, "net")
            self.picture.text(x + (20 if anchor == "start" else -20), y + 4.5, entry, label=kind, anchor=anchor)

    def _underlay(self) -> None:
        match self.way.between:
            case "cloud":
                _cloud(self.picture, MIDDLE, self.wire)
            case "switch":
                _switch(self.picture, MIDDLE, self.wire)
            case "router":
                _router(self.picture, MIDDLE, self.wire)
            case "switches":
                self._programmed()

    def _programmed(self) -> None:
        """Draw two switches and the controller that programs them."""
        top = self.bottom - 34
        for x in (MIDDLE - 90, MIDDLE + 90):
            points = ((MIDDLE, top), (MIDDLE, top + 38), (x, top + 38), (x, self.wire - 22))
            self.picture.line(points, "talk", width=2, dashed=True)
            _switch(self.picture, x, self.wire)
        self.picture.chip(MIDDLE, top, "controller", "talk")
        self.picture.text(MIDDLE, self.wire + 46, "10.244.2.0/24 → MAC h2, port 2", label="flow", anchor="middle")

    def _speakers(self) -> None:
        """Draw the programs of the two hosts, which talk to each other or to the router between them."""
        if not self.way.speaker:
            return
        y = self.bottom - 36
        ends = (LEFT[1] - 44, RIGHT[0] + 44)
        if self.way.between == "router":
            for x in ends:
                self.picture.line(((x, y), (MIDDLE, y), (MIDDLE, self.wire - 30)), "talk", width=2, dashed=True)
            self.picture.text(MIDDLE, y - 10, "BGP", "talk", anchor="middle")
        else:
            self.picture.line(((ends[0], y), (ends[1], y)), "talk", width=2, dashed=True)
        for x in ends:
            self.picture.chip(x, y, self.way.speaker, "talk")

    def _packet(self) -> None:
        """Draw the packet on the wire, and its headers below, with a bracket around what the backend adds."""
        self.picture.rect(LENS - 14, self.wire - 9, 28, 18, self.outside, radius=3)
        headers = self.way.headers
        left = self.picture.strip(MIDDLE, self.strip, headers)
        if self.way.cost:
            added = [place for place, header in enumerate(headers) if header.role == "way" or header == FRAMED]
            begin, end = (left + sum(map(_header_width, headers[:n])) for n in (added[0], added[-1] + 1))
            self.picture.bracket(begin, end, self.strip + 38, f"+{self.way.cost} B", "way")


def _lens(picture: Picture, wire: float, strip: float, headers: Sequence[Header]) -> None:
    """Draw the light from the packet on the wire to its headers."""
    half = sum(map(_header_width, headers)) / 2
    path = f"M{LENS:g} {wire:g}L{MIDDLE - half:g} {strip:g}H{MIDDLE + half:g}Z"
    picture.raw(f'<path d="{path}" class="f-soft" opacity="0.7"/>')


def _cloud(picture: Picture, x: float, y: float) -> None:
    """Draw any network of routers: it knows the hosts' addresses."""
    picture.raw(
        f'<path transform="translate({x:g} {y:g})" d="M-46 22a20 20 0 0 1 -4 -39a26 26 0 0 1 46 -13a22 22 0 0 1 38 10'
        'a21 21 0 0 1 12 42Z" class="f-soft s-soft" stroke-width="1.5" stroke-linejoin="round"/>'
    )
    picture.text(x, y + 8, "IP", "soft", anchor="middle", name=15)


def _switch(picture: Picture, x: float, y: float) -> None:
    picture.rect(x - 34, y - 19, 68, 38, "soft", radius=6)
    picture.raw(
        f'<path transform="translate({x:g} {y:g})" d="M-18 -5H14M8 -10l6 5l-6 5M18 6H-14M-8 1l-6 5l6 5" fill="none" '
        'class="s-soft" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"/>'
    )


def _router(picture: Picture, x: float, y: float) -> None:
    picture.raw(f'<circle cx="{x:g}" cy="{y:g}" r="27" class="f-soft s-soft" stroke-width="1.5"/>')
    picture.raw(
        f'<path transform="translate({x:g} {y:g})" d="M-18 0H-6M-11 -5l5 5l-5 5M18 0H6M11 -5l-5 5l5 5M0 -6V-18'
        'M-5 -13l5 -5l5 5M0 6V18M-5 13l5 5l5 -5" fill="none" class="s-soft" stroke-width="2" stroke-linecap="round" '
        'stroke-linejoin="round"/>'
    )


def _bridge() -> Picture:
    """Draw the network of the tutorial's chapter 2.1 as linkspan builds it."""
    picture = Picture(WIDTH, 574, "Two containers on a bridge, and their way out")
    right, bridge, uplink = 792.0, 250.0, 414.0
    a, b, out, nat = 170.0, 500.0, 330.0, 520.0  # where packets enter and leave the bridge, and are changed
    picture.rect(LEFT[0], TOP, right - LEFT[0], uplink - TOP + 46, "card", radius=10)
    picture.text(right - 20, TOP + 42, "host", anchor="end", name=22)
    picture.rect(64, bridge - 27, 640, 54, "soft", radius=8)
    picture.text(684, bridge + 6, "ls-mybr0", anchor="end", name=17)
    way = ((a + 13, TOP + 90), (a + 13, bridge + 8), (out, bridge + 8), (out, uplink), (876, uplink))
    picture.line(way, "way")
    picture.line(((a, TOP + 90), (a, bridge - 8), (b, bridge - 8), (b, TOP + 90)), "net")
    for name, address, port in (("netns_A", "172.18.0.2", a), ("netns_B", "172.18.0.3", b)):
        picture.rect(port - 106, TOP + 20, 226, 70, "net", radius=8, dashed=True)
        picture.text(port - 88, TOP + 47, name, "net", name=17)
        picture.text(port - 88, TOP + 70, f"{address}/16")
        picture.text(port - 16, TOP + 113, "eth0", "soft", anchor="end")
        picture.text(port - 16, bridge - 40, "veth", "soft", anchor="end")
        picture.dot(port, TOP + 90, "net")
        picture.dot(port, bridge - 27, "net")
    picture.dot(a + 13, TOP + 90, "way", 3.5)
    picture.dot(a + 13, bridge - 62, "way")
    picture.text(a + 33, bridge - 57.5, "default → 172.18.0.1", label="route")
    picture.arrow(b, bridge - 62, "up", "net")
    picture.chip(out, bridge + 27, "172.18.0.1/16", "way")
    for y, kind, entry in ((bridge + 78, "route", "default → uplink"), (bridge + 114, "forward", "172.18.0.0/16 ✓")):
        picture.dot(out, y, "way")
        picture.text(out + 20, y + 4.5, entry, label=kind)
    picture.dot(nat, uplink, "way")
    picture.text(nat, uplink - 18, "172.18.0.2 → 192.0.2.1", label="snat", anchor="middle")
    picture.text(nat, uplink + 29, ":8080 → 172.18.0.2:80", label="dnat", anchor="middle")
    picture.arrow(660, uplink, "right", "way")
    picture.chip(right, uplink, "uplink 192.0.2.1", "soft")
    picture.rect(876, uplink - 34, 100, 68, "card", radius=8)
    picture.text(926, uplink + 5, "192.0.2.2", anchor="middle")
    y = uplink + 66
    picture.text(32, y + 22, "L2", "net", name=17)
    picture.strip(244, y, (Header("Ethernet A → B", "net"), Header("IP 172.18.0.2 → 172.18.0.3", "net")))
    picture.text(494, y + 22, "L3", "way", name=17)
    picture.strip(728, y, (Header("Ethernet A → ls-mybr0", "soft"), Header("IP 172.18.0.2 → 192.0.2.2", "net")))
    picture.strip(728, y + 42, (Header("Ethernet", "soft"), Header("IP 192.0.2.1 → 192.0.2.2", "way")))
    return picture


def _host() -> Picture:
    """Draw containers that use their hosts' own network."""
    picture = Picture(WIDTH, 392, "Host networking: containers have the host's address, and share its ports")
    bottom, wire, strip = 210.0, 272.0, 334.0
    headers = (ETHERNET, Header("IP 192.0.2.1 → 192.0.2.2", "net"), Header("TCP 8080", "net"))
    _lens(picture, wire, strip, headers)
    for name, (left, right) in (("h1", LEFT), ("h2", RIGHT)):
        picture.rect(left, TOP, right - left, bottom - TOP, "card", radius=10)
        x, anchor = (right - 20, "end") if left < MIDDLE else (left + 20, "start")
        picture.text(x, TOP + 42, name, anchor=anchor, name=22)
    picture.line(((DOWN, TOP + 80), (DOWN, wire), (UP, wire), (UP, TOP + 80)), "net")
    for x, towards in ((DOWN, "down"), (UP, "up")):
        picture.arrow(x, TOP + 134, towards, "net")
    picture.arrow(750, wire, "right", "net")
    picture.rect(LENS - 14, wire - 9, 28, 18, "net", radius=3)
    _cloud(picture, MIDDLE, wire)
    for name, port, left in (("c1", ":8080", DOWN - 40), ("c3", ":8081", DOWN + 116), ("c2", ":8080", UP - 96)):
        picture.rect(left, TOP + 20, 136, 60, "net", radius=8)
        picture.text(left + 14, TOP + 44, name, "net", name=17)
        picture.text(left + 14, TOP + 66, port)
    picture.text(DOWN + 182, TOP + 66, ":8080 ✗", "bad")
    for x, anchor, address in ((DOWN - 34, "start", "192.0.2.1"), (UP + 34, "end", "192.0.2.2")):
        picture.chip(x, bottom, f"eth0 {address}", "soft", anchor=anchor)
    picture.strip(MIDDLE, strip, headers)
    return picture


def pictures() -> dict[str, str]:
    """Return every picture's text by the name of its file."""
    found = {"bridge": _bridge(), "host": _host()} | {name: Crossing(way).drawn() for name, way in WAYS.items()}
    return {f"{name}.svg": picture.svg() for name, picture in found.items()}


def main() -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description="draw the pictures of the pages")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    failed = 0
    for name, text in pictures().items():
        path = FOLDER / name
        if arguments.check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                failed = 1
                print(f"docs/pictures/{name} is not what this script draws")
        else:
            path.write_text(text, encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
