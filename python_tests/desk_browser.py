"""A desk in a process of its own, and a person at it in headless Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "no chromium or no chromedriver here: make desk-test installs them"
SOON = 60.0


@contextmanager
def served(run: Path, folder: Path, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`oltr desk`; its address and process."""
    command = [sys.executable, "-u", "-m", "oltr_ext", "desk", str(run), str(folder)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-browser", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = ""
        for line in process.stdout:
            told += line
            if line.startswith("desk  "):
                break
        else:
            raise AssertionError(told)
        yield line.split()[1], process
    finally:
        process.kill()
        process.wait()


@contextmanager
def chromium(downloads: Path, size: tuple[int, int] = (1280, 900)) -> Iterator[Any]:
    """A driver of headless Chromium, which reaches nothing but this machine."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    flags += ["--proxy-server=127.0.0.1:9", "--proxy-bypass-list=127.0.0.1"]
    flags += ["--no-sandbox"] * (hasattr(os, "getuid") and os.getuid() == 0)
    for flag in [*flags, f"--window-size={size[0]},{size[1]}"]:
        options.add_argument(flag)
    kept = {"download.default_directory": str(downloads), "download.prompt_for_download": False}
    options.add_experimental_option("prefs", kept)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


class Person:
    """Who presses keys, and looks. `actions` counts keys pressed, and names typed as one each."""

    def __init__(self, driver: Any) -> None:
        self.driver, self.actions = driver, 0

    def open(self, address: str) -> None:
        self.driver.get(address)
        self.until(lambda: self.script("return document.querySelector('nav button') !== null"))

    def script(self, code: str, *given: Any) -> Any:
        return self.driver.execute_script(code, *given)

    def until(self, holds: Callable[[], Any], what: str = "") -> Any:
        """What `holds` gives once it gives something."""
        end = time.monotonic() + SOON
        while not (found := holds()):
            if time.monotonic() > end:
                raise AssertionError(f"{what or 'it'} never came; the page: {self.text('body')}")
            time.sleep(0.03)
        return found

    def text(self, where: str) -> str:
        return str(self.script("return document.querySelector(arguments[0]).innerText", where))

    def texts(self, where: str) -> list[str]:
        code = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"
        return list(self.script(code, where))

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        self.actions += len(keys)
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def version(self) -> int:
        code = "return fetch('api/status').then((r) => r.json()).then((s) => s.version)"
        return int(self.script(code))

    def decide(self, *keys: str, name: str | None = None) -> None:
        """Press keys, type a name where one is asked for, and wait until it is decided."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        before = self.version()
        self.press(*keys)
        if name is not None:
            self.until(lambda: self.script("return document.querySelector('#naming').open"))
            box = self.driver.find_element(By.ID, "name")
            box.clear()
            box.send_keys(name, Keys.ENTER)
            self.actions += 2
        self.until(lambda: self.version() > before, f"a decision by {keys}")
        self.until(self.shown, "the page after it")

    def shown(self) -> bool:
        """Whether the page shows the state that the server has."""
        code = (
            "return Promise.all([import('./desk.js'), fetch('api/status').then((r) => r.json())])"
            ".then(([m, s]) => m.desk.held && (m.desk.held.version ?? s.version) === s.version"
            " && m.desk.status.stamp === s.stamp)"
        )
        return bool(self.script(code))

    def tab(self, number: int) -> None:
        self.press(str(number))
        self.until(
            lambda: self.script(
                "return document.querySelectorAll('nav button')[arguments[0]]"
                ".getAttribute('aria-current') === 'page'",
                number - 1,
            )
        )
        self.until(self.shown)
