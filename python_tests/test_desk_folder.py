"""The folder of a desk: gone on with, changed, without images, and with what is none of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desk_cases import decide, first, opened
from PIL import Image

from oltr_ext.desk import views
from oltr_ext.desk.desk import Desk
from oltr_ext.desk.export import lists
from oltr_ext.desk.folder import Folder
from oltr_ext.desk.state import Refused
from oltr_ext.serve import discover_parts
from oltr_ext.serve.trained import load_trained

pytest_plugins = ("desk_fixtures",)


def test_it_goes_on_where_it_was(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = opened(run, folder)
    group = first(desk)
    decide(desk, "name", groups=[group], name="snail")
    desk.enroll(desk.log.version)
    state, version = desk.log.state, desk.log.version
    desk.close()
    with monkeypatch.context() as patch:  # no file is read again, no image embedded again
        patch.setattr("oltr_ext.desk.folder._hash", None)
        patch.setattr("oltr_ext.serve.discover_parts._ask", None)
        opened(run, folder).close()
    moved = next((folder / "open_test").iterdir())
    moved.rename(folder / "a name like <b>.png")
    shutil.copy(folder / "open_val" / "open_val_4_0.png", folder / "copy.png")
    desk = opened(run, folder)
    assert desk.log.state == state and desk.log.version == version
    rows = views.images(desk, str(group), 0)["images"]
    assert "a name like <b>.png" in {row["path"] for row in rows}
    assert sum(row["copies"] for row in rows) == 1
    draw = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(draw).save(folder / "new.png")
    desk.close()
    desk = opened(run, folder)
    new = [e for e in desk.log.events[version:] if e.kind == "found"]
    assert desk.log.state.members[group] == state.members[group] and len(new) <= 1
    desk.undo(desk.log.version)
    assert "snail" not in load_trained(run, device="cpu").names
    desk.close()


def test_how_far_it_is_and_what_failed(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(load_trained(run, device="cpu"), Folder(folder), run / "desk")
    seen: list[tuple[str, int, int]] = []
    embedded = discover_parts._ask

    def ask(*given: Any) -> Any:
        found = views.status(desk)
        seen.append(tuple(found["progress"][key] for key in ("phase", "done", "total")))
        assert "counts" not in found
        with pytest.raises(Refused, match="still being looked at"):
            decide(desk, "regroup")
        return embedded(*given)

    monkeypatch.setattr(discover_parts, "PART", 20)
    monkeypatch.setattr(discover_parts, "_ask", ask)
    desk.prepare()
    assert seen == [("embedding", 0, 43), ("embedding", 20, 43), ("embedding", 40, 43)]
    assert views.status(desk)["progress"]["phase"] == "ready"
    desk.close()
    desk = Desk(load_trained(run, device="cpu"), Folder(folder), run / "desk2")
    monkeypatch.setattr(discover_parts, "_ask", None)
    with pytest.raises(TypeError):
        desk.prepare()
    failed = views.status(desk)["progress"]
    assert failed["phase"] == "failed" and "not callable" in failed["words"]
    desk.close()


def test_a_folder_without_an_image(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "broken.png").write_bytes(b"no image")
    desk = opened(run, tmp_path / "empty")
    counts = views.status(desk)["counts"]
    assert counts["images"] == counts["open"] == 0 and counts["bad"] == 1
    assert views.groups(desk, "open", 0)["groups"] == []
    with pytest.raises(Refused, match="nothing to group"):
        decide(desk, "regroup")
    with pytest.raises(Refused, match="name a group first"):
        desk.enroll(desk.log.version)
    assert lists(desk)["train.txt"] == b""
    desk.close()
    with pytest.raises(FileNotFoundError, match="no folder"):
        opened(run, tmp_path / "nowhere")


@pytest.mark.parametrize("where", ["test/kept", "."])
def test_its_own_pictures_are_no_images_of_the_folder(run: Path, folder: Path, where: str) -> None:
    out = folder / where
    desk = opened(run, folder, out)
    images = desk.ready().images
    for image in images:
        desk.thumbs.small(image, desk.contents.paths[image])
    desk.close()
    assert len(list(out.rglob("*.jpg"))) == len(images)
    desk = opened(run, folder, out)
    assert desk.ready().images == images
    desk.close()


def test_nothing_outside_the_folder_is_read(run: Path, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (16, 16), "red").save(secret)
    (tmp_path / "others").mkdir()
    shutil.copy(secret, tmp_path / "others" / "in.png")
    (folder / "link.png").symlink_to(secret)
    (folder / "up.png").symlink_to("../secret.png")
    (folder / "dir").symlink_to(tmp_path / "others")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "inside.png").symlink_to(folder / "test" / "test_0_0.png")
    os.mkfifo(folder / "pipe.png")
    desk = opened(run, folder)
    why = {row["path"]: row["why"] for row in views.images(desk, "bad", 0)["bad"]}
    assert set(why) == {"link.png", "up.png", "loop.png", "pipe.png", "broken.png"}
    assert "out of the folder" in why["link.png"] and "no regular file" in why["pipe.png"]
    shown = {path for paths in desk.contents.paths.values() for path in paths}
    assert "inside.png" in shown and not any("dir" in path for path in shown)
    image = next(i for i, paths in desk.contents.paths.items() if "test/test_1_0.png" in paths)
    (folder / "test" / "test_1_0.png").unlink()
    (folder / "test" / "test_1_0.png").symlink_to(secret)
    with pytest.raises(ValueError, match="has gone, or was changed"):
        desk.thumbs.small(image, desk.contents.paths[image])
    image = next(i for i, paths in desk.contents.paths.items() if "test/test_2_0.png" in paths)
    shutil.copy(secret, folder / "test" / "test_2_0.png")  # another image under its name
    with pytest.raises(ValueError, match="has gone, or was changed"):
        desk.thumbs.small(image, desk.contents.paths[image])
    desk.close()
