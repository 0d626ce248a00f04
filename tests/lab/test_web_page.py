"""`linkspan web` in Chromium, at a real lab of three hosts: what it shows, and what it does when things break."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.lab.cluster_runs import ClusterRun
from support.polling import until
from support.web import chromium, thief
from support.web.answers import FakeAgent, endpoint
from support.web.chromium import Browser, Keys

ROOT = Path(__file__).parents[2]
VIEWS = {
    "containers": "c6", "hosts": "192.0.2.3", "networks": "10.244.0.0/16", "addresses": "no leaks",
    "events": "the agent started", "doctor": "kernel veth", "peers": "vxlan · MTU 1450",
    "bgp": "No network here uses BGP.", "drift": "no drift", "migrations": "No network migrates.",
}  # fmt: skip
"""By view: what is shown there."""
GRAPH = "const graph = document.querySelector('.canvas')._cyreg.cy;"
SCREEN = (
    f"{GRAPH} const own = graph.container().getBoundingClientRect(), pan = graph.pan(), zoom = graph.zoom();"
    "return [own.x + pan.x + arguments[0].x * zoom, own.y + pan.y + arguments[0].y * zoom]"
)
"""Where a position of the graph is on the screen."""
NOBODY = 65534
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def lab() -> Iterator[ClusterRun]:
    """Give a lab of three hosts with six containers; two labels are hostile."""
    found = ClusterRun()
    found.run("up", "--containers-per-host 2 --store etcd")
    try:
        labels = {"set": {"note": HOSTILE, "long": "x" * 10_000}}
        found.call("h1", "PATCH", "/v1/endpoints/c4/labels", labels)
        yield found
    finally:
        found.run("down")


@pytest.fixture(scope="module")
def place(lab: ClusterRun) -> Iterator[str]:
    """Give the namespace of the page and the browser."""
    with chromium.namespace(f"{lab.name}-view") as name:
        yield name


@pytest.fixture(scope="module")
def page(lab: ClusterRun, place: str) -> Iterator[Browser]:
    """Give a browser that has opened the link."""
    with chromium.page_process(place, "--lab", lab.name) as link, chromium.browser(place) as found:
        found.size(1440, 900)
        found.driver.get(link())
        found.shows("c6")
        yield found


@pytest.fixture(autouse=True)
def fresh(page: Browser) -> Iterator[None]:
    """Begin each test with the table of containers, and let none leave a complaint of the browser."""
    page.run("location.hash = '#/containers'")
    page.shows("c6", ".list")
    yield
    own = [one for one in page.complaints() if "127.0.0.1" in one]
    assert [one for one in own if "Failed to load resource" not in one] == []


@contextlib.contextmanager
def faked(page: Browser, place: str, folder: Path, *endpoints: dict[str, Any]) -> Iterator[FakeAgent]:
    """Open the page of an agent that has these containers, and is its answers only; give the agent."""
    agent = FakeAgent(folder / "agent.sock")
    agent.answers.endpoints[:] = endpoints
    with agent.in_thread(), chromium.page_process(place, "--socket", str(agent.path)) as link:
        page.driver.get(link())
        yield agent


def mended(lab: ClusterRun, host: str) -> None:
    """Mend a host, and wait until the others answer it again."""
    lab.run("mend", host)
    until(lambda: not lab.status("h1")["unreachable"], "h1 reaches its peers again")


def test_every_view_shows_the_lab(page: Browser) -> None:
    """Each by its link; none makes a request that the policy refuses (`fresh`)."""
    for view, text in VIEWS.items():
        page.view(view)
        page.shows(text, ".list")
        assert f"#/{view}" in page.driver.current_url
    page.run("location.hash = '#/addresses?network=demo'")
    page.shows("every container", ".list")  # the gateway's holder


def test_two_clicks_show_the_way_there_and_back(page: Browser) -> None:
    """The first chooses, the second traces, hop by hop."""
    page.row("c1")
    page.shows("10.244.", ".details")
    page.row("c3")
    page.shows("Reachable", ".verdict")
    page.shows("encapsulated", ".hops")
    page.shows("vxlan", ".hops")
    page.shows("MTU 1450", ".hops")
    page.click(".ways button:nth-child(2)")
    until(lambda: "h3" in page.text(".hops li:first-child"), "the way back begins at h3")


def test_the_keyboard_is_enough(page: Browser) -> None:
    """Enter chooses a row, Escape closes the panel, and the address bar keeps the rest."""
    page.run("[...document.querySelectorAll('button.row')].find((one) => one.innerText.trim() === 'c2').focus()")
    page.press(Keys.ENTER)
    page.shows("c2", ".details")
    page.press(Keys.ESCAPE)
    until(lambda: page.find(".details") is None, "the panel is closed")
    page.run("document.querySelector('input.search').focus()")
    page.press("c5")
    until(lambda: page.run("return document.querySelectorAll('tbody tr').length") == 1, "one row is left")
    assert "q=c5" in page.driver.current_url
    page.driver.refresh()
    page.shows("c5", ".list")
    assert "c4" not in page.text(".list")


def test_a_real_packet_is_seen_at_the_hops(page: Browser) -> None:
    """Root may send one."""
    page.row("c1")
    page.row("c2")
    page.shows("Reachable", ".verdict")
    page.click(".ways button.strong")
    page.shows("seen", ".hops")


def test_an_object_shows_the_commands_that_make_it(page: Browser) -> None:
    """Of a container on another host, from that host's agent."""
    page.row("c2")
    page.click(".commands summary")
    page.shows("ip -n", ".plan")
    page.shows("container c2", ".plan")


def test_a_member_of_the_sockets_group_may_look(page: Browser, lab: ClusterRun, place: str) -> None:
    """And sends no packet; somebody else is told so, and gets no page."""
    socket = lab.folder / "h1" / "agent.sock"
    with chromium.page_process(place, "--lab", lab.name, user=NOBODY) as link:
        assert link() == ""
    os.chown(socket, 0, NOBODY)
    try:
        with chromium.page_process(place, "--lab", lab.name, user=NOBODY) as link, page.tab():
            page.driver.get(link())
            page.row("c1")
            page.row("c3")
            page.shows("Reachable", ".verdict")
            page.shows("root only", ".ways")
            assert page.find(".ways button.strong") is None
    finally:
        os.chown(socket, 0, 0)


def test_hostile_text_is_text(page: Browser) -> None:
    """A label with a tag runs nothing, and a long one breaks nothing."""
    page.row("c4")
    page.shows(HOSTILE, ".details")
    assert page.run("return document.querySelectorAll('.details img').length") == 0
    width = page.run("return document.documentElement.scrollWidth - innerWidth")
    assert width <= 0


def test_hostile_names_are_text(page: Browser, place: str, tmp_path: Path) -> None:
    """In the table, the graph and the panel: no tag counts, no control character gets through, nothing is too long."""
    names = ["<script>document.title = 'taken'</script>", "\x1b[31m\u202ered", "x" * 10_000]
    with page.tab(), faked(page, place, tmp_path, *(endpoint(f"{n}", "h1", name=one) for n, one in enumerate(names))):
        page.shows(names[0], ".list")
        until(lambda: page.find(".map .legend"), "the graph is there")
        for number in range(3):
            page.run(f"location.hash = '#/containers?sel=c:{number}/eth0'")
            page.shows(str(number), ".details code.clip")
            assert page.run("return document.documentElement.scrollWidth - innerWidth") <= 0
        shown = page.text()
        assert r"\u001b[31m\u202ered" in shown
        assert not {"\x1b", "\u202e"} & set(shown)
        assert page.run("return document.querySelectorAll('#app script').length") == 0
        assert "taken" not in page.driver.title


def test_names_that_objects_inherit_are_no_containers(page: Browser) -> None:
    """A link with one breaks nothing."""
    for name in ("__proto__", "constructor"):
        page.run("location.hash = `#/containers?sel=c:${arguments[0]}`", name)
        page.shows("It is gone.", ".details")
        page.run("location.hash = `#/containers?a=c:${arguments[0]}&b=c:c1/eth0`", name)
        page.shows(name, ".trace h2")
        page.shows("c6", ".list")
        page.run("location.hash = `#/networks?sel=n:${arguments[0]}`", name)
        page.shows("It is gone.", ".details")


def test_a_view_that_fails_says_so(page: Browser) -> None:
    """And the page can be loaded again, without what failed."""
    page.run("Object.values = () => { throw new Error('a fault of the test'); }; location.hash = '#/hosts'")
    page.shows("The page failed: a fault of the test")
    page.click("button.quiet")
    page.shows("c6", ".list")
    page.complaints()


def test_the_matrix_has_what_the_hosts_have_measured(page: Browser, lab: ClusterRun) -> None:
    """Each direction by the sender's own pings; a host whose agent is away says nothing of its row."""
    measured = "return [...document.querySelectorAll('.matrix td b')].map((one) => one.innerText)"
    page.view("peers")
    for again in range(2):
        until(lambda: len(page.run(measured)) == 6, "all six directions are measured")
        assert all(one.endswith(" ms") for one in page.run(measured))
        if not again:
            page.click(".heading .actions .quiet")
    lab.run("break", "h3 agent-kill")

    def asked() -> int:
        page.click(".heading .actions .quiet")
        return len(page.run(measured))

    try:
        until(lambda: asked() == 4, "h3's row is empty")
        page.shows("no answer", ".matrix")
    finally:
        mended(lab, "h3")


def test_a_cell_of_the_matrix_has_a_value_or_the_reason(page: Browser) -> None:
    """A large cluster's has the hosts that were asked, and a user's own host where only root may ask the others."""
    script = """
        const [done] = arguments;
        import("/matrix.js").then(({ shownIn, untold, worstOf }) => {
          const hosts = Array.from({ length: 100 }, (_, number) => ({ name: `h${number}` }));
          const shown = (asked) => shownIn("h70", hosts, asked).map((one) => one.name);
          const told = { hosts: ["h1", "h2"], silent: [{ host: "h2", why: "silent" }], paths: [] };
          const word = (measured, everywhere, host) => untold(measured, "", everywhere, host).word;
          const of = (network, loss, round_trip) => ({ host: "h1", peer: "h2", network, loss, round_trip });
          done({
            first: shown([]), asked: shown(["h70", "h5", "h9"]), own: shown(["h70"]).length,
            words: [word(told, true, "h1"), word(told, true, "h2"), word(told, true, "h3"), word(told, false, "h3"),
              word(null, true, "h1"), untold(null, "away", true, "h1").why],
            worst: worstOf([of("a", 0, 0.1), of("b", 0.5, null), of("c", 0, 0.2)]).get("h1 h2").network,
          });
        });
    """
    found = page.driver.execute_async_script(script)
    assert found["first"] == [*(f"h{number}" for number in range(39)), "h70"]
    assert found["asked"] == ["h5", "h9", "h70"]
    assert found["own"] == 40
    assert found["words"] == ["not measured yet", "no answer", "not asked yet", "root only", "…", "away"]
    assert found["worst"] == "b"


def test_a_link_shows_what_joins_two_hosts(page: Browser) -> None:
    """From the matrix by its cell, and in the graph by its line: what both measured, and the commands on both."""
    page.view("peers")
    page.click(".matrix td a")
    page.shows("h1 ↔ h2", ".details h2")
    until(lambda: page.text(".details").count(" ms") == 2, "both directions are measured")
    page.click(".commands summary")
    page.shows("to reach host h2", ".plan")
    assert "to reach host h3" not in page.text(".plan")
    chosen = f"{GRAPH} return graph.$('edge.chosen').map((one) => one.id())"
    until(lambda: page.run(chosen) == ["l:h1 h2"], "the line is marked")
    line = page.run(f"{GRAPH} return graph.getElementById('l:h1 h3').midpoint()")
    page.mouse(*page.run(SCREEN, line))
    page.shows("h1 ↔ h3", ".details h2")


def test_a_drag_moves_the_picture_also_from_a_box(page: Browser) -> None:
    """Boxes cover most of it."""
    pan, fit = f"{GRAPH} return graph.pan()", ".tools button:last-child"
    page.shows("Fit", ".tools")
    page.click(fit)
    box = page.run(f"{GRAPH} const at = graph.getElementById('h:h2').position(); return {{x: at.x, y: at.y + 20}}")
    before, (x, y) = page.run(pan), page.run(SCREEN, box)
    page.mouse(x, y, to=(x + 60, y + 40))
    moved = {"x": before["x"] + 60, "y": before["y"] + 40}
    until(lambda: page.run(pan) == pytest.approx(moved, abs=15), "the picture has moved")
    assert page.find(".panel") is None
    page.click(fit)
    until(lambda: page.run(pan) == pytest.approx(before, abs=15), "it fits again")


def test_a_large_cluster_comes_in_parts(page: Browser, place: str, tmp_path: Path) -> None:
    """The server searches and divides the table; the graph has hosts, and a host's containers if somebody asks.

    What comes appears by itself, and the graph says how many it leaves out.
    """
    names = [(f"{host}-{number:04}", host) for host in ("h1", "h2") for number in range(2600)]
    drawn = (
        "const dots = document.querySelector('canvas.dots'), paper = dots.getContext('2d');"
        "return paper.getImageData(0, 0, dots.width, dots.height).data.some(Boolean)"
    )
    with page.tab(), faked(page, place, tmp_path, *(endpoint(*one) for one in names)) as agent:
        page.shows("1 of 26, 5200 containers", ".pages")
        agent.answers.endpoints.insert(0, endpoint("a-new-one", "h1"))
        page.shows("a-new-one", ".list")
        page.shows("1 of 27, 5201 containers", ".pages")
        page.click(".pages button:last-child")
        page.shows("h1-0200", ".list")
        page.run("location.hash = '#/containers?q=h2-2599'")
        page.shows("1 of 1, 1 containers", ".pages")
        page.view("hosts")
        page.row("h2")
        page.shows("Show its containers", ".tools")
        assert not page.run(drawn)
        page.click(".tools button:first-child")
        until(lambda: page.run(drawn), "the host's containers are drawn")
        page.shows("2400 more", ".tools")


def test_a_dot_in_the_graph_can_be_clicked(page: Browser) -> None:
    """As well as a row, and a box: its place on the screen is another one once the panel is closed."""
    chosen = f"{GRAPH} const found = graph.$('.chosen'); return found.length ? found.position() : null"
    box = f"{GRAPH} const at = graph.getElementById('h:h2').position(); return {{x: at.x, y: at.y + 20}}"
    page.row("c1")
    until(lambda: page.run(chosen), "c1 is chosen in the graph")
    place = page.run(chosen)
    page.click(".details .close")
    until(lambda: page.run(chosen) is None, "the graph has the panel's room again")
    page.mouse(*page.run(SCREEN, place))
    page.shows("c1", ".details")
    page.mouse(*page.run(SCREEN, page.run(box)))
    page.shows("h2", ".trace h2")


def test_an_attached_container_appears_by_itself(page: Browser, lab: ClusterRun) -> None:
    """And goes; the others keep their places in the graph."""
    before = page.text(".list")
    lab.run("attach", "h1 c9")
    page.shows("c9", ".list")
    lab.run("detach", "c9")
    until(lambda: page.text(".list") == before, "c9 is gone from the table")


def test_a_host_that_comes_back_has_its_place(page: Browser) -> None:
    """It leaves a gap meanwhile, and nothing else moves; a container's place is given again when it is needed."""
    script = """
        const done = arguments[0];
        import("/layout.js").then(({ Layout }) => {
          const layout = new Layout();
          const host = (name) => ({ name });
          const places = (hosts, containers) =>
            Object.fromEntries(layout.elements(hosts.map(host), containers).map((one) => [one.id, one.position]));
          const on = (key) => ({ key, host: "h1", network: "demo" });
          const all = [on("a"), on("b"), on("c")];
          const before = places(["h1", "h2", "h3"], all);
          const without = places(["h1", "h3"], all.slice(1));
          const after = places(["h1", "h2", "h3"], all);
          for (let number = 0; number < 500; number += 1) places(["h1"], [on(`n${number}`)]);
          done([before, without, after, layout.containers.get("h1").size]);
        });
    """
    before, without, after, kept = page.driver.execute_async_script(script)
    assert without == {id_: place for id_, place in before.items() if id_ in without}
    assert before == after
    assert kept <= 12


def test_an_agent_restarts_under_the_page(page: Browser, lab: ClusterRun) -> None:
    """The bar says that it does not answer, the picture stays, and all comes back without a new login."""
    lab.run("break", "h1 agent-kill")
    page.shows("The agent does not answer", ".bar")
    assert "c6" in page.text(".list")
    lab.run("mend", "h1")
    page.shows("all well", ".bar")


def test_a_store_that_is_away_is_told(page: Browser, lab: ClusterRun) -> None:
    """As a problem; traces still work, because they ask the kernels."""
    lab.run("break", "h1 store-cut")
    try:
        page.shows("problem", ".bar")
        page.row("c1")
        page.row("c4")
        page.shows("Reachable", ".verdict")
    finally:
        lab.run("mend", "h1")
    page.shows("all well", ".bar")


def test_tabs_share_one_stream(page: Browser) -> None:
    """Eight tabs are live, though a browser has six connections to a server."""
    address = page.driver.current_url
    with contextlib.ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(page.tab())
            page.driver.get(address)
        page.shows("c6", ".list")


def test_the_cookie_alone_opens_nothing(page: Browser) -> None:
    """Browsers send it to every port of the host; the token is neither in a cookie nor in the address."""
    script = "const done = arguments[0]; fetch('/api/state').then((answer) => done(answer.status))"
    assert page.driver.execute_async_script(script) == 401
    token = page.run("return localStorage.getItem('linkspan-token')")
    assert len(token) == 43
    assert token not in page.driver.current_url
    assert token not in str(page.driver.get_cookies())


def test_another_page_gets_nothing(page: Browser, place: str) -> None:
    """Not from a server on another port, though the browser gives it the cookie, nor by a name that leads here."""
    origin = page.run("return location.origin")
    with thief.serving(place) as other, page.tab():
        page.driver.get(other.origin)
        assert page.driver.execute_async_script(thief.TRIES, origin) == ["failed"] * 5
        assert any("frame" in one for one in page.complaints()), "the frame is refused"
        assert other.cookies[0].startswith("linkspan-")
        assert other.asks(origin, "/api/state") == 401
        page.driver.get(f"{origin.replace('127.0.0.1', 'rebound.localhost')}/")
        page.shows("the header Host names another server")
        page.driver.get(f"{origin}/login?token=wrong")
        page.shows("it was used, or is older than a minute")
        page.complaints()
    page.shows("all well", ".bar")


def test_a_second_link_leads_back(page: Browser, lab: ClusterRun, place: str) -> None:
    """The session ends with the server; the next one's link opens in a tab beside, and the first tab is live again."""
    words = ("--lab", lab.name, "--listen", "127.0.0.1:8099")
    with page.tab() as old:
        with chromium.page_process(place, *words) as link:
            page.driver.get(link())
            page.shows("all well", ".bar")
            until(lambda: page.find(".map .legend"), "the page's last file is loaded")
        page.shows("does not answer", ".bar")
        with chromium.page_process(place, *words) as link:
            page.shows("The session is over", ".bar")
            page.shows("press Enter where it runs", ".bar")
            with page.tab():
                page.driver.get(link())
                page.shows("all well", ".bar")
                page.row("c1")
                page.row("c3")
                page.shows("Reachable", ".verdict")
                page.driver.switch_to.window(old)
                page.shows("all well", ".bar")


def test_a_tab_whose_shared_worker_does_not_start_is_live(page: Browser, lab: ClusterRun) -> None:
    """A browser's policy may forbid such workers: the tab has a stream of its own then."""
    fails = (
        "window.SharedWorker = class extends EventTarget { port = { postMessage() {} };"
        "constructor() { super(); setTimeout(() => this.dispatchEvent(new Event('error'))); } }"
    )
    script = page.devtools("Page.addScriptToEvaluateOnNewDocument", {"source": fails})
    try:
        page.driver.refresh()
        page.shows("c6", ".list")
        lab.run("attach", "h1 c8")
        page.shows("c8", ".list")
        lab.run("detach", "c8")
        until(lambda: "c8" not in page.text(".list"), "c8 is gone from the table")
    finally:
        page.devtools("Page.removeScriptToEvaluateOnNewDocument", script)
        page.driver.refresh()


def test_chinese_is_chosen_and_kept(page: Browser) -> None:
    """After a reload, too."""
    page.language("zh")
    try:
        page.shows("容器", ".list h1")
        page.driver.refresh()
        page.shows("一切正常", ".bar")
        assert page.run("return document.documentElement.lang") == "zh-Hans"
    finally:
        page.language("en")
    page.shows("Containers", ".list h1")


@pytest.fixture(scope="module")
def axe() -> str:
    """Give axe-core, from npm."""
    folder = ROOT / ".venv" / "cache" / "axe-core"
    script = folder / "axe.js"
    command = [sys.executable, str(ROOT / "scripts" / "vendor.py"), "--into", str(folder), "axe-core"]
    if not script.exists():
        subprocess.run(command, check=True)
    return script.read_text(encoding="utf-8")


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_serious_fault(page: Browser, axe: str, dark: bool) -> None:
    """In every view, with a trace, and in light and dark."""
    page.dark(dark)
    try:
        for view, text in VIEWS.items():
            page.view(view)
            page.shows(text, ".list")
            assert faults(page, axe, dark) == [], view
        page.view("containers")
        page.row("c1")
        assert faults(page, axe, dark) == []
        page.row("c3")
        page.shows("Reachable", ".verdict")
        assert faults(page, axe, dark) == []
    finally:
        page.dark(False)


def faults(page: Browser, axe: str, colours: bool) -> list[str]:
    """Return axe's serious findings; about ``colours`` alone, or all."""
    page.devtools("Runtime.evaluate", {"expression": f"if (!window.axe) {{ {axe} }}"})
    script = (
        "const done = arguments[1];"
        "const wanted = {resultTypes: ['violations'], ...(arguments[0] && {runOnly: ['color-contrast']})};"
        "axe.run(wanted).then((found) => done(found.violations"
        ".filter((one) => ['serious', 'critical'].includes(one.impact))"
        ".map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(' ').slice(0, 300)}`)))"
    )
    found: list[str] = page.driver.execute_async_script(script, colours)
    return found


@pytest.mark.parametrize("width", [360, 1440, 3840])
def test_no_width_needs_to_be_scrolled_sideways(page: Browser, width: int) -> None:
    """From a phone to a wall."""
    page.size(width, 900)
    try:
        page.row("c1")
        page.row("c2")
        page.shows("Reachable", ".verdict")
        assert page.run("return document.documentElement.scrollWidth") <= width
    finally:
        page.size(1440, 900)
