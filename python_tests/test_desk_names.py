"""Names at the desk: those that a run has in another spelling, and two for the same pixels."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

from desk_cases import decide, first, members, opened
from PIL import Image

from oltr_ext.data.lists import read_names
from oltr_ext.desk import views
from oltr_ext.desk.export import lists
from oltr_ext.engine import checkpoint, enrolment
from oltr_ext.engine.enrolment import Enrolment
from oltr_ext.nn import Roster
from oltr_ext.serve.trained import load_trained

pytest_plugins = ("desk_fixtures",)


def test_names_of_the_run_that_are_written_otherwise(
    run: Path, folder: Path, tmp_path: Path
) -> None:
    old = load_trained(run, device="cpu")
    names = ["two  blanks", unicodedata.normalize("NFD", "caf\u00e9"), "line\nbreak"]
    entries = [replace(e, name=n) for e, n in zip(old.roster, [*names, "last"], strict=True)]
    old.enrolment = old.kept = Enrolment(Roster(entries), old.kept.features, old.kept.owner)
    tensors, header = checkpoint.load(old.path)
    checkpoint.save(old.path, *enrolment.put(old.enrolment, tensors, header))
    desk = opened(run, folder)
    group = first(desk)
    inside = members(desk, group)
    for image, name in zip(inside, names, strict=False):
        decide(desk, "name", images=[image], name=name)
    assert desk.plan() == {}  # all are trained classes
    found = lists(desk)
    (tmp_path / "names.txt").write_bytes(found["names.txt"])
    tidy = ["two blanks", names[1], "line break", "last"]
    assert read_names(tmp_path / "names.txt") == tidy
    labels = {line.rsplit(" ", 1)[1] for line in found["train.txt"].decode().splitlines()}
    assert labels == {"0", "1", "2"}
    desk.close()


def test_two_names_for_the_same_pixels(run: Path, folder: Path) -> None:
    file = min((folder / "open_test").glob("*.png"))
    Image.open(file).save(folder / "copy.bmp")
    desk = opened(run, folder)
    image = {path: i for i, paths in desk.contents.paths.items() for path in paths}
    one, other = image[f"open_test/{file.name}"], image["copy.bmp"]
    decide(desk, "name", images=[one], name="crab")
    decide(desk, "name", images=[other], name="whelk")
    desk.enroll(desk.log.version)
    roster = load_trained(run, device="cpu").roster
    assert [roster[roster.id_of(name)].images for name in ("crab", "whelk")] == [1, 1]
    assert desk.plan() == {}
    shown = views.images(desk, str(desk.log.state.place[other]), 0)["images"]
    assert [row["enrolled"] for row in shown] == ["whelk"]
    decide(desk, "move", images=[other], to="single")
    assert desk.plan() == {"whelk": -1}
    desk.enroll(desk.log.version)
    assert desk.plan() == {} and "whelk" not in desk.trained.roster
    desk.close()
