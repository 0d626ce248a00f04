"""Controllers of a lab with backend sdn: they run beside the switches, as on a management network."""

from __future__ import annotations

from linkspan.core.errors import Invalid, NotFound
from linkspan.core.own_command import own_command
from linkspan.lab import processes, switches
from linkspan.lab.record import Controller, Lab
from linkspan.lab.topology import etcd_url, store_url

KILLED = "controller-kill"
FAILURES = (KILLED,)


def socket(lab: Lab, one: Controller) -> str:
    """Return the socket of a controller."""
    return str(lab.folder / one.name / "controller.sock")


def start(lab: Lab, controllers: list[Controller]) -> None:
    """Start controllers, the first one alone, so that it is active. Raises LinkspanError with a failed one's name."""
    _start(lab, controllers[:1])
    _start(lab, controllers[1:])


def _start(lab: Lab, controllers: list[Controller]) -> None:
    store = etcd_url(lab, "127.0.0.1") if lab.store == "etcd" else store_url(lab, lab.hosts[0])
    started = []
    for one in controllers:
        folder = lab.folder / one.name
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        config = folder / "controller.toml"
        if not config.exists():
            config.write_text("# Keys: `linkspan controller --print-config`.\n", encoding="utf-8")
        argv = [*own_command(), "controller", "--config", str(config)]
        argv += ["--store", store, "--name", one.name, "--state-dir", str(folder / "state")]
        argv += ["--socket", socket(lab, one)]
        for switch in lab.switches:
            argv += ["--switch", f"{switch.name}={switches.address(lab, switch)}"]
        env = processes.environment(lab.folder, f"controller/{one.name}")
        log = folder / "controller"
        started.append((one, log, processes.start(lab.switch, one.name, argv, env, log)))
    for one, log, process in started:
        processes.await_word(process, log, "ready", f"controller {one.name}")


def pids(lab: Lab, one: Controller) -> list[int]:
    """Return the process of a controller, if it runs."""
    return list(processes.of_lab(lab.folder, lambda role, _: role == f"controller/{one.name}"))


def do(lab: Lab, one: Controller, failure: str) -> str:
    """Make a controller fail; return what was done. Raises Invalid for an unknown failure."""
    if failure not in FAILURES:
        raise Invalid(f"a controller has no failure {failure!r}", f"the known ones are {', '.join(FAILURES)}")
    one.broken.append(failure)
    lab.save()
    if not processes.kill(lab.folder, lambda: pids(lab, one), f"controller {one.name}"):
        raise NotFound(f"controller {one.name} does not run", f"linkspan lab mend {one.name} starts it")
    return f"controller {one.name} is killed"


def mend(lab: Lab, one: Controller) -> list[str]:
    """Start it again."""
    done = []
    if not pids(lab, one):
        start(lab, [one])
        done.append(f"controller {one.name} is started")
    one.broken = []
    lab.save()
    return done
