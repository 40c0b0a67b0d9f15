"""Classes that join a run while it is served, by the service and by others."""

from __future__ import annotations

import shutil
import time

import pytest
from served import TOKEN, npy, serving, until
from strangers import rows, train_on_rows

import oltr_ext
from oltr_ext.cli import main
from oltr_ext.engine.lock import locked
from oltr_ext.service import classes as changes
from oltr_ext.service.model import Watched

MAY = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def service(run):
    with serving(run, token=TOKEN) as (client, service):
        yield client, service


def form(data, numbers=range(6)):
    return [("x", (f"{n}.png", (data / f"open_test_4_{n}.png").read_bytes())) for n in numbers]


def names(client):
    return [each["name"] for each in client.get("/classes").json()["classes"]]


def test_a_class_joins_and_leaves(service, run, data):
    client, _ = service
    before, blob = names(client), (run / "model.safetensors").read_bytes()
    for ask, address in (("POST", "?name=fifth&dryrun=1"), ("DELETE", "/c0?dry_run=1"),
                         ("POST", "/undo?dry_run=1")):  # fmt: skip
        reply = client.request(ask, f"/classes{address}", headers=MAY)
        assert reply.status_code == 400 and "unknown ?dry" in reply.json()["error"]
    reply = client.post("/classes?name=fifth&dry_run=1", files=form(data), headers=MAY)
    assert reply.status_code == 200 and reply.json()["dry_run"]
    assert (run / "model.safetensors").read_bytes() == blob and names(client) == before
    reply = client.post("/classes?name=fifth", files=form(data), headers=MAY)
    assert reply.status_code == 200
    found = reply.json()
    assert (found["id"], found["images"], found["name"]) == (4, 6, "fifth")
    assert names(client) == [*before, "fifth"]
    model = oltr_ext.load(run)  # on disk at once, and as by the other ways
    assert model.class_names[-1] == "fifth" and model.classes[-1].images == 6
    other = data / "open_test_4_8.png"
    (said,) = client.post("/predict?nearest=5", content=other.read_bytes()).json()["answers"]
    assert [n for n, _ in said["nearest"]] == [
        n for n, _ in model.predict(other, nearest=5).nearest
    ]
    assert "fifth" in [name for name, _ in said["nearest"]]
    reply = client.post("/classes?name=fifth", files=form(data, [7]), headers=MAY)
    assert reply.status_code == 409 and "was enrolled before, from 6" in reply.json()["error"]
    reply = client.post("/classes?name=fifth&more=1", files=form(data, [7]), headers=MAY)
    assert reply.status_code == 200 and oltr_ext.load(run).classes[-1].images == 7
    assert client.post("/classes/undo", headers=MAY).json()["classes"][-1]["images"] == 6
    assert client.delete("/classes/fifth", headers=MAY).status_code == 200
    assert names(client) == before
    assert client.post("/classes/undo", headers=MAY).status_code == 200
    assert names(client) == [*before, "fifth"]
    reply = client.delete("/classes/fiftj", headers=MAY)
    assert reply.status_code == 409 and "did you mean fifth?" in reply.json()["error"]


def test_nothing_changes_unless_all_is_right(service, run, data, monkeypatch):
    client, _ = service
    before, blob = names(client), (run / "model.safetensors").read_bytes()
    for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": TOKEN}):
        reply = client.post("/classes?name=a", files=form(data), headers=headers)
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
        assert client.delete("/classes/class 0", headers=headers).status_code == 401
        assert client.post("/classes/undo", headers=headers).status_code == 401
    bad = [*form(data), ("x", ("bad.png", b"none"))]
    reply = client.post("/classes?name=a", files=bad, headers=MAY)
    assert reply.status_code == 400 and "bad.png" in reply.json()["error"]
    cases = (("", 400), ("?name= ", 400), ("?name=..", 400), ("?name=class 0", 409))
    for query, status in cases:
        reply = client.post(f"/classes{query}", files=form(data), headers=MAY)
        assert reply.status_code == status and str(run) not in reply.text
    monkeypatch.setattr(changes, "WAIT", 0.05)
    with locked(run, "a test"):
        reply = client.post("/classes?name=a", files=form(data), headers=MAY)
        assert reply.status_code == 503 and "retry-after" in reply.headers
        assert reply.json()["error"] == "a test has this run"
        assert str(run) not in reply.text

    def broken(*_, **__):
        raise OSError(f"no space left for {run}")

    with monkeypatch.context() as patch:
        patch.setattr("oltr_ext.engine.checkpoint.save", broken)
        reply = client.post("/classes?name=a", files=form(data), headers=MAY)
    assert reply.status_code == 500 and str(run) not in reply.text
    assert (run / "model.safetensors").read_bytes() == blob and names(client) == before
    assert client.post("/classes?name=a", files=form(data), headers=MAY).status_code == 200


def test_a_change_that_was_made_is_answered_whatever_comes_after(run, data, monkeypatch):
    with serving(run, token=TOKEN, seconds=0.5) as (client, service):
        read, failing = Watched.read, []

        def slow_and_once_not(watched):
            if len(failing) == 1:  # to be served, after it was written
                failing.append(1)
                raise OSError(24, "Too many open files")
            if not failing:
                failing.append(1)
                time.sleep(0.8)
            return read(watched)

        monkeypatch.setattr(Watched, "read", slow_and_once_not)
        reply = client.post("/classes?name=late", files=form(data), headers=MAY)
        assert reply.status_code == 200 and reply.json()["name"] == "late"
        until(lambda: "late" in names(client))
        assert len(failing) == 2 and service.watched.served.trained.names[-1] == "late"


def test_what_others_write_is_served(service, run, data):
    client, _ = service
    images = [str(data / f"open_test_4_{n}.png") for n in range(3)]
    assert main(["enroll", str(run), "--name", "other", *images, "--device", "cpu"]) == 0
    until(lambda: "other" in names(client))
    good = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(good[:-10])
    until(lambda: "oltr_reload_failures_total 1" in client.get("/metrics").text)
    assert "other" in names(client)
    assert client.post("/predict", files=form(data)).status_code == 200
    (run / "model.safetensors").unlink()
    assert main(["classes", str(run)]) == 1
    (run / "model.safetensors").write_bytes(good)
    until(lambda: "oltr_reloads_total 2" in client.get("/metrics").text)
    assert "other" in names(client)


def test_a_class_of_features_joins(tmp_path):
    run = train_on_rows(tmp_path)
    with serving(run, token=TOKEN) as (client, _):
        given = npy(rows("d", 12, 6))
        found = client.post("/classes?name=d", content=given, headers=MAY).json()
        assert (found["id"], found["images"]) == (8, 12)
        said = client.post("/predict", content=npy(rows("d", 20, 8))).json()["answers"]
        expected = oltr_ext.load(run).predict(rows("d", 20, 8))
        assert [each["label"] for each in said] == expected.label.tolist()
        assert sum(each["closed"] == "d" for each in said) >= 15
        wrong = npy(rows("d", 2)[:, :5])
        assert client.post("/classes?name=e", content=wrong, headers=MAY).status_code == 400


def test_a_token_of_some_length(finished):
    with (
        pytest.raises(ValueError, match="at least 16 characters, got 5"),
        serving(finished, token="short"),
    ):
        pass


def test_a_token_of_other_letters(run):
    token = "Paßwort, lang genug: ж"
    with serving(run, token=token) as (client, _):
        for said, status in ((token, 409), (token[:-2], 401)):
            head = {b"authorization": f"Bearer {said}".encode()}
            assert client.post("/classes/undo", headers=head).status_code == status
