"""The web app in a browser: served by the command or by any static host, drawn on."""

import contextlib
import functools
import pathlib
import sys
import threading
import time
from http import server

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException

from tests.browser import Browser, process
from tests.needs import BROWSER

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "scripts/web_demo"
SERVE, BUILD = ROOT / "scripts/serve_web_demo.py", ROOT / "scripts/build_web_app.py"
_PATIENCE_S = 30
RUNTIME = PAGE / "node_modules/@litertjs/core/package.json"


class PageBrowser(Browser):
    """A browser at a page of the app."""

    def open(self, url):
        self._load(self.get, url)

    def refresh(self):
        self._load(super().refresh)

    def _load(self, load, *arguments):
        """Loads a page. ChromeDriver at times misses that it has loaded."""
        self.set_page_load_timeout(_PATIENCE_S)
        try:
            load(*arguments)
        except TimeoutException:
            if self.run("return document.readyState") != "complete":
                raise
        self.run("return demo.ready")

    def module(self, script, *arguments):
        """Runs a script's function body, in which `load(name)` imports a module."""
        return self.run(
            "const scripts = document.querySelector('script[type=module]').src;"
            "const load = (name) => import(new URL(name, scripts));"
            f"return (async (...given) => {{{script}}})(...arguments)",
            *arguments,
        )

    def text(self, selector):
        return self.run(
            "return document.querySelector(arguments[0]).textContent", selector
        )

    def box(self, selector):
        return self.run(
            "const {x, y, width, height} ="
            " document.querySelector(arguments[0]).getBoundingClientRect();"
            "return {x, y, width, height}",
            selector,
        )

    def draw(self, *strokes):
        """Moves a mouse over the paper along lines of points in [0, 1] x [0, 1]."""
        paper, box = self.find("#paper"), self.box("#paper")
        mouse = webdriver.ActionChains(self, duration=10)
        for stroke in strokes:
            for i, (x, y) in enumerate(stroke):
                mouse.move_to_element_with_offset(
                    paper,
                    round((x - 0.5) * box["width"]),
                    round((y - 0.5) * box["height"]),
                )
                if i == 0:
                    mouse.click_and_hold()
            mouse.release()
        mouse.perform()

    def touch(self, *strokes):
        """Moves a finger over the paper."""
        box = self.box("#paper")
        for stroke in strokes:
            for i, (x, y) in enumerate(stroke):
                at = {
                    "x": box["x"] + x * box["width"],
                    "y": box["y"] + y * box["height"],
                }
                self._touch("touchMove" if i else "touchStart", [at])
            self._touch("touchEnd", [])

    def _touch(self, kind, points):
        parameters = {"type": kind, "touchPoints": points}
        self.execute_cdp_cmd("Input.dispatchTouchEvent", parameters)

    def become_a_phone(self):
        """Has a screen of 390x844 that is touched, as phones have."""
        self.emulate(
            "setDeviceMetricsOverride",
            width=390,
            height=844,
            deviceScaleFactor=2,
            mobile=True,
        )
        self.emulate("setTouchEmulationEnabled", enabled=True)


def start_browser(profile):
    """A browser; every page served has a port, so a storage, of its own."""
    if not RUNTIME.exists():
        pytest.skip(f"{BROWSER}: @litertjs/core is missing: make browser")
    return PageBrowser(profile)


@contextlib.contextmanager
def served(model, *flags, port=0):
    """The app served by the command; gives its address."""
    command = (sys.executable, SERVE, f"--model={model}", f"--port={port}", *flags)
    with process(*command, says=r"(http://\S+)") as url:
        yield url


class _Handler(server.SimpleHTTPRequestHandler):
    def __init__(self, *args, host, **kwargs):
        self._host = host
        super().__init__(*args, **kwargs)

    def do_GET(self):
        # Browsers keep connections open, which outlive the host's own.
        if not self._host.is_stopped:
            super().do_GET()

    def log_message(self, *args):
        """Nobody reads it."""


class Host:
    """A static host that knows nothing of the app, at an address of its own.

    Without it there is no network: the browser's tests reach this machine alone.
    """

    def __init__(self, directory):
        self._handler = functools.partial(_Handler, directory=str(directory), host=self)
        self._port = 0
        self.start()
        self.url = f"http://127.0.0.1:{self._port}/"

    def start(self):
        self._server = server.ThreadingHTTPServer(
            ("127.0.0.1", self._port), self._handler
        )
        self._port = self._server.server_port
        self.is_stopped = False
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self.is_stopped = True
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def hosted(directory):
    """A host of a directory."""
    host = Host(directory)
    try:
        yield host
    finally:
        host.stop()


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} seconds"
        time.sleep(0.05)
    return answer
