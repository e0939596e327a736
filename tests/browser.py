"""Chromium without a window, driven by Selenium with the system's own ChromeDriver."""

import contextlib
import re
import shutil
import subprocess

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.needs import BROWSER

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


class Browser(webdriver.Chrome):
    """A browser whose elements are named by CSS selectors."""

    def __init__(self, profile):
        """Starts it; skips the test where there is no Chromium or no ChromeDriver."""
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        chromedriver = shutil.which("chromedriver")
        if not chromium or not chromedriver:
            pytest.skip(f"{BROWSER}: chromium or chromedriver is missing: make browser")
        options = webdriver.ChromeOptions()
        # Both by their paths, so that Selenium downloads neither.
        options.binary_location = chromium
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        super().__init__(options, webdriver.ChromeService(chromedriver))

    def run(self, script, *arguments):
        """Runs a script's function body; waits for the promise it returns."""
        return self.execute_script(script, *arguments)

    def find(self, selector):
        return self.find_element(By.CSS_SELECTOR, selector)

    def emulate(self, command, **parameters):
        """Asks Chromium's developer tools to emulate a medium, a screen, ..."""
        self.execute_cdp_cmd(f"Emulation.{command}", parameters)

    def console(self):
        """What the console said since it was last asked, failed requests included."""
        return [line["message"] for line in self.get_log("browser")]


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
