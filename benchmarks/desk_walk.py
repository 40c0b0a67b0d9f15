"""From 200 strangers to named, enrolled classes in `oltr desk`, by a person's keys and clicks:

    oltr train icons --method oltr-plus --out runs/demo/oltr-plus      # as oltr demo has it
    python benchmarks/desk_walk.py runs/demo/oltr-plus

Drives headless Chromium over a copy of the run and the icons' open test images, 20 classes of 10,
whose names it knows as a person would by looking. Writes results/desk_walk.json, .md and desk.png.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "python_tests"))

from desk_browser import Person, chromium, served  # noqa: E402

from oltr_ext.engine.evaluate import stream  # noqa: E402
from oltr_ext.engine.splits import load_splits  # noqa: E402
from oltr_ext.metrics import json_ready  # noqa: E402
from oltr_ext.serve.predict import predict_images  # noqa: E402
from oltr_ext.serve.trained import Trained, load_trained  # noqa: E402


def write_strangers(trained: Trained, folder: Path) -> dict[str, str]:
    """The open test images under names that say nothing; what each is, by the hash of its file."""
    splits = load_splits(trained.config.data)
    assert splits.open_test is not None and splits.open_names is not None
    folder.mkdir(parents=True)
    truth = {}
    for number, row in enumerate(np.random.default_rng(0).permutation(len(splits.open_names))):
        file = folder / f"stranger_{number:03}.png"
        ink = splits.open_test.images[int(row), 0].numpy()  # bright
        Image.fromarray(255 - ink).save(file)
        name = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
        truth[name] = splits.open_names[int(row)]
    return truth


class Walker(Person):
    """A person who knows what each image is."""

    def __init__(self, driver: Any, truth: dict[str, str]) -> None:
        super().__init__(driver)
        self.truth = truth
        self.enrolled: list[float] = []

    def items(self) -> list[dict[str, Any]]:
        code = "return import('./desk.js').then((m) => m.items())"
        return list(self.script(code))

    def mark(self, numbers: list[int]) -> None:
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        for number in numbers:
            tile = self.driver.find_elements("css selector", "main .tile")[number]
            self.script("arguments[0].scrollIntoView({block: 'center'})", tile)
            chain = ActionChains(self.driver).key_down(Keys.CONTROL).click(tile)
            chain.key_up(Keys.CONTROL).perform()
            self.actions += 1

    def name_groups(self) -> None:
        """What most of each group is; what is not goes to the singles."""
        self.tab(1)
        while self.items():
            names: Counter[str] = Counter()
            self.press("o")
            self.until(lambda: self.script("return document.querySelector('.head') !== null"))
            self.until(self.shown)
            inside = self.items()
            names.update(self.truth[image["id"]] for image in inside)
            name = names.most_common(1)[0][0]
            wrong = [n for n, image in enumerate(inside) if self.truth[image["id"]] != name]
            if wrong:
                self.mark(wrong)
                self.decide("d")
            self.decide("n", name=name)
            self.press("\ue00c")
            self.until(lambda: self.script("return document.querySelector('.head') === null"))
            self.until(self.shown)

    def name_images(self, tab: int) -> None:
        """Those of a kind at once, but for what is right already."""
        self.tab(tab)
        while True:
            images = self.items()
            wrong = [i for i in images if self.truth[i["id"]] != i["answer"]]
            if not wrong:
                return
            name = self.truth[wrong[0]["id"]]
            same = [n for n, image in enumerate(images) if image in wrong]
            same = [n for n in same if self.truth[images[n]["id"]] == name]
            self.mark(same)
            self.decide("n", name=name)

    def enroll(self) -> None:
        begin = time.perf_counter()
        self.decide("e")
        self.enrolled.append(time.perf_counter() - begin)
        self.until(lambda: "Changes" in self.text("nav [aria-current=page]"))


def known_right(trained: Trained) -> float:
    """Share of the known test images that are answered with their own class."""
    splits = load_splits(trained.config.data)
    x = torch.cat([rows for rows, _ in stream(trained.model, splits.test, trained.device)])
    return float((trained.model.head.predict(x)[0].cpu().numpy() == splits.test.labels).mean())


def judged(run: Path, folder: Path, truth: dict[str, str], named: set[str]) -> dict[str, float]:
    trained = load_trained(run, device="cpu")
    files = sorted(folder.iterdir())
    ids = [hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() for file in files]
    answers = predict_images(trained, files)
    right = np.array([a.label == truth[i] for a, i in zip(answers, ids, strict=True)])
    rest = np.array([i not in named for i in ids])
    return {
        "classes": len(trained.enrolment.joined),
        "given": int((~rest).sum()),
        "strangers right": float(right.mean()),
        "of those not given": float(right[rest].mean()) if rest.any() else float("nan"),
        "known right": known_right(trained),
    }


def named_by(run: Path) -> set[str]:
    from oltr_ext.desk.state import replay
    from oltr_ext.desk.store import Store

    store = Store(run / "desk" / "desk.sqlite")
    try:
        return {i for images in replay(store.events()).state.named().values() for i in images}
    finally:
        store.close()


def picture(driver: Any, file: Path) -> None:
    seen = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    seen.quantize(96, dither=Image.Dither.NONE).save(file, optimize=True)


def walk(source: Path, work: Path, out: Path) -> dict[str, Any]:
    run, folder = work / "oltr-plus", work / "strangers"
    run.mkdir()
    shutil.copy(source / "model.safetensors", run)
    truth = write_strangers(load_trained(run, device="cpu"), folder)
    rounds = {"before": judged(run, folder, truth, set())}
    begin = time.perf_counter()
    with served(run, folder) as (address, _), chromium(work, (1240, 860)) as driver:
        person = Walker(driver, truth)
        person.open(address)
        person.until(person.shown)
        ready = time.perf_counter() - begin
        status = person.script("return fetch('api/status').then((r) => r.json())")
        picture(driver, out / "desk.png")
        person.name_groups()
        person.name_images(3)
        person.enroll()
        first = {"actions": person.actions, "seconds": time.perf_counter() - begin}
        shutil.copy(run / "model.safetensors", work / "after.safetensors")
        given = named_by(run)
        person.name_images(4)
        person.enroll()
        second = {"actions": person.actions, "seconds": time.perf_counter() - begin}
    (work / "first").mkdir()
    shutil.copy(work / "after.safetensors", work / "first" / "model.safetensors")
    rounds["groups and singles"] = {**judged(work / "first", folder, truth, given), **first}
    last = {**judged(run, folder, truth, named_by(run)), **second}
    last["of those not given"] = float("nan")  # they are left because they were right
    rounds["and what it took for known"] = last
    counts = status["counts"]
    return {
        "date": datetime.date.today().isoformat(),
        "images": counts["images"],
        "unknown": counts["unknown"],
        "groups": counts["open"],
        "singles": counts["single"],
        "seconds to the first page": ready,
        "seconds of an enrolment": max(person.enrolled),
        "rounds": rounds,
    }


def markdown(made: dict[str, Any]) -> str:
    lines = [
        "# From 200 strangers to classes, in the desk",
        "",
        f"The icons' open test images, 20 classes of 10, and the demo's `oltr-plus` (seed 0), "
        f"which rejects {made['unknown']} of them, in {made['groups']} groups and "
        f"{made['singles']} singles. Driven in headless Chromium by the keys and clicks of a "
        "person who knows what each image is: groups are opened, what does not belong is marked "
        "and dropped, the rest named; then singles, those of a kind at once; then enroll. In the "
        "second round what the run took for known classes is named likewise. An action is a key, "
        "a click, or a name typed whole.",
        "",
        "| after | actions | machine seconds | images given | classes | strangers right, % | of "
        "those not given, % | known right, % |",
        "| --- |" + " ---: |" * 7,
    ]
    for name, row in made["rounds"].items():
        rest = row["of those not given"]
        lines.append(
            f"| {name} | {row.get('actions', 0)} | {row.get('seconds', 0):.0f} | {row['given']} | "
            f"{row['classes']} | {100 * row['strangers right']:.1f} | "
            f"{'-' if np.isnan(rest) else f'{100 * rest:.1f}'} | {100 * row['known right']:.1f} |"
        )
    first = made["rounds"]["groups and singles"]
    lines += [
        "",
        "Machine seconds are of the whole walk from the command on, the browser's and the driver's "
        f"included: the first page after {made['seconds to the first page']:.1f}, an enrolment "
        f"with all answers anew {made['seconds of an enrolment']:.1f} at most; other work shared "
        f"the two cores. Ten minutes leave {(600 - first['seconds']) / first['actions']:.1f} s for "
        "each action of the first round.",
        "",
        f"`python benchmarks/desk_walk.py`, {made['date']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        made = walk(args.run, Path(work), args.out)
    (args.out / "desk_walk.json").write_text(json.dumps(json_ready(made), indent=1) + "\n")
    (args.out / "desk_walk.md").write_text(markdown(made))
    print(markdown(made))


if __name__ == "__main__":
    main()
