from __future__ import annotations

from pathlib import Path

import pytest

from linkspan.core.errors import NotFound, Unavailable
from linkspan.core.states.host import HOST, LinkSysctl, Sysctl
from linkspan.kernel.drivers import sysctl
from linkspan.kernel.drivers.sysctl import SysctlDriver
from linkspan.kernel.io.namespaces import Namespaces
from support.netns.machine_fixtures import fresh_namespace, inode, run

FORWARD = "net/ipv4/ip_forward"


def test_a_setting_is_put_observed_and_given_back(spaces: Namespaces, tmp_path: Path) -> None:
    """A put is observed, a second put writes nothing, and delete restores the earlier value."""
    driver = SysctlDriver(spaces, tmp_path / "sysctl.json")
    wanted = Sysctl(FORWARD, "1")
    assert sysctl.read(FORWARD) == "0"
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(HOST)) == [wanted]
    written = (tmp_path / "sysctl.json").stat().st_mtime_ns
    assert driver.apply([wanted], []) == {}
    assert (tmp_path / "sysctl.json").stat().st_mtime_ns == written
    assert driver.before(FORWARD) == "0"
    assert driver.apply([], [wanted]) == {}
    assert sysctl.read(FORWARD) == "0"
    assert list(driver.observe(HOST)) == []


def test_an_agent_with_no_memory_knows_the_value_before_ours(spaces: Namespaces, tmp_path: Path) -> None:
    """The next agent observes what the last one put, sees drift, and restores the first value."""
    wanted = Sysctl(FORWARD, "1")
    SysctlDriver(spaces, tmp_path / "m").apply([wanted], [])
    driver = SysctlDriver(spaces, tmp_path / "m")
    assert list(driver.observe(HOST)) == [wanted]
    sysctl.write(FORWARD, "0")
    assert list(driver.observe(HOST)) == [Sysctl(FORWARD, "0")]
    driver.apply([wanted], [])
    driver.apply([], [wanted])
    assert sysctl.read(FORWARD) == "0"


def test_a_value_that_someone_else_set_since_is_left(spaces: Namespaces, tmp_path: Path) -> None:
    """Delete restores the old value only if the present one is still ours."""
    path = "net/ipv4/conf/lo/rp_filter"
    driver = SysctlDriver(spaces, tmp_path / "m")
    driver.apply([Sysctl(path, "2")], [])
    sysctl.write(path, "1")
    driver.apply([], [Sysctl(path, "2")])
    assert sysctl.read(path) == "1"


@pytest.mark.parametrize("other", ["a bridge of an engine's", "rules of an engine's"])
def test_forwarding_stays_on_where_others_have_come_to_need_it(
    spaces: Namespaces, tmp_path: Path, other: str
) -> None:
    """An engine that found forwarding on at its start does not turn it on again."""
    driver = SysctlDriver(spaces, tmp_path / "m")
    wanted = Sysctl(FORWARD, "1")
    driver.apply([wanted], [])
    if other.startswith("a bridge"):
        run("ip", "link", "add", "docker0", "type", "bridge")
    else:
        run("iptables", "-N", "DOCKER-USER")
        run("iptables", "-A", "FORWARD", "-j", "DOCKER-USER")
    driver.apply([], [wanted])
    assert sysctl.read(FORWARD) == "1"
    assert list(driver.observe(HOST)) == [], "and is no more of ours"


def test_deletes_go_in_the_reverse_order_of_puts(spaces: Namespaces, tmp_path: Path) -> None:
    """Forwarding, put last, is given back first, whatever the order of the batch."""
    driver = SysctlDriver(spaces, tmp_path / "m")
    states = [Sysctl("net/ipv6/conf/lo/accept_ra", "2"), Sysctl("net/ipv6/conf/all/forwarding", "1")]
    driver.apply(states, [])
    assert driver._newest_first(states) == states[::-1]


def test_memory_of_another_namespace_or_boot_counts_for_nothing(spaces: Namespaces, tmp_path: Path) -> None:
    """A value remembered elsewhere is never written here."""
    wanted = Sysctl(FORWARD, "1")
    SysctlDriver(spaces, tmp_path / "m").apply([wanted], [])
    text = (tmp_path / "m").read_text().replace(str(spaces.home), "1")
    (tmp_path / "m").write_text(text)
    assert list(SysctlDriver(spaces, tmp_path / "m").observe(HOST)) == []


def test_without_memory_nothing_is_written(spaces: Namespaces, tmp_path: Path) -> None:
    """If the earlier value cannot be recorded (the disk accepts nothing), ours is not set."""
    (tmp_path / ".m.linkspan-new").mkdir()
    driver = SysctlDriver(spaces, tmp_path / "m")
    wanted = Sysctl(FORWARD, "1")
    assert isinstance(driver.apply([wanted], [])[wanted.key], Unavailable)
    assert sysctl.read(FORWARD) == "0"
    assert list(driver.observe(HOST)) == []


def test_a_damaged_memory_is_an_error_that_names_the_file(spaces: Namespaces, tmp_path: Path) -> None:
    """A file cut off is not taken as empty: what it held is what uninstall restores."""
    (tmp_path / "m").write_text('{"epoch": "')
    with pytest.raises(Unavailable, match=str(tmp_path / "m")):
        list(SysctlDriver(spaces, tmp_path / "m").observe(HOST))


def test_a_setting_inside_a_container_leaves_the_machine_alone(
    spaces: Namespaces, container: str, tmp_path: Path
) -> None:
    """It is put, observed and given back in that namespace only, and written nowhere."""
    number = inode(container)
    spaces.register(number, f"/run/netns/{container}")
    driver = SysctlDriver(spaces, tmp_path / "m")
    wanted = Sysctl(FORWARD, "1", number)
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(number)) == [wanted]
    assert list(driver.observe(HOST)) == []
    assert sysctl.read(FORWARD) == "0"
    assert run("cat", f"/proc/sys/{FORWARD}", netns=container).strip() == "1"
    assert not (tmp_path / "m").exists()
    driver.apply([], [wanted])
    assert run("cat", f"/proc/sys/{FORWARD}", netns=container).strip() == "0"


def test_a_namespace_that_went_is_not_found_and_then_forgotten(spaces: Namespaces, tmp_path: Path) -> None:
    """Observe says NotFound, delete is done with it, and a put is an error."""
    driver = SysctlDriver(spaces, tmp_path / "m")
    with fresh_namespace() as name:
        wanted = Sysctl(FORWARD, "1", inode(name))
        spaces.register(wanted.netns, f"/run/netns/{name}")
        driver.apply([wanted], [])
    assert driver.apply([], [wanted]) == {}
    assert isinstance(driver.apply([wanted], [])[wanted.key], NotFound)


def test_a_link_s_setting_goes_with_its_link(spaces: Namespaces, tmp_path: Path) -> None:
    """Drift is found, a link gone (a dotted name, too) is forgotten, and one come back is not like ours."""
    driver = SysctlDriver(spaces, tmp_path / "m")
    run("ip", "link", "add", "lsp.1", "type", "veth", "peer", "name", "x")
    wanted = LinkSysctl("net/ipv6/conf/lsp.1/accept_ra", "0")
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(HOST)) == [wanted]
    sysctl.write(wanted.path, "2")
    assert list(driver.observe(HOST)) == [LinkSysctl(wanted.path, "2")]
    driver.apply([wanted], [])
    run("ip", "link", "del", "lsp.1")
    assert list(driver.observe(HOST)) == []
    assert isinstance(driver.apply([wanted], [])[wanted.key], NotFound)
    assert driver.apply([], [wanted]) == {}
    assert not (tmp_path / "m").exists()


def test_many_links_settings_are_observed_as_they_are_now(spaces: Namespaces, tmp_path: Path) -> None:
    """Each observation has what changed since the last one: values, wanted settings, and links that came again."""
    driver = SysctlDriver(spaces, tmp_path / "m")
    names = [f"lsp{number}" for number in range(sysctl.FEW + 1)]
    for name in names:
        run("ip", "link", "add", name, "type", "bridge")
    wanted = [LinkSysctl(f"net/ipv4/conf/{name}/rp_filter", "1") for name in names]
    assert driver.apply(wanted, []) == {}
    assert list(driver.observe(HOST)) == list(driver.observe(HOST)) == wanted
    sysctl.write(wanted[0].path, "2")
    assert next(iter(driver.observe(HOST))) == LinkSysctl(wanted[0].path, "2")
    more = LinkSysctl(f"net/ipv4/conf/{names[1]}/arp_ignore", "1")
    assert driver.apply([wanted[0], more], []) == {}
    assert set(driver.observe(HOST)) == {*wanted, more}
    run("ip", "link", "del", names[0])
    assert set(driver.observe(HOST)) == {*wanted[1:], more}
    run("ip", "link", "add", names[0], "type", "bridge")
    assert driver.apply([wanted[0]], []) == {}
    assert set(driver.observe(HOST)) == {*wanted, more}


def test_a_refused_value_is_an_error_that_says_what_was_set(spaces: Namespaces, tmp_path: Path) -> None:
    """The other states of the batch are still put."""
    driver = SysctlDriver(spaces, tmp_path / "m")
    bad, good = Sysctl("net/ipv4/conf/lo/rp_filter", "many"), Sysctl(FORWARD, "1")
    errors = driver.apply([bad, good], [])
    assert list(errors) == [bad.key]
    assert "set sysctl net/ipv4/conf/lo/rp_filter to many" in errors[bad.key].message
    assert sysctl.read(FORWARD) == "1"
