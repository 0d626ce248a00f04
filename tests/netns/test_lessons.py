"""Lessons on the real kernel: every way through each of them, and what the watcher sees."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.errors import LinkspanError
from linkspan.learn import needs, play, sandbox
from linkspan.learn.beside import Beside
from linkspan.learn.lesson import Lesson, numbered
from linkspan.learn.needs import Need
from linkspan.learn.sandbox import Sandbox
from linkspan.learn.watcher import Judgement, Watcher, judge, settings
from support.netns.played_lessons import ALL, problems
from support.polling import SHARED, until


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give an empty sandbox, in which linkspan speaks English: this machine's user may have kept another language."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with sandbox.passing(f"test-{os.getpid()}") as made:
        yield made


@pytest.mark.parametrize("one", [one for one in ALL if one.number < 12], ids=lambda one: one.name)
def test_solutions_pass_and_nothing_and_wrong_answers_do_not(one: Lesson) -> None:
    """Both solutions pass; a wrong answer is recognised by its own sign; `explain` sees the solution."""
    assert problems(one) == []


def test_a_sandbox_is_not_this_machine(box: Sandbox) -> None:
    """Neither its network and its name, nor its names of namespaces, nor its processes."""
    code, output = box.script("ip netns add netns_A; ip link add mybr0 type bridge; ip -br link; ip netns; ps -e")
    assert code == 0
    assert "mybr0" in output
    assert "netns_A" in output
    assert len(output.splitlines()) < 12
    assert not Path("/run/netns/netns_A").exists()
    assert not Path("/sys/class/net/mybr0").exists()
    assert box.results(["readlink /proc/self/ns/uts"])[0][1] != os.readlink("/proc/self/ns/uts")


def test_a_name_that_nobody_knows_is_not_waited_for(box: Sandbox) -> None:
    """The machine's DNS servers would be asked for it, five seconds each time, wherever the default route leads."""
    code, said = box.script("""
        ip link add near type veth peer name far; ip link set far up
        ip link set near up; ip addr add 192.0.2.1/24 dev near
        ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev near nud permanent; ip route add default via 192.0.2.9
        timeout 4 getent hosts name.example || echo $?
    """)
    assert (code, said.strip()) == (0, "2")


def test_a_sandbox_s_current_folder_is_its_own(box: Sandbox) -> None:
    """A relative path leads to the sandbox's /run, never to the machine's: as root it could remove its namespaces."""
    (code, listed), (_, place) = box.results(["ls run; echo; ls /run", "pwd"])
    relative, _, absolute = listed.partition("\n\n")
    assert (code, relative, place.strip()) == (0, absolute, "/")
    assert box.script("ls -id run; ls -id /run")[1].split()[::2] == [box.script("stat -c %i /run")[1]] * 2


def test_the_wrappers_are_made_from_a_user_s_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's has no /usr/sbin, where tcpdump and dnsmasq are."""
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    with sandbox.passing(f"test-path-{os.getpid()}") as box:
        for tool in filter(lambda name: Path("/usr/sbin", name).exists(), ("tcpdump", "dnsmasq")):
            assert box.script(f"command -v {tool}") == (0, f"{sandbox.RUN}/bin/{tool}")


@pytest.mark.parametrize("loadable", [True, False])
def test_a_module_that_could_be_loaded_is_not_loaded_to_find_that_out(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, loadable: bool
) -> None:
    """It would stay in the machine's kernel; one that cannot be loaded may be built in, so that is tried."""
    monkeypatch.setitem(needs.NEEDS, "x", Need(f"touch {sandbox.RUN}/tried; false", "x", "", "rtnl-link-x"))
    answer = "test \"$*\" = '-qn rtnl-link-x'" if loadable else "false"
    program = f"{sandbox.RUN}/bin/modprobe"
    box.script(f"printf '%s\\n' '#!/bin/sh' {shlex.quote(answer)} > {program}; chmod 755 {program}")
    assert needs.unmet(box, ["ip", "x"]) == ([] if loadable else ["x"])
    assert box.results([f"test -e {sandbox.RUN}/tried"])[0][0] == int(loadable)


@pytest.mark.parametrize("word", ["uninstall", "agent", "status"])
def test_linkspan_itself_is_refused_in_a_sandbox(box: Sandbox, word: str) -> None:
    """The files are the machine's, but the network is not: `uninstall` would remove what it believes unused."""
    code, said = box.script(f"linkspan {word} --help")
    assert code == 1
    assert "sandbox" in said
    assert box.script("linkspan version")[0] == 0


def test_the_end_of_a_sandbox_ends_everything_in_it() -> None:
    """Also programs in the background that ignore signals."""
    box = sandbox.make(f"test-end-{os.getpid()}")
    word = f"3600.{os.getpid()}"
    box.script(f"ip netns add x; ip netns exec x sh -c 'trap \"\" TERM HUP; sleep {word}' >/dev/null 2>&1 &")
    until(lambda: _running(word), "the program runs")
    box.end()
    until(lambda: not _running(word), "the program has ended")
    assert sandbox.end_all(f"test-end-{os.getpid()}") == 0


def test_a_sandbox_whose_mark_is_removed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root of a sandbox may overwrite the mark of its first process, and keep that one from ending by itself."""
    box = sandbox.make(f"test-mark-{os.getpid()}")
    word = f"3601.{os.getpid()}"
    box.script(f"echo x > {sandbox.RUN}/left; kill -STOP $(pgrep -x head); sleep {word} >/dev/null 2>&1 &")
    until(lambda: _running(word), "the program runs")
    monkeypatch.setattr(sandbox, "PATIENCE", 5.0)
    with monkeypatch.context() as patched:
        patched.setattr(sandbox, "_marked", lambda _: [])
        assert box.end()
    assert not Path(f"/proc/{box.init}").exists()
    try:
        until(lambda: not _running(word), "the program has ended")
    finally:
        sandbox.end_all(f"test-mark-{os.getpid()}")


def _running(word: str) -> bool:
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and word.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


def test_orphans_of_a_sandbox_are_reaped(box: Sandbox) -> None:
    """Its first process waits for them, or they would stay as zombies."""
    box.script("for n in 1 2 3; do (sleep 0.2 & ) ; done")
    until(lambda: "sleep" not in box.results(["ps -e -o comm"])[0][1], "no sleep is left, not even as a zombie")


def test_a_sandbox_that_somebody_ended_is_not_ended_again() -> None:
    """Its pid may be another process's by then; whoever comes later is told."""
    box = sandbox.make(f"test-twice-{os.getpid()}")
    assert sandbox.end_all(f"test-twice-{os.getpid()}") == 1
    assert not box.end()


def test_a_script_that_does_not_end_is_an_error(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback."""
    monkeypatch.setattr(sandbox, "PATIENCE", 0.2)
    with pytest.raises(LinkspanError, match="did not end within"):
        box.script("sleep 60")


def test_a_failing_command_says_which_and_the_beginning_stops(box: Sandbox) -> None:
    """With the command's own words."""
    code, output = box.script("ip link add mybr0 type bridge\nip link set nothing up\nip link delete mybr0")
    assert code
    assert "nothing" in output
    assert box.results(["ip -o link show mybr0"])[0][0] == 0


def test_a_command_of_a_check_ends_after_its_time(box: Sandbox) -> None:
    """And the next one runs."""
    (first, _), (second, said) = box.results(["sleep 600", "echo on"])
    assert (first != 0, second, said) == (True, 0, "on")


def test_any_command_that_reaches_the_state_is_seen_and_silence_costs_no_probe(box: Sandbox) -> None:
    """The watcher says it within a second; while nothing changes, it judges nothing."""
    one = numbered("bridge")
    play.begin(box, one)
    watcher = Watcher(box, one)
    first = watcher.look()
    assert first is not None
    assert first.checks == (False, False, False)
    until(lambda: watcher.look() is None and watcher.look() is None, "it settles", 10 * SHARED)
    box.script("python3 -c 'import os; os.system(\"ip link add mybr0 type bridge\")' || ip link add mybr0 type bridge")
    began = time.monotonic()
    seen: list[Judgement] = []

    def told() -> bool:
        judged = watcher.look()
        seen.extend([judged] if judged else [])
        return judged is not None and judged.checks[0]

    until(told, "the bridge is seen", 1.0 * SHARED)
    assert time.monotonic() - began < 1.0 * SHARED
    assert seen[-1].probe is None


BUILT = numbered("two-containers").data.solutions[1]
OUT = "type nat hook output priority -100"
TRICKS = {
    "an address on lo": ("two-containers", f"{BUILT}\nip -n netns_A addr add 172.18.0.3/32 dev lo"),
    "a local route": ("two-containers", f"{BUILT}\nip -n netns_A route add local 172.18.0.3 dev lo"),
    "a rule with a comment": (
        "two-containers",
        f"""{BUILT}
        ip netns exec netns_A nft add table ip trick
        ip netns exec netns_A nft add chain ip trick out '{{ {OUT}; }}'
        ip netns exec netns_A nft add rule ip trick out ip daddr 172.18.0.3 dnat to 172.18.0.1 comment '"tcp"'
        """,
    ),
    "a namespace without a name": (
        "case-1",
        """
        ip netns add trick
        ip link add vethT up master mybr0 type veth peer name eth0 netns trick
        ip -n trick addr add 172.18.0.3/16 dev eth0; ip -n trick link set eth0 up
        ip netns exec trick sleep 600 >/dev/null 2>&1 &
        sleep 0.2; ip netns delete trick
        """,
    ),
}
"""By what they do: a lesson, and commands with which its probe is answered from elsewhere."""


@pytest.mark.parametrize("trick", TRICKS)
def test_an_answer_from_elsewhere_does_not_count(box: Sandbox, trick: str) -> None:
    """The probe works, and its packets do not reach the namespace that they should."""
    name, script = TRICKS[trick]
    one = numbered(name)
    play.begin(box, one)
    code, said = box.script(script)
    assert code == 0, said
    until(lambda: box.results([one.data.probe])[0][0] == 0, "the probe is answered")
    judged = judge(box, one)
    assert (judged.passed, judged.probe, judged.arrived) == (False, True, False)
    assert play.told(judged) == "the arrival of the probe"


def test_each_of_several_connections_must_arrive(box: Sandbox) -> None:
    """One of two reaches the host, and the other one a server of whoever asks."""
    one = numbered("host-network")
    play.begin(box, one)
    code, said = box.script(
        f"""{one.data.solutions[0]}
        ip -n world link set lo up
        ip netns exec world nft add table ip trick
        ip netns exec world nft add chain ip trick out '{{ {OUT}; }}'
        ip netns exec world nft add rule ip trick out tcp dport 8080 redirect
        ip netns exec world web 8080 >/dev/null 2>&1 &
        for try in $(seq 400); do ip netns exec world ss -Htln | grep -q ':8080 ' && break; sleep 0.05; done
        """
    )
    assert code == 0, said
    until(lambda: box.results([one.data.probe])[0][0] == 0, "the probe is answered")
    assert not judge(box, one).arrived


def test_rules_that_only_look_like_a_trick_are_allowed(box: Sandbox) -> None:
    """An honest reader may call a table as they like, and accept what another rule has translated."""
    one = numbered("two-containers")
    play.begin(box, one)
    code, said = box.script(
        f"""{BUILT}
        nft add table ip fwd-rules
        nft add chain ip fwd-rules fwd-chain '{{ type filter hook forward priority 0; }}'
        nft add rule ip fwd-rules fwd-chain ct status dnat accept
        """
    )
    assert code == 0, said
    assert play.settled(box, one).passed


SHORTCUTS = {
    "an option in the list": (
        "ipam-by-hand",
        """
        ip -n netns_C addr add 172.18.0.5/16 dev eth0; ip -n netns_C link set eth0 down
        printf '%s\\n' '172.18.0.5 netns_C' '-V netns_C' >> /run/learn/addresses
        """,
    ),
    "routes to what the check asked for": (
        "case-2",
        """
        ip -n netns_A route del default
        ip -n netns_A route add 192.0.2.10 via 172.18.0.1; ip -n netns_A route add 8.8.8.8 via 172.18.0.1
        """,
    ),
    "a cable beside the tunnel": (
        "vxlan",
        """
        ip link add vxlan0 type vxlan id 42 dstport 4789 local 192.0.2.1 remote 192.0.2.77 dev wire
        ip link set vxlan0 master mybr0 up; bridge link set dev vxlan0 state 0
        ip link add cable up master mybr0 type veth peer name cable netns host2
        ip -n host2 link set cable master mybr0 up; ip -n netns_A link set eth0 mtu 1450
        """,
    ),
    "routes with the name of a program": (
        "case-9",
        """
        ip route add 172.18.2.0/24 via 192.0.2.2 dev wire proto bird
        ip -n host2 route add 172.18.1.0/24 via 192.0.2.1 dev wire proto bird
        """,
    ),
}
"""By what they do: a lesson, and commands that do not what its task says."""


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_a_shortcut_solves_nothing(box: Sandbox, shortcut: str) -> None:
    """Whatever the probe says."""
    name, script = SHORTCUTS[shortcut]
    one = numbered(name)
    if lacking := needs.lacking(box, one.data.needs):
        pytest.skip(f"this machine lacks {lacking[0].what}")
    play.begin(box, one)
    code, said = box.script(script)
    assert code == 0, said
    assert not play.settled(box, one).passed


HOSTILE = "cd${IFS}run;cd${IFS}netns;touch${IFS}FOUND"


def test_names_of_namespaces_are_no_commands(box: Sandbox) -> None:
    """What judges a lesson beside the sandbox runs nothing that a reader has written, not even as a name."""
    names = (f"x sh -c {HOSTILE}", f"x;{HOSTILE}", f"$({HOSTILE})", f"x'{HOSTILE}'", "*", "-n", "a\nb")
    files = [shlex.quote(f"/run/netns/{one}") for one in names]
    assert box.script(f"ip netns add x; ip netns add netns_A; touch -- {' '.join(files)}") == (0, "")
    beside = Beside(box)
    for one in ALL:
        judge(beside, one)
    settings(beside, numbered("namespaces"))
    assert "FOUND" not in box.results(["ls /run/netns | grep -x FOUND"])[0][1]


def test_a_pipe_among_the_namespaces_hides_no_change(box: Sandbox) -> None:
    """Namespaces after it are looked at, too; a state that nobody can read to its end is an error."""
    one = numbered("ipam-by-hand")
    box.script("ip netns add x; mkfifo /run/netns/0; echo > /run/learn/addresses")
    before = settings(box, one)
    box.script("ip -n x link add y type bridge")
    assert settings(box, one) != before
    box.script("rm /run/learn/addresses; ln -s /dev/urandom /run/learn/addresses")
    with pytest.raises(LinkspanError, match="cannot be read"):
        settings(box, one)


def test_an_address_that_grows_older_is_no_change(box: Sandbox) -> None:
    """As one of DHCP does, each second."""
    one = numbered("dhcp")
    box.script("ip addr add 192.0.2.1/24 dev lo valid_lft 3600 preferred_lft 3600")
    before = settings(box, one)
    time.sleep(1.5)
    assert settings(box, one) == before
    box.script("ip addr del 192.0.2.1/24 dev lo")
    assert settings(box, one) != before


def test_containers_that_ignore_each_other_are_not_apart(box: Sandbox) -> None:
    """What keeps networks apart must be on the host."""
    one = numbered("two-bridges")
    play.begin(box, one)
    for name in ("netns_A", "netns_C"):
        box.script(f"ip netns exec {name} sysctl -w net.ipv4.icmp_echo_ignore_all=1")
    assert box.results([one.data.probe])[0][0] == 0
    assert judge(box, one).keeps == (True, True, True, False)


ASIDE = {
    "routes that are passed over": (
        "two-bridges",
        "ip -n netns_A route add throw 172.19.0.0/16; ip -n netns_C route add throw 172.18.0.0/16",
        3,
    ),
    "rules to no route": (
        "two-bridges",
        "ip -n netns_A rule add to 172.19.0.0/16 unreachable; ip -n netns_C rule add to 172.18.0.0/16 unreachable",
        3,
    ),
    "a route that is not of main": (
        "two-bridges",
        "ip -n netns_A route add broadcast 172.19.0.2 dev eth0 table local\n"
        "ip -n netns_C route add broadcast 172.18.0.2 dev eth0 table local",
        3,
    ),
    "packets that live for one hop": (
        "two-bridges",
        "ip -n netns_A route add 172.19.0.0/16 via 172.18.0.1 hoplimit 1\n"
        "ip -n netns_C route add 172.18.0.0/16 via 172.19.0.1 hoplimit 1",
        3,
    ),
    "rules for pings": (
        "two-bridges",
        "ip -n netns_A rule add ipproto icmp to 172.19.0.0/16 unreachable\n"
        "ip -n netns_C rule add ipproto icmp to 172.18.0.0/16 unreachable",
        3,
    ),
    "policies of IPsec": (
        "two-bridges",
        "ip -n netns_A xfrm policy add dst 172.19.0.0/16 dir out action block\n"
        "ip -n netns_C xfrm policy add dst 172.18.0.0/16 dir out action block",
        3,
    ),
    "queues with a filter": (
        "two-bridges",
        """
        for one in "A 172.19" "C 172.18"; do
          set -- $one
          tc -n netns_$1 qdisc add dev eth0 root handle 1: htb
          tc -n netns_$1 class add dev eth0 parent 1: classid 1:1 htb rate 1mbit
          tc -n netns_$1 qdisc add dev eth0 parent 1:1 tbf rate 1kbit burst 10 limit 1000
          tc -n netns_$1 filter add dev eth0 parent 1: protocol ip u32 match ip dst $2.0.0/16 flowid 1:1
        done
        """,
        3,
    ),
    "a rule that drops by a map": (
        "two-bridges",
        """
        for one in "A 172.19" "C 172.18"; do
          set -- $one
          ip netns exec netns_$1 nft "add table ip t; add chain ip t out { type filter hook output priority 0; }"
          ip netns exec netns_$1 nft "add rule ip t out ip daddr vmap { $2.0.0/16 : drop }"
        done
        """,
        3,
    ),
    "another address": (
        "case-7",
        "ip -n netns_A addr add 172.18.0.9/16 dev eth0; ip -n netns_A route add 172.18.0.3 dev eth0 src 172.18.0.9",
        1,
    ),
    "another address for pings": (
        "case-7",
        """
        ip -n netns_A route add local 172.18.0.9 dev eth0
        ip -n netns_A route add 172.18.0.3 dev eth0 src 172.18.0.9 table 7
        ip -n netns_A rule add ipproto icmp table 7
        """,
        1,
    ),
    "a translated address": (
        "case-7",
        """
        ip -n netns_A route add local 172.18.0.9 dev eth0
        ip netns exec netns_A nft "add table ip t; add chain ip t post { type nat hook postrouting priority 100; }"
        ip netns exec netns_A nft add rule ip t post ip daddr 172.18.0.3 snat to 172.18.0.9
        """,
        1,
    ),
}
"""By what it does: a lesson, commands with which its probe works, and the place of the keep that they break."""


@pytest.mark.parametrize("aside", ASIDE)
def test_a_container_that_steps_aside_does_not_pass(box: Sandbox, aside: str) -> None:
    """It takes another way than it had, and what the task asks for is not done."""
    name, script, place = ASIDE[aside]
    one = numbered(name)
    play.begin(box, one)
    assert all(judge(box, one).keeps)
    assert box.script(script) == (0, "")
    until(lambda: box.results([one.data.probe])[0][0] == 0, "the probe works")
    judged = judge(box, one)
    assert [n for n, holds in enumerate(judged.keeps) if not holds] == [place]


def test_a_container_s_rules_may_be_looked_at(box: Sandbox) -> None:
    """Programs make empty tables and chains by that."""
    one = numbered("two-bridges")
    play.begin(box, one)
    box.script("for n in A C; do ip netns exec netns_$n iptables -S; ip netns exec netns_$n iptables -t nat -F; done")
    box.script("ip netns exec netns_A nft 'add table ip t; add chain ip t in { type filter hook input priority 0; }'")
    assert judge(box, one).keeps == (True, True, True, True)


def test_a_sandbox_that_ended_leaves_no_process(box: Sandbox) -> None:
    """Not even a zombie: whoever plays all lessons makes hundreds of sandboxes."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    with sandbox.passing(f"test-zombie-{os.getpid()}"):
        during = set(children.read_text().split())
    assert len(during - set(children.read_text().split())) == 1


def test_output_without_an_end_is_not_kept(box: Sandbox) -> None:
    """A reader's file may be of any size: the command fails, and others are judged."""
    (code, said), other = box.results(["yes", "printf 'a\\0b\\n\\n'; exit 7"])
    assert (code != 0, len(said) <= sandbox.OUTPUT) == (True, True)
    assert other == (7, "ab")


def test_a_step_that_is_written_into_a_file_is_seen(box: Sandbox) -> None:
    """Long after the network has changed: a reader writes the address down last."""
    one = numbered("ipam-by-hand")
    play.begin(box, one)
    box.script("ip -n netns_C addr add 172.18.0.9/16 dev eth0")
    watcher = Watcher(box, one, lambda: 0.0)  # no time passes, so it does not look again by itself
    until(lambda: watcher.look() is None and watcher.look() is None, "it settles", 10 * SHARED)
    box.script("echo '172.18.0.9 netns_C' >> /run/learn/addresses")
    judged = watcher.look()
    assert judged is not None
    assert judged.checks == (True, True)
