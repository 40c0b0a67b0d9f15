"""`oltr desk` as a person uses it: in headless Chromium, over a run in a process of its own."""

from __future__ import annotations

import os
import signal
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desk_browser import CHROMIUM, DRIVER, MISSING, Person, chromium, served
from desk_cases import photos
from PIL import Image

from oltr_ext.desk.store import Store
from oltr_ext.serve.trained import load_trained

pytest_plugins = ("desk_fixtures",)

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
WILD = "<img src=x onerror=document.title='run'>.png"


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    folder = photos(data, tmp_path / "photos")
    Image.open(folder / "open_val" / "open_val_4_0.png").rotate(90).save(folder / WILD)
    return folder


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(MISSING)
    (tmp_path / "downloads").mkdir()
    with chromium(tmp_path / "downloads") as driver:
        yield driver


def test_a_persons_steps(driver: Any, run: Path, folder: Path, tmp_path: Path) -> None:
    name = "<b onclick=alert(1)>snail</b>"
    with served(run, folder) as (address, _):
        person = Person(driver)
        person.open(address)
        person.until(person.shown)
        cards = person.texts(".card h2")
        assert cards and cards[0].startswith("group ")
        assert int(
            driver.execute_script("return document.querySelector('.sheet img').naturalWidth")
        )

        person.press("?")
        assert "name what is marked" in person.text("#keys")
        person.press("\ue00c")  # Escape

        person.decide("s")  # the group in two
        assert len(person.texts(".card")) == len(cards) + 1
        person.decide("a", "m")  # merged again, with all there are
        assert len(person.texts(".card")) == 1

        person.press("\ue007")  # Enter: into the group
        person.until(lambda: person.texts(".tile"))
        inside = len(person.texts(".tile"))
        person.decide("d")  # one out, to the singles
        person.until(lambda: len(person.texts(".tile")) == inside - 1)
        person.press("x", "x")
        assert person.text("#marked") == "2 marked"
        person.decide("s")  # and two into a group of their own
        person.until(lambda: len(person.texts(".tile")) == inside - 3)
        person.decide("n", name=name)
        assert person.text(".head h2") == name  # as text
        assert "to enroll" in person.text(".head")
        person.press("\ue00c")
        person.until(lambda: person.texts(".card"))
        person.decide("z")  # what is left is of no interest

        before = load_trained(run, device="cpu")
        person.decide("e")
        person.until(lambda: "Changes" in person.text("nav [aria-current=page]"))
        person.until(lambda: person.texts(".tile"))
        changed = person.texts(".tile .changed")
        assert f"unknown → {name}" in changed
        assert all(each.endswith(f"→ {name}") for each in changed)
        after = load_trained(run, device="cpu")
        assert after.names == [*before.names, name]
        assert f"{len(after.names)} classes" in person.text("#where")

        person.press("w")
        archive = tmp_path / "downloads" / "decisions.zip"
        person.until(archive.exists, "the export")
        with zipfile.ZipFile(archive) as held:
            rows = held.read("train.txt").decode().splitlines()
            assert len(rows) == inside - 3 and {row.rsplit(" ", 1)[1] for row in rows} == {"4"}
            assert held.read("names.txt").decode().splitlines()[4] == name
            assert len(held.read("junk.txt").decode().splitlines()) == 2

        person.decide("u")  # the enrolment
        assert load_trained(run, device="cpu").names == before.names
        person.decide("u")  # what was set aside
        person.tab(1)
        assert len(person.texts(".card")) == 1
        person.tab(7)
        assert "broken.png" in person.text("main")
        person.tab(8)
        assert "undo: 1 class enrolled" in person.text("main") and name in person.text("main")
        assert WILD not in driver.title and driver.title == "desk: run"
        assert [each for each in driver.get_log("browser") if "410" not in each["message"]] == []


def test_a_second_tab_sees_the_same_and_is_told_of_a_conflict(
    driver: Any, run: Path, folder: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    with served(run, folder) as (address, process):
        one = Person(driver)
        one.open(address)
        one.until(one.shown)
        first = driver.current_window_handle
        driver.switch_to.new_window("window")
        one.open(address)
        one.until(one.shown)
        second = driver.current_window_handle
        one.press("n")  # the second thinks of a name, and meanwhile
        one.until(lambda: one.script("return document.querySelector('#naming').open"))
        driver.switch_to.window(first)
        one.decide("n", name="snail")
        driver.switch_to.window(second)
        one.until(lambda: "Named 1" in one.text("nav"), "the first's name")
        driver.find_element(By.ID, "name").send_keys("crab", Keys.ENTER)
        one.until(lambda: "look again" in one.text("#said"), "the conflict")
        one.tab(2)
        assert one.texts(".card h2") == ["snail"]

        process.send_signal(signal.SIGKILL)
        process.wait()
        one.until(lambda: "does not answer" in one.text("#said"), "word of the kill")
        log = Store(run / "desk" / "desk.sqlite")
        assert [event.said.get("name") for event in log.events()][-1] == "snail"
        log.close()


def test_a_kill_in_the_midst_of_decisions(run: Path, folder: Path) -> None:
    import json

    def asked(address: str, act: str, held: dict[str, Any]) -> int:
        request = urllib.request.Request(
            f"{address}api/{act}",
            json.dumps(held).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as found:
            return int(json.load(found)["version"])

    def status(address: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{address}api/status", timeout=60) as found:
            return dict(json.load(found))

    def ready(address: str) -> int:
        while (found := status(address))["progress"]["phase"] != "ready":
            assert found["progress"]["phase"] != "failed", found
        return int(found["version"])

    told = 0
    with served(run, folder) as (address, process):
        told = ready(address)
        threading.Timer(0.4, os.kill, (process.pid, signal.SIGKILL)).start()
        with pytest.raises((urllib.error.URLError, ConnectionError, OSError)):
            while True:
                for kind in ({"do": "name", "groups": [1], "name": "snail"}, {"do": "regroup"}):
                    told = asked(address, "do", {"version": told, **kind})
                    told = asked(address, "undo", {"version": told})
    assert told > 4
    with served(run, folder) as (address, process):
        again = ready(address)
        assert again in (told, told + 1)  # one more may have been kept, and not yet told
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "goes on from here" in (process.stdout.read() if process.stdout else "")
