"""Sentences of linkspan's trace and doctor in Chinese: those that people meet are known, and none is stale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import linkspan
from linkspan.core import sentences
from linkspan.core.sentences import LOCALE, LONGEST, Sentences
from linkspan.core.states.bgp import Session
from linkspan.core.translation import LANGUAGES, parsed
from linkspan.diagnose.doctor.bgp_reasons import Evidence, explain
from linkspan.diagnose.trace import rule_meanings
from linkspan.kernel.probe.bird_control import Protocol

SOURCE = Path(linkspan.__file__).parent
SPOKEN = (
    *("diagnose/trace/*", "diagnose/doctor/*", "agent/*", "cluster/*", "core/namesakes", "web/*"),
    *("learn/*", "cli/main", "cli/usage", "api/client", "api/startup"),
)
SAID = (
    "link eth0 in host is down",
    "host h3 did not report its part of the path: no answer within 3 s",
    "192.0.2.3 does not answer on eth0, the underlay; host h3 did not report its part of the path: no answer",
    "route 10.244.3.0/24 via 192.0.2.254 dev eth0, learnt by BGP from r1, AS path 65001 65003",
    "published port: now to 10.244.0.2 port 80 (inet linkspan nat)",
    "the packet was dropped by inet filter input: udp dport 4789 drop",
    "towards 192.0.2.3; packets of 1500 bytes do not pass it (fragmentation needed), of 1400 bytes they do",
    "switch sw1 drops it: nobody has 10.0.0.9, or its host is not found (cookie 0x1)",
    "network namespaces: tried, and they work",
    "network demo has no names: port 53 of its gateway 10.244.0.1 is in use by unbound (pid 7)",
    "net.ipv4.ip_forward=0: the host drops packets of containers to other links than their bridge",
    "iptables FORWARD drops traffic of network demo: policy DROP",
    "passes in 3 directions, with packets of up to 1500 bytes",
    "no answer to pings of 10.244.3.1, its own address there, for 200 s",
    "block 10.244.3.0/24 of network demo is host h1's, by the earlier claim, and host h2 claims it too: "
    "it gives no new addresses from it",
    "no agent answers at /run/linkspan/agent.sock: connection refused",
    "the hold timer ran out: nothing was heard of 192.0.2.254 for the hold time, and nothing answers there now",
)
"""What traces, doctors and the explanation of a BGP session say."""
_VALUE = re.compile(r"\{\w+\}")


@pytest.mark.parametrize("language", [one for one in LANGUAGES if one != "en"])
def test_every_sentence_is_one_of_the_code(language: str) -> None:
    """Each piece between its values is in the sources, and the translation has the same values."""
    files = (file for pattern in SPOKEN for file in sorted(SOURCE.glob(f"{pattern}.py")))
    spoken = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text(encoding="utf-8") for file in files))
    known = parsed((LOCALE / f"{language}.po").read_text(encoding="utf-8"))
    pieces = [piece.strip(" ,:;()") for text in known for piece in re.split(r"\{\w+\}|; | \(", text)]
    assert [piece for piece in pieces if piece not in spoken] == []
    for text, other in known.items():
        assert set(re.findall(r"\{(\w+)\}", other)) <= set(re.findall(r"\{(\w+)\}", text)), text


def test_no_sentence_is_hidden_by_one_before_it() -> None:
    """The first one that fits counts."""
    chinese = Sentences("zh")
    for text, other in parsed((LOCALE / "zh.po").read_text(encoding="utf-8")).items():
        assert chinese(_VALUE.sub("x", text)) == _VALUE.sub("x", other), text


def test_a_sentence_within_a_sentence_is_translated() -> None:
    """And what is not known stays in English."""
    chinese = Sentences("zh")
    whole = chinese("nobody answers for 10.0.0.9: no container has it and it is not on br0")
    assert re.findall(r"没有人为 10.0.0.9 应答|没有容器使用它", whole) == ["没有人为 10.0.0.9 应答", "没有容器使用它"]
    assert chinese("nobody answers for 10.0.0.9: it sleeps").endswith("it sleeps")
    assert chinese("route 10.0.0.0/8 dev eth0") == "route 10.0.0.0/8 dev eth0"
    assert Sentences("en")("sent") == "sent"


@pytest.mark.parametrize("sentence", SAID)
def test_what_people_meet_is_translated(sentence: str) -> None:
    """No sentence of these is left in English, as a whole or in a part: of words only names and the kernel's stay."""
    told = Sentences("zh")(sentence)
    assert told != sentence
    assert not re.search(r"\b(the|is|it|of|not|which|does|they)\b", told.partition("\uff08")[0]), told


def test_every_purpose_of_a_rule_is_translated() -> None:
    """With the rule behind it, which stays as it is."""
    chinese = Sentences("zh")
    texts = [text for _, text in rule_meanings.MEANINGS] + [rule_meanings.UNKNOWN]
    for text in texts:
        told = chinese(f"{text.format(source='10.0.0.9')} (inet linkspan forward: ip saddr @pools4 drop)")
        assert told.endswith("（inet linkspan forward: ip saddr @pools4 drop）"), text  # noqa: RUF001 - Chinese


def test_a_sentence_that_is_said_again_is_compared_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's server translates the same problems every few seconds, and there are hundreds of patterns."""
    text = "the packet was dropped by somebody who is named once"
    told = Sentences("zh")(text)
    monkeypatch.setattr(sentences, "_patterns", lambda _path: pytest.fail("it is compared again"))
    assert Sentences("zh")(text) == told != text


def test_a_long_text_is_left_alone() -> None:
    """It is no sentence of ours, and comparing it would take long."""
    chinese = Sentences("zh")
    assert chinese("the packet was dropped by x") == "数据包被 x 丢弃"
    long = f"the packet was dropped by {'x' * LONGEST}"
    assert chinese(long) == long


@pytest.mark.parametrize(
    ("state", "error", "said"),
    [
        ("Active", "", "会话尚未建立"),
        ("Connect", "Socket: No route to host", "最近的错误是 Socket: No route to host"),
        ("Idle", "", "BIRD 在等待"),
        ("OpenSent", "", "对端没有回应"),
        ("Active", "Socket: Connection refused", "192.0.2.2 的 179 端口没有程序监听"),
        ("Active", "Socket: Connection reset by peer", "192.0.2.2 一收到来自 192.0.2.1 的连接就关闭"),
        ("Idle", "BGP Error: Bad peer AS", "而这里写的是 AS 65003"),
        ("Idle", "Received: Bad peer AS", "对端期望的 AS 号不是这台主机的 65001"),
        ("Idle", "Received: Bad BGP identifier", "双方的 router id 相同"),
        ("Idle", "BGP Error: Unacceptable hold time", "hold time 太短"),
        ("Idle", "Received: Administrative shutdown", "那边已停用这个会话"),
        ("Idle", "Received: Peer de-configured", "对端的配置里已经没有这个会话"),
        ("Idle", "Received: Connection rejected", "对端不接受来自这里的连接"),
        ("Idle", "BGP Error: Maximum number of prefixes reached", "前缀太多"),
        ("Idle", "BGP Error: Hold timer expired", "没有收到 192.0.2.2 的任何消息"),
        ("Idle", "Received: Hold timer expired", "192.0.2.2 没有收到这台主机的任何消息"),
        ("Idle", "Received: Required capability missing", "双方没有共同的地址族"),
        ("Idle", "Error: No listening socket", "BIRD 没能在 192.0.2.1 的 179 端口监听"),
    ],
)
def test_why_a_reader_s_bgp_session_is_down_is_told_in_chinese(state: str, error: str, said: str) -> None:
    """A lesson knows what BIRD says, and asks nothing outside; of several sessions each reason is told."""
    session = Session(
        name="host2", protocol="host2", mesh=False, address="192.0.2.2", source="192.0.2.1", local_as=65001,
        remote_as=65003,
    )  # fmt: skip
    why = explain(session, Protocol("host2", "start", bgp_state=state, last_error=error, wait=3.0), Evidence())
    assert why is not None
    down = f"the BGP session with 192.0.2.2 is down: {why.reason}"
    told = Sentences("zh")(f"172.18.2.2 meets the unreachable route 172.18.0.0/16 in host: {down}; {down}")
    assert told.count(said) == 2
    assert re.findall(r"\b(?:the|is|and|it|of|in|no|not|nothing|here)\b", told) == []
