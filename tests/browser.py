"""Chromium without a window, by the WebDriver protocol."""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest

_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=900,1100",
    # Whatever would ask another host fails.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver's name of a reference.


class Browser:
    """A browser by the WebDriver protocol."""

    def __init__(self, driver_url, chromium, profile):
        self._url = driver_url
        options = {
            "binary": chromium,
            "args": [*_FLAGS, f"--user-data-dir={profile}"],
        }
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        answer = self.ask("POST", "session", capabilities={"alwaysMatch": capabilities})
        self._url = f"{driver_url}/session/{answer['sessionId']}"

    def open(self, url):
        self.ask("POST", "url", url=url)

    def refresh(self):
        self.ask("POST", "refresh")

    def run(self, script, *arguments):
        """Runs a script's function body; waits for the promise it returns."""
        return self.ask("POST", "execute/sync", script=script, args=list(arguments))

    def find(self, selector):
        answer = self.ask("POST", "element", using="css selector", value=selector)
        return {ELEMENT: answer[ELEMENT]}

    def click(self, selector):
        self.ask("POST", f"element/{self.find(selector)[ELEMENT]}/click")

    def type(self, selector, keys):
        self.ask("POST", f"element/{self.find(selector)[ELEMENT]}/value", text=keys)

    def emulate(self, command, **parameters):
        """Asks Chromium's developer tools to emulate a medium, a screen, ..."""
        self.ask(
            "POST", "goog/cdp/execute", cmd=f"Emulation.{command}", params=parameters
        )

    def console(self):
        """What the console said since it was last asked, failed requests included."""
        lines = self.ask("POST", "se/log", type="browser")
        return [line["message"] for line in lines]

    def close(self):
        self.ask("DELETE", "")

    def ask(self, method, path, **body):
        """Sends a command of the protocol; returns its value."""
        request = urllib.request.Request(
            f"{self._url}/{path}".rstrip("/"),
            method=method,
            data=json.dumps(body).encode() if method == "POST" else None,
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as e:
            raise RuntimeError(json.load(e)["value"]["message"]) from None


@contextlib.contextmanager
def process(*command, says):
    """A process once it said what the pattern matches; gives the match's group."""
    running = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = ""
        for line in running.stdout:
            said += line
            if match := re.search(says, line):
                yield match.group(1)
                break
        else:
            raise RuntimeError(f"{command[0]} ended: {said}")
    finally:
        running.terminate()
        running.communicate(timeout=10)


@contextlib.contextmanager
def driver():
    """ChromeDriver's address, and Chromium's path; skips the test without them."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("chromium or chromedriver is missing")
    with process(chromedriver, "--port=0", says=r"on port (\d+)\.") as port:
        yield f"http://127.0.0.1:{port}", chromium
