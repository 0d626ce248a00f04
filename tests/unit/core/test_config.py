"""Settings that every other host would read are checked before the agent starts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from linkspan.cli.main import app
from linkspan.core import config
from linkspan.core.errors import Invalid


@pytest.mark.parametrize("id_", ["a/b", "a b", "-a", "x" * 129])
def test_a_host_id_that_no_key_could_bear_is_refused(id_: str) -> None:
    """It is named, with the setting; `host show` could not ask for it, nor could the store's keys have it."""
    with pytest.raises(Invalid, match="host_id") as refused:
        config.load("", {"host_id": id_})
    assert id_ in refused.value.message


def test_an_address_to_advertise_that_is_none_is_refused() -> None:
    """No peer could read the record of such a host."""
    with pytest.raises(Invalid, match="advertise: 'gate'") as refused:
        config.load("", {"advertise": ["203.0.113.7", "gate"]})
    assert "203.0.113.7" in refused.value.hint


def test_what_is_right_is_taken() -> None:
    """Both families, and a name with dots."""
    loaded = config.load("", {"host_id": "h1.example.org", "advertise": ["203.0.113.7", "2001:db8::7"]})
    assert (loaded.host_id, loaded.advertise) == ("h1.example.org", ("203.0.113.7", "2001:db8::7"))


@pytest.mark.parametrize(
    ("command", "line", "said"),
    [
        ("agent", 'colour = "red"', "setting colour does not exist"),
        ("agent", 'advertise = ["gate"]', "setting advertise: 'gate' is not an IP address"),
        ("agent", 'names = "no"', "setting names: expected true or false, got text"),
        ("agent", 'state_dir = ""', "setting state_dir is empty"),
        ("agent", "cooldown = 1e99", "setting cooldown: expected a number <= 1"),
        ("agent", 'metrics = "localhost"', "setting metrics: 'localhost' is not ADDRESS:PORT"),
        ("agent", 'underlay = "can-reach=gate"', "setting underlay: "),
        ("agent", 'store = "etcd://h1/prod?passwordfile=x"', "store 'etcd://h1/prod?passwordfile=x': passwordfile"),
        ("agent", 'store = "sqlite://shared"', "store 'sqlite://shared' is not understood"),
        ("controller", 'socket = ""', "setting socket is empty"),
        ("controller", 'metrics = "[::1]:0"', "setting metrics: '[::1]:0' is not ADDRESS:PORT"),
        ("controller", 'colour = "red"', "setting colour does not exist"),
        ("controller", '[switches]\nsw1 = "gate"', "switch sw1: address 'gate' is not understood"),
    ],
)
def test_a_wrong_setting_is_printed_and_then_named(tmp_path: Path, command: str, line: str, said: str) -> None:
    """With its file. The user sees what was read; all other keys are printed, too."""
    file = tmp_path / "settings.toml"
    file.write_text(line)
    done = CliRunner().invoke(app(), [command, "--config", str(file), "--print-config"])
    assert line in done.stdout
    assert 'log_level = "info"' in done.stdout
    assert isinstance(done.exception, Invalid)
    assert done.exception.message.startswith(f"config file {file}: {said}")


@pytest.mark.parametrize(("command", "said"), [("agent", "setting underlay"), ("controller", "setting metrics")])
def test_a_mistake_on_the_command_line_is_not_looked_for_in_the_file(tmp_path: Path, command: str, said: str) -> None:
    """The file is sound: its name would send the user to the wrong place."""
    file = tmp_path / "settings.toml"
    file.write_text('log_level = "debug"\n')
    word = {"agent": "--underlay=can-reach=gate", "controller": "--metrics=gate"}[command]
    done = CliRunner().invoke(app(), [command, "--config", str(file), word])
    assert isinstance(done.exception, Invalid)
    assert done.exception.message.startswith(said)


def test_where_metrics_are_served_is_an_address_and_a_port() -> None:
    """Of either family, or every address of the host; an empty setting disables it."""
    places = ("127.0.0.1:9642", "[2001:db8::1]:9642", ":9642", "")
    assert [config.listening_at(one) for one in places] == [
        ("127.0.0.1", 9642), ("2001:db8::1", 9642), ("", 9642), ("", 0)
    ]  # fmt: skip


def test_of_a_few_words_those_that_there_are_are_named() -> None:
    """The log's levels."""
    with pytest.raises(Invalid, match="log_level: 'loud' is unknown") as refused:
        config.load("", {"log_level": "loud"})
    assert refused.value.hint == "give one of debug, info, warning, error"


def test_a_controllers_keys_are_printed_without_a_store(tmp_path: Path) -> None:
    """A missing setting is not wrong yet, so the command succeeds."""
    file = tmp_path / "empty.toml"
    file.write_text("")
    done = CliRunner().invoke(app(), ["controller", "--config", str(file), "--print-config"])
    assert done.exit_code == 0
    assert "[tls]" in done.stdout


@pytest.mark.parametrize(
    "text",
    ["[broken", "colour = 'red'", "cooldown = 'long'", "store = etcd://h1/x", "names = [\n  true", "host_id = 'a b'"],
)
def test_what_can_be_read_of_a_broken_file_is_salvaged(tmp_path: Path, text: str) -> None:
    """A mistake affects only its own line, the problem is reported, and the command line has priority."""
    file = tmp_path / "agent.toml"
    file.write_text(f"state_dir = '/srv/state'\n{text}\nreap_after = 5.0 # seconds\n")
    found, problem = config.salvaged(str(file), {"socket": "/srv/socket"})
    assert found == config.Config(state_dir="/srv/state", reap_after=5.0, socket="/srv/socket")
    assert problem


def test_a_sound_file_is_read_as_ever_and_a_missing_one_is_named(tmp_path: Path) -> None:
    """A sound file gives no warning; a named file that does not exist is an error."""
    file = tmp_path / "agent.toml"
    file.write_text("cooldown = 1.0\n")
    assert config.salvaged(str(file), {}) == (config.Config(cooldown=1.0), "")
    with pytest.raises(Invalid, match="no such file"):
        config.salvaged(str(tmp_path / "none.toml"), {})


def test_an_agent_s_code_has_no_columns() -> None:
    """They take 0.6 MB, and a traceback has its lines without them."""
    command, variables = config.process(config.Config())
    code = (
        "from linkspan.core.errors import counted; "
        "places = list(counted.__code__.co_positions()); print({p[2] for p in places}, all(p[0] for p in places))"
    )
    argv = [*command[: command.index("-m")], "-c", code]
    done = subprocess.run(argv, env=os.environ | variables, capture_output=True, text=True, check=True)
    assert done.stdout == "{None} True\n"
