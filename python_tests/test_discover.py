"""`oltr discover`: what a run rejects, in groups; a kill loses nothing, a name is never markup."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.preprocessing import normalize

from oltr_ext.cli import main
from oltr_ext.engine.evaluate import stream
from oltr_ext.engine.splits import load_splits
from oltr_ext.serve import discover_parts
from oltr_ext.serve.discover import discover
from oltr_ext.serve.model import Model
from oltr_ext.serve.trained import Trained, load_trained


@pytest.fixture
def trained(finished: Path) -> Trained:
    """A run that rejects everything."""
    found = load_trained(finished, device="cpu")
    found.model.head.set_threshold(float("inf"), "max_softmax")
    return found


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """Ten strangers of one kind and four known images."""
    for file in [*sorted(data.glob("open_test_*.png")), *sorted(data.glob("test_0_*.png"))[:4]]:
        target = tmp_path / "photos" / file.name[:6] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return tmp_path / "photos"


def rows(out: Path, name: str = "groups.csv") -> list[dict[str, str]]:
    with (out / name).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def test_the_list_the_page_and_the_object_say_the_same(
    trained: Trained, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = discover(trained, [folder], out=out, nearest=2)
    assert found.seen == len(found) == 14 and found.bad == [] and found.copies == 0
    assert sorted(found.path) == sorted(str(p) for p in folder.rglob("*.png"))
    assert (found.confidence < 1).all() and found.features.shape == (14, 256)
    by_path = {row["path"]: row for row in rows(out)}
    assert len(by_path) == 14 and list(rows(out)[0]) == ["path", "group", "sure", "name"]
    for n, path in enumerate(found.path):
        row = by_path[path]
        assert (int(row["group"]), row["name"]) == (found.group[n], "")
        assert float(row["sure"]) == pytest.approx(found.sure[n], abs=1e-4)
        known = [] if found.group[n] == 0 else found.groups[found.group[n] - 1].nearest
        assert found.nearest[n] == known
    numbers = [int(row["group"]) for row in rows(out)]
    assert numbers == sorted(numbers, key=lambda n: (n == 0, n))  # the odd ones last
    page = (out / "groups.html").read_text()
    assert page.count("data:image/png;base64,") == 14
    for group in found.groups:
        assert group.size == (found.group == group.number).sum() >= 2
        assert group.sure == pytest.approx(found.sure[group.members].mean())
        assert (np.diff(found.sure[group.members]) <= 0).all()
        assert f"{group.size} images, sure {group.sure:.2f}" in page
        (name, distance), other = group.nearest
        assert name in trained.class_names and distance <= other[1]
    assert found.groups and {g.number for g in found.believed} == {
        g.number for g in found.groups if g.sure >= 0.25
    }


def test_the_nearest_known_classes_are_those_of_training(trained: Trained, folder: Path) -> None:
    splits = load_splits(trained.config.data)
    parts = list(stream(trained.model, splits.plain, trained.device))
    label = np.concatenate([y.numpy() for _, y in parts])
    unit = normalize(np.concatenate([x.numpy() for x, _ in parts]).astype(np.float64))
    means = np.stack([unit[label == c].mean(axis=0) for c in range(4)])
    found = discover(trained, folder, nearest=9)
    for group in found.groups:
        own = normalize(found.features[group.members].astype(np.float64)).mean(axis=0)
        distance = 1 - means @ own
        order = np.argsort(distance)
        assert [name for name, _ in group.nearest] == [trained.class_names[c] for c in order]
        np.testing.assert_allclose([d for _, d in group.nearest], distance[order], atol=1e-5)


def test_a_class_that_was_removed_is_no_known_one(trained: Trained, folder: Path) -> None:
    gone = trained.names[0]
    trained.model.head.remove([0])
    found = discover(trained, folder)
    assert found.groups and all(len(group.nearest) for group in found.groups)
    assert all(gone != name for group in found.groups for name, _ in group.nearest)


def test_a_kill_loses_no_part_and_changes_no_bit(
    trained: Trained, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discover_parts, "PART", 5)
    ask, asked = discover_parts._ask, []

    def count(*args: Any) -> Any:
        if len(asked) == 2 and stop:
            raise KeyboardInterrupt
        asked.append(args[1].first)
        return ask(*args)

    monkeypatch.setattr(discover_parts, "_ask", count)
    stop = False
    discover(trained, folder, out=tmp_path / "whole")
    assert asked == [0, 5, 10]
    asked.clear()
    stop = True
    with pytest.raises(KeyboardInterrupt):
        discover(trained, folder, out=tmp_path / "killed")
    stop = False
    assert len(list((tmp_path / "killed" / "parts").iterdir())) == 2
    (tmp_path / "killed" / "parts" / f".{'0' * 24}.npz.tmp").write_bytes(b"half")
    discover(trained, folder, out=tmp_path / "killed")
    assert asked == [0, 5, 10]  # the third alone was asked again
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")

    asked.clear()
    part = min((tmp_path / "killed" / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:-100])
    discover(trained, folder, out=tmp_path / "killed")
    assert len(asked) == 1  # what is damaged is made again
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")

    asked.clear()
    trained.model.head.set_threshold(1e9, "max_softmax")  # another model: nothing holds
    discover(trained, folder, out=tmp_path / "killed")
    assert len(asked) == 3 and len(list((tmp_path / "killed" / "parts").iterdir())) == 3


def test_a_folder_of_that_name_keeps_what_it_held(
    trained: Trained, folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "parts"
    (mine / "0123456789ab").mkdir(parents=True)
    (mine / "wing.png").write_bytes(b"mine")
    discover(trained, folder, out=tmp_path)
    assert {"0123456789ab", "wing.png"} < {each.name for each in mine.iterdir()}


def test_names_and_paths_are_text(trained: Trained, folder: Path, tmp_path: Path) -> None:
    for id, name in enumerate(trained.names):
        trained.model.head.rename(id, f"<b>{name}</b>&")
    wild = folder / '"><img src=x onerror=alert(1)>,\n.png'
    shutil.copy(min(folder.rglob("*.png")), wild)
    if sys.platform == "linux":
        shutil.copy(max(folder.rglob("*.png")), os.fsdecode(os.fsencode(folder) + b"/\xff.png"))
    found = discover(trained, folder, out=tmp_path / "out")
    page = (tmp_path / "out" / "groups.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<b>class" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page and "&lt;b&gt;class" in page
    assert {row["path"] for row in rows(tmp_path / "out")} == set(found.path) >= {str(wild)}
    assert found.bad == []


def test_a_carriage_return_ends_no_row(trained: Trained, folder: Path, tmp_path: Path) -> None:
    out, wild = tmp_path / "out", folder / "a\rb.png"
    shutil.copy(min(folder.rglob("*.png")), wild)
    discover(trained, folder, out=out)
    named = {row["path"]: f"n{number}" for number, row in enumerate(rows(out))}
    assert str(wild) in named and len(named) == 15
    written(out, lambda row: {"name": named[row["path"]]})
    discover(trained, folder, out=out)
    assert {row["path"]: row["name"] for row in rows(out)} == named
    lines = (out / "groups.csv").read_bytes().splitlines(keepends=True)
    assert lines[0] == b"path,group,sure,name\n" and b'"' not in lines[1]  # others are as ever


def test_links_to_folders_are_told(
    trained: Trained, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = folder / "open_t"
    (asked / "link").symlink_to(folder, target_is_directory=True)
    line = f"{asked}: 1 link to a folder passed over"
    for out in (None, tmp_path / "out"):
        found = discover(trained, asked, out=out)
        assert found.seen == 10 and line in found.notes
    assert line in (tmp_path / "out" / "groups.html").read_text()
    assert main(["predict", str(trained.path.parent), str(asked)]) == 0
    assert capsys.readouterr().err == f"oltr: {line}\n"


def test_names_that_a_person_gave_stay(trained: Trained, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    discover(trained, folder, out=out)
    named = rows(out)
    for row in named[:3]:
        row["name"] = "zèbre, or <so>"
    with (out / "groups.csv").open("w", encoding="utf-8-sig", newline="") as file:
        lines = csv.DictWriter(file, named[0])
        lines.writeheader()
        lines.writerows(named)
    kept = {row["path"]: row["name"] for row in named}
    assert discover(trained, folder, out=out).notes == []
    assert {row["path"]: row["name"] for row in rows(out)} == kept
    Path(named[0]["path"]).unlink()
    (note,) = discover(trained, folder, out=out).notes
    assert "1 path with a name is" in note and "groups_before.csv" in note
    del kept[named[0]["path"]]
    assert {row["path"]: row["name"] for row in rows(out)} == kept
    (before,) = rows(out, "groups_before.csv")
    assert (before["path"], before["name"]) == (named[0]["path"], "zèbre, or <so>")
    (out / "groups.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected columns path, group, sure, name, got a, b"):
        discover(trained, folder, out=out)
    assert (out / "groups.csv").read_text() == "a,b\n1,2\n"


def written(out: Path, edit: Any) -> list[dict[str, str]]:
    """The list, with each row as `edit` leaves it."""
    named = rows(out)
    for row in named:
        row.update(edit(row))
    with (out / "groups.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, [*named[0]])
        lines.writeheader()
        lines.writerows(named)
    return named


def test_names_come_back_with_their_images(
    trained: Trained, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, kinds = tmp_path / "out", sorted(folder.iterdir())
    discover(trained, kinds[:1], out=out)
    named = written(out, lambda row: {"name": f"of {Path(row['path']).name}"})
    (note,) = [n for n in discover(trained, kinds[1:], out=out).notes if "with names" in n]
    assert note.startswith(f"{len(named)} paths with names are not among these images: ")
    assert all(row["name"] == "" for row in rows(out))
    assert not any("with names" in n for n in discover(trained, kinds[:1], out=out).notes)
    assert {(r["path"], r["name"]) for r in rows(out)} == {(r["path"], r["name"]) for r in named}
    monkeypatch.chdir(folder)  # the same files, spelt otherwise
    assert not any("with names" in n for n in discover(trained, [kinds[0].name], out=out).notes)
    assert {r["name"] for r in rows(out)} == {r["name"] for r in named}
    written(out, lambda row: {"name": ""})  # a name that was taken out stays out
    discover(trained, kinds[1:], out=out)
    discover(trained, kinds[:1], out=out)
    assert all(row["name"] == "" for row in rows(out))
    written(out, lambda row: {"name": "owl"})
    trained.model.head.set_threshold(-1.0, "max_softmax")
    (note,) = [n for n in discover(trained, kinds[:1], out=out).notes if "with names" in n]
    assert note.startswith(f"{len(named)} paths with names are unknown no more: ")


def test_columns_of_ones_own_stay(trained: Trained, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    discover(trained, folder, out=out)
    named = written(out, lambda row: {"note": f"seen in {Path(row['path']).stem}, May"})
    discover(trained, folder, out=out)
    assert list(rows(out)[0]) == ["path", "group", "sure", "name", "note"]
    notes = {row["path"]: row["note"] for row in named}
    assert {row["path"]: row["note"] for row in rows(out)} == notes
    (out / "groups.csv").write_text("name,path\nowl,a.png\nowl\n")
    with pytest.raises(ValueError, match=r"groups\.csv:3: expected 2 cells, as the first"):
        discover(trained, folder, out=out)
    (out / "groups.csv").write_text("path,name\na.png,owl,barn\n")
    with pytest.raises(ValueError, match=r"groups\.csv:2: expected 2 cells, as the first"):
        discover(trained, folder, out=out)


def test_the_command_counts_and_names_what_it_cannot_read(
    finished: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "note.txt").write_text("no image by its ending")
    (folder / ".hidden.png").write_bytes(b"no image")
    asked = ["discover", str(finished), str(folder), "nowhere.png", "--out", str(tmp_path / "o")]
    assert main(asked) == 1
    out, err = capsys.readouterr()
    assert " of 14 images are unknown" in out and str(tmp_path / "o" / "groups.csv") in out
    assert "2 could not be read" in err and "broken.png" in err and "nowhere.png" in err
    assert f"oltr enroll {finished} --from {tmp_path / 'o' / 'groups.csv'}\n" in out
    page = (tmp_path / "o" / "groups.html").read_text()
    assert "2 could not be read" in page and "broken.png" in page
    assert main(asked) == 1 and "broken.png" in capsys.readouterr().err  # taken up, and told again
    (tmp_path / "empty").mkdir()
    assert main(["discover", str(finished), str(tmp_path / "empty")]) == 1
    assert "no image in the folder" in capsys.readouterr().err


def test_copies_count_once(trained: Trained, folder: Path, tmp_path: Path) -> None:
    plain = discover(trained, folder)
    twice = sorted(folder.rglob("*.png"))[3]
    shutil.copy(twice, folder / "zz.png")
    Image.open(twice).save(folder / "zzz.bmp")  # other bytes, the same pixels
    found = discover(trained, folder)
    assert found.copies == 2 and any("2 of the rejected are copies" in n for n in found.notes)
    place = {Path(path).name: n for n, path in enumerate(found.path)}
    for name in ("zz.png", "zzz.bmp"):
        assert found.group[place[name]] == found.group[place[twice.name]]
        assert found.sure[place[name]] == found.sure[place[twice.name]]
    old = {Path(path).name: number for path, number in zip(plain.path, plain.group, strict=True)}
    both = [(old[name], found.group[n]) for name, n in place.items() if name in old]
    assert len(set(both)) == len({a for a, _ in both}) == len({b for _, b in both})


def test_little_is_said_in_clear_words(trained: Trained, folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    one = tmp_path / "same"
    one.mkdir()
    for n in range(6):
        shutil.copy(files[0], one / f"{n}.png")
    found = discover(trained, one, out=tmp_path / "out")
    assert found.notes == ["all 6 that are rejected are one image: there is no group"]
    assert found.groups == [] and not found.group.any() and len(rows(tmp_path / "out")) == 6
    assert "there is no group" in (tmp_path / "out" / "groups.html").read_text()
    assert "only 3 different images are rejected" in discover(trained, files[:3]).notes[0]
    assert "only 1 image is rejected" in discover(trained, files[0]).notes[0]
    assert discover(trained, "nowhere.png").notes == ["no image could be read"]
    trained.model.head.set_threshold(-1.0, "max_softmax")
    found = discover(trained, files, out=tmp_path / "none")
    assert found.notes == ["none of the 14 images is rejected: there is nothing unknown"]
    assert len(found) == 0 and found.groups == [] and rows(tmp_path / "none") == []
    assert "nothing unknown" in (tmp_path / "none" / "groups.html").read_text()


def test_features_and_images_in_memory(trained: Trained, folder: Path, tmp_path: Path) -> None:
    model = Model(trained)
    files = sorted(folder.rglob("*.png"))
    by_file = model.discover(files)
    by_picture = model.discover([Image.open(file) for file in files], out=tmp_path / "out")
    assert by_picture.path[1] == "image[1]"
    assert by_picture.group.tolist() == by_file.group.tolist()
    assert "data:image/png" in (tmp_path / "out" / "groups.html").read_text()
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    for given in (np.stack(pixels), [torch.from_numpy(each.copy()) for each in pixels]):
        assert model.discover(given).group.tolist() == by_file.group.tolist()
    for given in (pixels[0], Image.open(files[0]), torch.from_numpy(by_file.features[0])):
        assert model.discover(given).seen == 1
    assert model.discover([*by_file.features]).group.tolist() == by_file.group.tolist()
    by_row = model.discover(by_file.features)
    assert by_row.path[1] == "row[1]" and by_row.group.tolist() == by_file.group.tolist()
    np.save(tmp_path / "rows.npy", by_file.features)
    stored = model.discover(tmp_path / "rows.npy", out=tmp_path / "rows")
    assert stored.path[1] == f"{tmp_path / 'rows.npy'}[1]"
    assert stored.group.tolist() == by_file.group.tolist()
    assert "<img" not in (tmp_path / "rows" / "groups.html").read_text()
    np.save(tmp_path / "rows.npy", by_file.features[::-1])  # what was kept is of the old file
    again = model.discover(tmp_path / "rows.npy", out=tmp_path / "rows")
    assert (again.features == by_file.features[::-1]).all()
    with pytest.raises(ValueError, match=r"expected embeddings of shape \(N, 256\)"):
        model.discover(np.zeros((2, 3)))
    with pytest.raises(TypeError, match="expected files, images or features, got int"):
        model.discover(3)
    trained.model.head.bank.whitening = None
    with pytest.raises(ValueError, match="keeps the means of its classes"):
        model.discover(files)
