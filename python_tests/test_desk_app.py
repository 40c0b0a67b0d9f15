"""The routes of `oltr desk`: who is let in, what is served, and that names stay text."""

from __future__ import annotations

import io
import os
import re
import socket
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desk_cases import a_run, crowded, opened, photos
from PIL import Image

from oltr_ext.cli import main
from oltr_ext.desk import views
from oltr_ext.desk.app import make_app
from oltr_ext.desk.desk import Desk
from oltr_ext.desk.run import _held
from oltr_ext.desk.thumbs import LARGE, SMALL
from oltr_ext.serve import discover_groups
from oltr_ext.serve.trained import load_trained

pytest.importorskip("httpx")
testclient = pytest.importorskip("starlette.testclient")

TOKEN = "t0ken-" + "x" * 30
HOST = "127.0.0.1:8765"
WILD = '"><img src=x onerror=alert(1)>.png'


@pytest.fixture(scope="module")
def desk(data: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    images = photos(data, folder / "photos")
    Image.new("RGBA", (900, 300), (0, 0, 0, 0)).save(images / WILD)
    (images / "alert.js.png").write_bytes(b"<script>alert(1)</script>")
    (folder / "secret.txt").write_text("secret")
    desk = opened(a_run(finished, folder / "run"), images)
    yield desk
    desk.close()


@pytest.fixture
def client(desk: Desk) -> Any:
    return testclient.TestClient(make_app(desk, TOKEN), base_url=f"http://{HOST}")


def post(client: Any, act: str, held: Any, **headers: str) -> Any:
    return client.post(f"/{TOKEN}/api/{act}", json=held, headers=headers)


def routes(desk: Desk) -> list[str]:
    image = desk.ready().images[0]
    files = [p.name for p in Path(views.__file__).with_name("page").iterdir()]
    return [
        *("", *files, f"small/{image}", f"large/{image}", "api/status", "api/groups/open"),
        *("api/images/known", "api/names?q=c", "api/history", "api/export.zip"),
    ]


def test_every_route_needs_the_token(client: Any, desk: Desk) -> None:
    assert len(routes(desk)) >= 16
    for route in routes(desk):
        found = client.get(f"/{TOKEN}/{route}")
        assert found.status_code == 200 and found.content, route
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "no-referrer"
        for wrong in ("", TOKEN[:-1], TOKEN + "x", "é", TOKEN.upper(), f"x/{TOKEN}", f"/{TOKEN}"):
            found = client.get(f"/{wrong}/{route}" if wrong else f"/{route}")
            assert found.status_code == 404 and not found.content, (wrong, route)
            assert "default-src 'none'" in found.headers["content-security-policy"]
    before = desk.log.version
    for act in ("do", "undo", "redo", "enroll"):
        found = client.post(f"/api/{act}", json={"version": before})
        assert found.status_code == 404
    assert desk.log.version == before


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example:8765"}, 421),  # a name that was made to lead here
        ({"host": "127.0.0.1.evil.example:8765"}, 421),
        ({"host": "127.0.0.1"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1234"}, 403),
        ({"origin": f"https://{HOST}"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_no_other_page_decides(
    client: Any, desk: Desk, headers: dict[str, str], status: int
) -> None:
    before = desk.log.version
    sent = {"content-type": "application/json", **headers}
    body = b'{"version": 0, "do": "regroup"}'
    found = client.post(f"/{TOKEN}/api/do", content=body, headers=sent)
    assert found.status_code == status and desk.log.version == before
    if "content-type" not in headers:
        assert client.get(f"/{TOKEN}/api/status", headers=headers).status_code == status


def test_our_own_page_decides(client: Any, desk: Desk) -> None:
    for host in (HOST, "localhost:8765", "[::1]:8765"):
        headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        held = {"version": desk.log.version, "do": "regroup"}
        assert post(client, "do", held, **headers).json() == {"version": desk.log.version}
        assert post(client, "undo", {"version": desk.log.version}, **headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "%2e%2e/secret.txt",
        "small/..%2f..%2fsecret.txt",
        "large/%2fetc%2fpasswd",
        "small/../../secret.txt",
        "index.html/../../app.py",
        "__init__.py",
        "small/" + "0" * 32,
        "small/broken.png",
        "api/images/../../secret.txt",
    ],
)
def test_no_path_is_served(client: Any, path: str) -> None:
    found = client.get(f"/{TOKEN}/{path}")
    assert found.status_code in (400, 404) and b"secret" not in found.content
    assert b"root:" not in found.content


def test_what_cannot_be_understood_is_an_answer(client: Any, desk: Desk) -> None:
    headers = {"content-type": "application/json"}
    for body in (b"", b"[]", b"{", b'"x"', b"[" * 100_000, b"\xff", b'{"version": 1e999}'):
        found = client.post(f"/{TOKEN}/api/do", content=body, headers=headers)
        assert found.status_code == 400 and found.json()["error"], body[:20]
    big = b" " * (5 << 20)
    assert client.post(f"/{TOKEN}/api/do", content=big, headers=headers).status_code == 413
    for route in ("groups/none", "images/none", "images/99", "images/known?page=x", "groups/known"):
        assert client.get(f"/{TOKEN}/api/{route}").status_code == 400, route
    assert client.get(f"/{TOKEN}/api/images/known?page=999").json()["images"] == []
    assert post(client, "drop", {"version": 0}).status_code == 404


def test_pictures_are_pixels_whatever_the_file_is(client: Any, desk: Desk) -> None:
    by_path = {paths[0]: image for image, paths in desk.contents.paths.items()}
    for route, size in (("small", SMALL), ("large", LARGE)):
        found = client.get(f"/{TOKEN}/{route}/{by_path[WILD]}")
        assert found.headers["content-type"] == "image/jpeg"
        picture = Image.open(io.BytesIO(found.content))
        assert picture.format == "JPEG" and max(picture.size) == size
        assert picture.getpixel((1, 1)) == (255, 255, 255)  # what is transparent, on white
    script = client.get(f"/{TOKEN}/small/{by_path['alert.js.png']}")
    assert script.status_code == 410 and not script.content
    made = list((desk.out / "thumbs").rglob("*.jpg"))
    time = {file: file.stat().st_mtime_ns for file in made}
    client.get(f"/{TOKEN}/small/{by_path[WILD]}")
    assert made and {file: file.stat().st_mtime_ns for file in made} == time  # made once


def test_names_and_paths_come_as_text(client: Any, desk: Desk) -> None:
    image = next(i for i, paths in desk.contents.paths.items() if paths == [WILD])
    name = "<script>alert(1)</script>"
    held = {"version": desk.log.version, "do": "name", "images": [image], "name": name}
    assert post(client, "do", held).status_code == 200
    listed = client.get(f"/{TOKEN}/api/groups/named")
    assert listed.headers["content-type"] == "application/json"
    (card,) = listed.json()["groups"]
    assert card["name"] == name
    rows = client.get(f"/{TOKEN}/api/images/{card['id']}").json()["images"]
    assert [row["path"] for row in rows] == [WILD]
    archive = client.get(f"/{TOKEN}/api/export.zip").content
    with zipfile.ZipFile(io.BytesIO(archive)) as held_files:
        assert f"{WILD} 4\n" in held_files.read("train.txt").decode()
        assert held_files.read("names.txt").decode().splitlines()[4] == name
    assert post(client, "undo", {"version": desk.log.version}).status_code == 200


def test_the_page_runs_no_markup_and_reaches_no_network() -> None:
    page = Path(views.__file__).with_name("page")
    for file in page.iterdir():
        source = file.read_text(encoding="utf-8")
        for wrong in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert wrong not in source, (file.name, wrong)
        assert not re.search(r"\bon(click|load|error|key\w*)\s*=", source), file.name
        assert not re.search(r"\bstyle\s*=", source), file.name
        found = re.findall(r"https?://[^\"' )]*", source)
        assert set(found) <= {"http://www.w3.org/2000/svg"}, file.name


def test_without_the_extra_its_name_is_told(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["desk", str(finished), str(tmp_path)]) == 1
    assert "uvicorn is missing: run `pip install oltr_ext[web]`" in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_desk_that_is_open(
    finished: Path, tmp_path: Path, desk: Desk, capsys: Any
) -> None:
    run, folder = str(desk.trained.path.parent), str(desk.folder.root)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        asked = ["desk", run, folder, "--no-browser", "--port", port, "--out", str(tmp_path / "o")]
        assert main(asked) == 1
        assert f"port {port} of 127.0.0.1 cannot be had" in capsys.readouterr().err
    held = tmp_path / "held"
    with _held(desk.trained.path, desk.folder.root, held, "cpu", print):
        asked = ["desk", run, folder, "--export", str(tmp_path), "--out", str(held)]
        assert main(asked) == 1
        said = f"{held} is in use by a desk (process {os.getpid()} on "
        assert said in capsys.readouterr().err
    asked[asked.index("--out") + 1] = str(tmp_path / "own")
    assert main(asked) == 0 and (tmp_path / "train.txt").read_text() == ""
    (tmp_path / "left_out.txt").write_text("of an export before")
    assert main(asked) == 0 and not (tmp_path / "left_out.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.txt").write_text("a.png 0\n")
    asked[asked.index("--export") + 1] = str(tmp_path / "mine")
    assert main(asked) == 1
    assert "mine/train.txt is there, and is not of an earlier" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["train.txt"]


def test_a_conflict_is_told_and_nothing_is_lost(client: Any, desk: Desk) -> None:
    group = views.groups(desk, "open", 0)["groups"][0]["id"]
    version = desk.log.version
    held = {"version": version, "do": "name", "groups": [group]}
    assert post(client, "do", {**held, "name": "snail"}).json() == {"version": version + 1}
    found = post(client, "do", {**held, "name": "crab"})
    assert found.status_code == 409 and "look again" in found.json()["error"]
    assert found.json()["version"] == version + 1
    assert post(client, "enroll", {"version": version}).status_code == 409
    assert post(client, "undo", {"version": version}).status_code == 409
    status = client.get(f"/{TOKEN}/api/status").json()
    assert status["version"] == version + 1 and "snail" in status["undo"]
    assert post(client, "undo", {"version": version + 1}).status_code == 200


def test_ten_thousand_images_come_in_pages(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discover_groups, "EXACT", 512)  # cells of which pairs are compared
    count, kinds = 10_000, 60
    trained = load_trained(a_run(finished, tmp_path / "run"), device="cpu")
    desk = crowded(trained, tmp_path, tmp_path / "out", count, kinds)
    client = testclient.TestClient(make_app(desk, TOKEN), base_url=f"http://{HOST}")
    status = client.get(f"/{TOKEN}/api/status")
    counts = status.json()["counts"]
    assert counts["images"] == counts["unknown"] == count and counts["open"] >= kinds
    assert len(status.content) < 2000
    seen: list[str] = []
    pages = client.get(f"/{TOKEN}/api/groups/open").json()["pages"]
    for page in range(pages):
        found = client.get(f"/{TOKEN}/api/groups/open?page={page}")
        groups = found.json()["groups"]
        assert len(groups) <= views.GROUPS and len(found.content) < 50_000
        assert all(len(group["images"]) <= views.SHEET for group in groups)
        seen += [group["id"] for group in groups]
    assert sorted(seen) == sorted(desk.log.state.members)
    group, images = seen[0], []
    held = {"version": desk.log.version, "do": "name", "groups": [group], "name": "snail"}
    assert post(client, "do", held).status_code == 200
    pages = client.get(f"/{TOKEN}/api/images/{group}").json()["pages"]
    for page in range(pages):
        rows = client.get(f"/{TOKEN}/api/images/{group}?page={page}").json()["images"]
        assert 0 < len(rows) <= views.IMAGES
        images += [row["id"] for row in rows]
    assert sorted(images) == sorted(desk.log.state.members[group]) and pages > 1
    everything = {"version": desk.log.version, "do": "move", "groups": seen[1:], "to": "junk"}
    assert post(client, "do", everything).status_code == 200
    assert client.get(f"/{TOKEN}/api/images/junk").json()["total"] > 9_000
    assert post(client, "undo", {"version": desk.log.version}).status_code == 200
    desk.close()
