"""Sentences of linkspan's trace in Chinese: those of the lessons are known, and none is stale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import linkspan
from linkspan.core.states.bgp import Session
from linkspan.core.translation import LANGUAGES, parsed
from linkspan.diagnose.doctor.bgp_reasons import Evidence, explain
from linkspan.kernel.probe.bird_control import Protocol
from linkspan.learn.english import SENTENCES, Sentences

SOURCE = Path(linkspan.__file__).parent
SPOKEN = ("diagnose/trace/*", "diagnose/doctor/*", "learn/*", "cli/main", "cli/usage")


@pytest.mark.parametrize("language", [one for one in LANGUAGES if one != "en"])
def test_every_sentence_is_one_of_the_code(language: str) -> None:
    """Each piece between its values is in the sources, and the translation has the same values."""
    files = (file for pattern in SPOKEN for file in sorted(SOURCE.glob(f"{pattern}.py")))
    spoken = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text(encoding="utf-8") for file in files))
    known = parsed((SENTENCES / f"{language}.po").read_text(encoding="utf-8"))
    pieces = [piece.strip(" ,:;()") for text in known for piece in re.split(r"\{\w+\}|; | \(", text)]
    assert [piece for piece in pieces if piece not in spoken] == []
    for text, other in known.items():
        assert set(re.findall(r"\{(\w+)\}", other)) <= set(re.findall(r"\{(\w+)\}", text)), text


def test_a_sentence_within_a_sentence_is_translated() -> None:
    """And what is not known stays in English."""
    chinese = Sentences("zh")
    whole = chinese("nobody answers for 10.0.0.9: no container has it and it is not on br0")
    assert re.findall(r"没有人为 10.0.0.9 应答|没有容器使用它", whole) == ["没有人为 10.0.0.9 应答", "没有容器使用它"]
    assert chinese("nobody answers for 10.0.0.9: it sleeps").endswith("it sleeps")
    assert chinese("route 10.0.0.0/8 dev eth0") == "route 10.0.0.0/8 dev eth0"
    assert Sentences("en")("sent") == "sent"


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
