"""A page of `linkspan web` in headless Chromium, both in a network namespace of their own that leads nowhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selenium.webdriver import ChromeOptions
from selenium.webdriver.chrome.remote_connection import ChromeRemoteConnection
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.client_config import ClientConfig
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from linkspan.lab import commands, sockets
from support.polling import until

PORT = 9515
"""Of chromedriver, in the namespace."""

class _Connection(ChromeRemoteConnection):
    """A connection to a chromedriver in a namespace: each request enters it."""

    def __init__(self, namespace: str) -> None:
        address = f"http://127.0.0.1:{PORT}"
        super().__init__(address, client_config=ClientConfig(remote_server_addr=address, timeout=60))
        self._namespace = namespace

    def _request(self, *args: Any, **more: Any) -> Any:
        with sockets.inside(self._namespace):
            return super()._request(*args, **more)


class Browser:
    """Chromium, and the one page of `linkspan web` that it shows."""

    def __init__(self, driver: WebDriver) -> None:
        self.driver = driver

    def find(self, selector: str) -> WebElement | None:
        """Return the first element of a CSS selector, None if there is none."""
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found[0] if found else None

    def text(self, selector: str = "body") -> str:
        """Return the text of an element, '' if it is not there."""
        script = "const found = document.querySelector(arguments[0]); return found ? found.innerText : '';"
        return str(self.driver.execute_script(script, selector))

    def shows(self, text: str, selector: str = "body") -> None:
        """Wait until an element has a text."""
        until(lambda: text in self.text(selector) or _Seen(self.text(selector)), f"{selector} shows {text!r}")

    def click(self, selector: str) -> None:
        """Click an element once it is there."""
        until(lambda: self.find(selector), f"there is {selector}")
        self.run("document.querySelector(arguments[0]).click()", selector)

    def row(self, name: str) -> None:
        """Choose a table's row by its name, the first line of its button, and wait until it is drawn as chosen."""
        script = (
            "const rows = [...document.querySelectorAll('button.row')];"
            "const found = rows.find((one) => one.innerText.trim().split('\\n')[0].trim() === arguments[0]);"
            "if (arguments[1]) found?.click(); return found?.ariaPressed ?? '';"
        )
        until(lambda: self.run(script, name, True), f"a row {name}")
        until(lambda: self.run(script, name, False) == "true", f"row {name} is chosen")

    def press(self, *keys: str) -> None:
        """Type keys where the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def run(self, script: str, *arguments: object) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def mouse(self, x: float, y: float, *, to: tuple[float, float] | None = None) -> None:
        """Click at a place of the page, in pixels, or drag from there ``to`` another one."""
        steps = [("mouseMoved", x, y), ("mousePressed", x, y)]
        if to is not None:
            steps += [("mouseMoved", x + (to[0] - x) * part, y + (to[1] - y) * part) for part in (0.3, 0.6, 1.0)]
        for kind, *place in [*steps, ("mouseReleased", *(to or (x, y)))]:
            pressed = {"button": "left", "buttons": 1, "clickCount": 1}
            self.devtools("Input.dispatchMouseEvent", {"type": kind, "x": place[0], "y": place[1], **pressed})

    @contextlib.contextmanager
    def tab(self) -> Iterator[str]:
        """Be in a new tab within the block; give its handle."""
        first = self.driver.current_window_handle
        self.driver.switch_to.new_window("tab")
        opened = self.driver.current_window_handle
        try:
            yield opened
        finally:
            self.driver.switch_to.window(opened)
            self.driver.close()
            self.driver.switch_to.window(first)

    def view(self, name: str) -> None:
        """Open a view by its link."""
        self.click(f'nav.views a[href^="#/{name}"]')

    def language(self, code: str) -> None:
        """Choose the page's language."""
        script = (
            "const found = document.querySelector('.language select'); found.value = arguments[0];"
            "found.dispatchEvent(new Event('change', {bubbles: true}))"
        )
        self.run(script, code)

    def size(self, width: int, height: int) -> None:
        """Give the page a size in pixels."""
        form = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", form)

    def dark(self, on: bool) -> None:
        """Set the user's preference for dark pages. In the midst of a transition a page has colours of neither."""
        wishes = {"prefers-color-scheme": "dark" if on else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        self.devtools("Emulation.setEmulatedMedia", {"features": features})

    def devtools(self, command: str, words: Mapping[str, object]) -> Any:
        """Send a command of Chromium's own protocol, and return the answer."""
        return self.driver.execute("executeCdpCommand", {"cmd": command, "params": words})["value"]

    def picture(self, path: Path) -> None:
        """Write a screenshot."""
        path.write_bytes(self.driver.get_screenshot_as_png())

    def complaints(self) -> list[str]:
        """Return what Chromium wrote in its console since the last look: violations of the policy, scripts' errors."""
        found = self.driver.execute("getLog", {"type": "browser"})["value"]
        return [f"{one['level']}: {one['message']}" for one in found]


class _Seen(str):
    """A text that is shown if a wait fails, and is false."""

    __slots__ = ()

    def __bool__(self) -> bool:
        """Return False."""
        return False


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    """Give a network namespace that has only a loopback interface."""
    commands.add(name)
    try:
        commands.ip(name, ("link set lo up",))
        yield name
    finally:
        commands.delete(name)


@contextlib.contextmanager
def page_process(where: str, *words: str, user: int = 0) -> Iterator[Callable[[], str]]:
    """Run `linkspan web` in a namespace, as a user with a group of the same number; give a function that reads a link.

    It returns '' if the command has ended.
    """
    become = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups") if user else ()
    program = (sys.executable, "-m", "linkspan.cli.main", "web", "--no-browser")
    argv = [*commands.entering(where), *become, *program, *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        output = process.stdout
        try:
            yield lambda: output.readline().strip()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)


@contextlib.contextmanager
def browser(where: str) -> Iterator[Browser]:
    """Run Chromium in a namespace."""
    folder = Path(tempfile.mkdtemp(prefix="linkspan-chromium-"))
    argv = [*commands.entering(where), "chromedriver", f"--port={PORT}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            argv, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"HOME": str(folder)}
        )
    try:
        until(lambda: _listens(where), "chromedriver listens")
        options = ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for word in (
            "--headless=new",
            "--no-sandbox",  # root has no other sandbox to give it
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--lang=en-US",
            f"--user-data-dir={folder / 'profile'}",
        ):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = WebDriver(_Connection(where), options=options)
        try:
            yield Browser(driver)
        finally:
            driver.quit()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _listens(where: str) -> bool:
    with sockets.inside(where), contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", PORT), 1).close()
        return True
    return False


__all__ = ["Keys"]
