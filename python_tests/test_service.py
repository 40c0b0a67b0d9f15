"""`oltr serve`: what is asked over HTTP, and what is answered."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image
from served import npy, png, serving
from strangers import WIDTH, rows, train_on_rows

import oltr_ext
from oltr_ext.serve.predict import predict_features, predict_images
from oltr_ext.serve.trained import load_trained
from oltr_ext.service import model as service_model
from oltr_ext.service.room import Limits

LIMITS = {"images": 8, "pixels": 10_000, "body": 200_000, "queue": 16}


@pytest.fixture(scope="module")
def client(finished):
    with serving(finished, **LIMITS) as (found, _):
        yield found


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    run = train_on_rows(tmp_path_factory.mktemp("rows"), "plain")
    with serving(run) as (found, _):
        yield run, found


def same(answers, expected):
    assert len(answers) == len(expected)
    for one, other in zip(answers, expected, strict=True):
        assert one["unknown"] == (one["label"] is None) == (not other.known)
        for key in ("path", "label", "score", "closed"):
            assert one[key] == getattr(other, key)
        for key in ("confidence", "threshold"):
            assert one[key] == pytest.approx(getattr(other, key), rel=1e-4, abs=1e-4)
        assert [name for name, _ in one["nearest"]] == [name for name, _ in other.nearest]


def test_images_are_answered_as_offline(client, finished, data):
    files = [*sorted(data.glob("test_*.png"))[::5], *sorted(data.glob("open_test_*.png"))[:3]]
    expected = predict_images(load_trained(finished, device="cpu"), files, nearest=2)
    assert len(files) == 8 and any(not each.known for each in expected)
    form = [("any", (str(file), file.read_bytes())) for file in files]
    reply = client.post("/predict?nearest=2", files=form)
    assert reply.status_code == 200
    same(reply.json()["answers"], expected)
    for file, one in zip(files, expected, strict=True):
        found = client.post("/predict?nearest=2", content=file.read_bytes()).json()["answers"]
        one.path = "image[0]"
        same(found, [one])


def test_sets_are_those_of_the_run(client, finished, data):
    file = data / "test_1_0.png"
    (found,) = client.post("/predict?set=0.2&set_method=pas", content=file.read_bytes()).json()[
        "answers"
    ]
    (expected,) = oltr_ext.load(finished).predict_set([file], alpha=0.2, method="pas")
    assert [name for name, _ in found["set"]] == expected.labels.tolist()
    assert [p for _, p in found["set"]] == pytest.approx(expected.probability.tolist(), rel=1e-4)
    assert (found["alpha"], found["method"]) == (0.2, "pas") and found["nearest"]


def test_rows_are_answered_as_offline(embedded):
    run, client = embedded
    given = np.concatenate([rows("a", 3, 9), rows("d", 2, 9), *[rows("b", 150, s) for s in (7, 8)]])
    expected = predict_features(load_trained(run, device="cpu"), given)
    for body in ({"content": npy(given)}, {"json": {"embeddings": given.tolist()}}):
        reply = client.post("/predict", **body)
        assert reply.status_code == 200
        same(reply.json()["answers"], expected)
    said = client.post("/predict", content=npy(np.asfortranarray(given.astype(">f8")))).json()
    same(said["answers"], expected)
    about = client.get("/").json()
    assert about["features"] == WIDTH and about["images"] is None
    refused = client.post("/predict", content=png())
    assert refused.status_code == 422 and "takes features" in refused.json()["answers"][0]["error"]


def test_one_bad_image_fails_alone(client, caplog):
    bomb = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(bomb, "PNG", compress_level=9)
    bad = {
        "text.png": (b"no image", "none of JPEG, PNG"),
        "cut.png": (png()[:300], "cannot read image cut.png: "),
        "bomb.png": (bomb.getvalue(), "9000 x 9000 pixels, at most 10,000"),
        "ghost.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of JPEG, PNG"),
        "none.png": (b"", "none of JPEG"),
    }
    form = [("x", ("good.png", png())), *(("x", (n, blob)) for n, (blob, _) in bad.items())]
    reply = client.post("/predict", files=form)
    first, *others = reply.json()["answers"]
    assert reply.status_code == 200 and first["path"] == "good.png" and "error" not in first
    for (name, (_, told)), found in zip(bad.items(), others, strict=True):
        assert found.keys() == {"path", "error"} and found["path"] == name
        assert told in found["error"] and "0x" not in found["error"]
    assert client.post("/predict", content=b"no image").status_code == 422
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("nearest=0", "nearest: expected 1 to 100"),
        ("nearest=x", "whole number"),
        ("neares=2", "unknown ?neares=; there are nearest, set, set_method"),
        ("set=1", "share in (0, 1)"),
        ("set=nan", "share in (0, 1)"),
        ("set=0.1&set_method=no", "expected one of marginal, pas"),
    ],
)
def test_a_question_that_is_none(client, query, told):
    reply = client.post(f"/predict?{query}", content=png())
    assert reply.status_code == 400 and told in reply.json()["error"]


def lying(shape: str) -> bytes:
    """A .npy header that says more than there is."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + b"0" * 64


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"content": npy(np.ones((2, 5), np.float32))}, "expected embeddings of shape (N, 32)"),
        ({"content": npy(np.full((2, WIDTH), np.nan))}, "expected finite embeddings"),
        ({"content": npy(np.ones((0, WIDTH)))}, "expected rows, got none"),
        ({"content": npy(np.ones((2, WIDTH), int))}, "floats, got (2, 32) of int64"),
        ({"content": npy(np.array([[object()]]))}, "expected a .npy body of floats"),
        ({"content": lying("(1000000000000, 32)")}, "expected a .npy body of floats"),
        ({"content": lying("(1, __import__)")}, "expected a .npy body of floats"),
        ({"content": npy(np.ones((2, WIDTH)))[:90]}, "expected a .npy body of floats"),
        ({"json": {"embeddings": [[1.0], [1.0, 2.0]]}}, 'expected JSON {"embeddings"'),
        ({"json": {"embeddings": ["a"]}}, 'expected JSON {"embeddings"'),
        ({"json": [[1.0]]}, 'expected JSON {"embeddings"'),
        ({"content": b"[" * 100_000}, 'expected JSON {"embeddings"'),
        ({"content": b'{"embeddings": [[1%s]]}' % (b"0" * 400)}, 'expected JSON {"embeddings"'),
        ({"content": b'{"embeddings": [[1'}, 'expected JSON {"embeddings"'),
        ({"content": b""}, "expected an image or features"),
        ({"data": {"a": "b"}, "files": {}}, None),
    ],
)
def test_rows_that_are_none(embedded, body, told):
    reply = embedded[1].post("/predict", **body)
    assert reply.status_code == (422 if told is None else 400)
    if told is not None:
        assert told in reply.json()["error"]


def test_limits_of_a_request(client, embedded):
    reply = client.post("/predict", content=b"x" * 300_000)
    assert reply.status_code == 413 and "200,000 bytes" in reply.json()["error"]
    reply = client.post("/predict", content=(b"x" * 50_000 for _ in range(5)))  # in chunks
    assert reply.status_code == 413
    reply = client.post("/predict", files=[("x", ("a.png", png())) for _ in range(9)])
    assert reply.status_code == 413 and "8 images" in reply.json()["error"]
    reply = client.post("/predict", files=[("x", ("a.png", png())) for _ in range(8)])
    assert reply.status_code == 200 and len(reply.json()["answers"]) == 8
    reply = embedded[1].post("/predict", content=npy(np.ones((256 * 64 + 1, WIDTH), np.float32)))
    assert reply.status_code == 413 and "16,384 rows" in reply.json()["error"]
    for form in ("multipart/form-data", "Multipart/Form-Data; boundary=x"):
        reply = client.post("/predict", content=b"--x", headers={"content-type": form})
        assert reply.status_code == 400 and "image[0]" not in reply.text


def test_a_form_without_its_end(client):
    part = b'--B\r\nContent-Disposition: form-data; name="x"; filename="a.png"\r\n\r\n'
    parts = (part + png() + b"\r\n") * 2
    for kind, body, status in (
        ("boundary=B", parts + b"--B--\r\n", 200),
        ("boundary=B", parts, 400),
        ("boundary=B", parts[:-90], 400),
        ("charset=undefined; boundary=B", parts + b"--B--\r\n", 400),
    ):
        head = {"content-type": f"multipart/form-data; {kind}"}
        reply = client.post("/predict", content=body, headers=head)
        assert reply.status_code == status, (kind, reply.text)
        told = "charset: expected" if "charset" in kind else "the form has no end"
        assert status == 200 or told in reply.json()["error"]


def test_a_limit_of_pixels_beyond_what_is_opened():
    with pytest.raises(ValueError, match=r"limits\.pixels: expected at most 178,956,970"):
        Limits(pixels=400_000_000)


def test_addresses_that_are_none(client):
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/predict", 405),
        ("POST", "/classes", 403),
        ("DELETE", "/classes/a", 403),
    ):
        reply = client.request(method, path)
        assert reply.status_code == status and reply.json().keys() == {"error"}
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400


def test_a_model_that_fails_tells_the_log_alone(client, monkeypatch, caplog, data):
    whole = service_model.features_of

    def poisoned(trained, pixels):
        if (pixels == 255).flatten(1).all(1).any():
            raise RuntimeError("/secret/path does not fit")
        return whole(trained, pixels)

    monkeypatch.setattr(service_model, "features_of", poisoned)
    white = io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(white, "PNG")
    form = [("x", (f"{n}.png", white.getvalue() if n == 2 else png(seed=n))) for n in range(5)]
    reply = client.post("/predict", files=form)
    said = reply.json()["answers"]
    assert (
        reply.status_code == 200
        and ["error" in each for each in said] == [False] * 2 + [True] + [False] * 2
    )
    assert said[2]["error"] == "the model failed on this one"
    assert "/secret/path" in caplog.text
    assert client.post("/predict", content=white.getvalue()).status_code == 500
    monkeypatch.setattr("oltr_ext.service.app.readable", lambda: 1 / 0)
    reply = client.get("/")
    assert reply.status_code == 500 and "ZeroDivision" not in reply.text
    assert re.search(r"under (\w{8})", reply.text)[1] in caplog.text


def test_metrics_are_as_prometheus_reads_them(client):
    before = client.get("/metrics").text
    client.post("/predict", files=[("x", ("a", png())), ("x", ("b", b"none"))])
    text = client.get("/metrics").text
    line = re.compile(r'[a-z_]+(\{[a-z]+="[^"]+"(,[a-z]+="[^"]+")*\})? [-+.e\d]+')
    types = {}
    for each in text.splitlines():
        if each.startswith("# TYPE"):
            types[each.split()[2]] = each.split()[3]
        elif not each.startswith("#"):
            assert line.fullmatch(each), each
    assert types["oltr_request_seconds"] == "histogram" and types["oltr_queue_length"] == "gauge"

    def value(name, of=text):
        return float(re.search(rf"^{re.escape(name)} (.+)$", of, re.MULTILINE)[1])

    for name in ("oltr_request_seconds", "oltr_batch_images", "oltr_batch_seconds"):
        counts = [float(n) for n in re.findall(rf"{name}_bucket.* (\d+)", text)]
        assert counts == sorted(counts) and counts[-1] == value(f"{name}_count") > 0
    name = 'oltr_images_total{outcome="unreadable"}'
    assert value(name) == value(name, before) + 1
    assert value("oltr_images_in_flight") == value("oltr_queue_length") == 0
