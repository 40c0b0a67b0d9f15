"""The report: self-contained, equal to its JSON, safe with any names, whole at the edges."""

from __future__ import annotations

import base64
import io
import json
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oltr_ext.metrics import calibrate_threshold, evaluate, evaluate_answers, open_scores
from oltr_ext.report import KINDS, MethodResult, Sample, choose_samples, write_picture, write_report
from oltr_ext.report.samples import pixels, png_uri
from oltr_ext.report.style import method_style

COUNTS = np.array([60, 40, 35, 22, 12, 8, 5, 4])
NAMES = [f"class {c}" for c in range(len(COUNTS))]
EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "$x^2$",
    "a & b",
    "</text></svg><b onclick=alert(1)>",
    "' onmouseover='alert(1)",
    'id="y" url(#z) #0072b2',
]


class Page(HTMLParser):
    """Tags with attributes, ids, the text inside every <span data-json>, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: tuple[str, str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if "data-json" in values:
            self._open = (values["data-json"] or "", values["data-style"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open is not None:
            self.numbers.append((*self._open, data))
            self._open = None


def method(
    name: str,
    seed: int,
    *,
    names: list[str] = NAMES,
    open_images: bool = True,
    counts: Any = COUNTS,
) -> MethodResult:
    """A made-up method on a test set that is the same for every seed."""
    classes = len(counts)
    target = np.repeat(np.arange(classes), 10)
    if open_images:
        target = np.r_[target, np.full(30, -1)]
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(target), classes))
    logits[np.arange(len(target)), np.maximum(target, 0)] += np.where(target >= 0, 2.5, 0)
    distance = rng.uniform(1, 3, len(target)) + (target < 0)
    scores = open_scores(logits, distance)
    limits = {k: calibrate_threshold(v[target >= 0], value=0.8) for k, v in scores.items()}
    pred, score = logits.argmax(1), scores["energy"]
    samples = []
    for indices in choose_samples(pred, target, score, limits["energy"], per_kind=2).values():
        for i in indices:
            rejected = score[i] < limits["energy"]
            samples.append(
                Sample(
                    image=rng.integers(0, 256, (1, 32, 32), dtype=np.uint8),
                    true_name="stranger" if target[i] < 0 else names[target[i]],
                    is_open=bool(target[i] < 0),
                    predicted=None if rejected else names[pred[i]],
                    confidence=float(scores["max_softmax"][i]),
                    closed_prediction=names[pred[i]],
                    nearest=[(names[0], 1.25), (names[1], 2.5)],
                    recalled=[(names[2], 0.75), (names[3], 0.125)],
                    selector=np.tanh(rng.normal(size=40)),
                    reachability=float(scores["reachability"][i]),
                )
            )
    return MethodResult(
        name=name,
        summary=evaluate(logits, distance, target, counts, convention=(30, 10), thresholds=limits),
        score_name="energy",
        score=score,
        pred=pred,
        target=target,
        threshold_rule="keeps 80 % of the knowns",
        samples=samples,
    )


def written(tmp_path: Path, results: list[MethodResult], **kwargs: Any) -> tuple[str, Page, Any]:
    arguments = {"class_names": NAMES, "train_counts": COUNTS, **kwargs}
    files = write_report(tmp_path / "deep" / "report.html", results, **arguments)
    assert files.json == tmp_path / "deep" / "report.json"
    html = files.html.read_text(encoding="utf-8")
    return html, Page(html), json.loads(files.json.read_text(encoding="utf-8"), parse_constant=bad)


def bad(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


def check_numbers(page: Page, data: Any) -> int:
    """Every number of the page, read back from its text, against the JSON value it points to."""
    for pointer, style, text in page.numbers:
        value = data
        for part in pointer.split("/")[1:]:
            value = value[int(part)] if isinstance(value, list) else value[part]
        if value is None:
            assert text == "\N{EN DASH}", pointer
            continue
        shown = float(text.replace("\N{MINUS SIGN}", "-").replace(",", ""))
        scale = 100 if style in ("percent", "signed") else 1
        digits = {"percent": 0.05, "signed": 0.05, "ratio": 5e-4, "signed_ratio": 5e-4}
        tolerance = digits.get(style, 6e-4 * abs(value))
        assert abs(shown - scale * value) <= tolerance + 1e-9, (pointer, text, value)
    return len(page.numbers)


def check_self_contained(html: str, page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base"), tag
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "href", "xlink:href"):
                assert re.match(r"data:image/png;base64,|#|report\.json$", value or ""), value
            assert "url(" not in (value or "") or "url(#" in (value or ""), value
    styles = re.findall(r"<style.*?</style>", html, re.DOTALL)
    assert not any("url(" in s or "@import" in s for s in styles)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    values = [
        v or ""
        for _, a in page.tags
        for k, v in a.items()
        if k in ("href", "style", "xlink:href", "clip-path", "fill")
    ]
    pointed = {name for v in values for name in re.findall(r"(?:^|url\()#([^)]+)", v)}
    assert pointed <= set(ids)


def test_many_methods_fit_and_never_look_alike(tmp_path: Path) -> None:
    looks = {tuple(map(str, method_style(n, 15).values())) for n in range(15)}
    assert len(looks) == 15 and method_style(0, 15) == method_style(0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # matplotlib's, when a panel has no room left
        written(tmp_path, [method(f"method {n}", n) for n in range(15)])


def test_two_methods(tmp_path: Path) -> None:
    results = [method("plain", 0), method("OLTR", 1)]
    html, page, data = written(tmp_path, results, title="A title", details={"seed": "0"})
    check_self_contained(html, page)
    assert "http" not in html
    assert check_numbers(page, data) > 150
    for heading in ("A title", *KINDS.values(), "stranger", "keeps 80 % of the knowns", "class 7"):
        assert heading in page.text
    assert html.count('class="plot"') == 6
    assert all(f'aria-labelledby="{n}-desc"' in html for n in ("roc", "oscr", "tail", "classes"))
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert len(pictures) == sum(len(r.samples) for r in results) > 0
    assert all(a["alt"] for a in pictures)


def test_the_json_holds_the_methods_own_numbers(tmp_path: Path) -> None:
    results = [method("plain", 0), method("OLTR", 1)]
    _, _, data = written(tmp_path, results)
    for ours, theirs in zip(data["methods"], results, strict=True):
        assert ours["summary"] == theirs.summary
        energy = theirs.summary["scores"]["energy"]
        assert ours["headline"]["auroc"] == energy["auroc"]
        assert ours["headline"]["few"] == theirs.summary["closed"]["few"]
        point = energy["operating_points"]["calibrated"]
        assert ours["headline"]["oltr2020"] == point["oltr2020"]
        assert ours["threshold"] == point["threshold"]
        assert sum(ours["histogram"]["known"]) == pytest.approx(1)
        assert sum(ours["histogram"]["open"]) == pytest.approx(1)
        assert [s["predicted"] for s in ours["samples"]] == [s.predicted for s in theirs.samples]
    first, second = (m["headline"] for m in data["methods"])
    assert data["methods"][1]["change"]["oscr"] == pytest.approx(second["oscr"] - first["oscr"])
    low = int(second["fpr95"] < first["fpr95"])
    assert data["best"]["fpr95"] in ([low], [0, 1])


def test_tail_rows_by_hand(tmp_path: Path) -> None:
    # Class 7 (4 images, the rarest): of its 10 test images 5 right, 3 taken for class 0 (many),
    # 1 for class 6 (few), 1 rejected although it would have been right.
    result = method("one", 0)
    pred, score = np.array(result.pred), np.full(len(np.array(result.pred)), 1e3)
    rows = np.flatnonzero(np.array(result.target) == 7)
    pred[rows] = [7, 7, 7, 7, 7, 0, 0, 0, 6, 7]
    score[rows[-1]] = -1e3
    _, _, data = written(tmp_path, [replace(result, pred=pred, score=score)])
    row = data["methods"][0]["tail"][0]
    assert (row["name"], row["train_images"], row["test_images"]) == ("class 7", 4, 10)
    assert (row["right"], row["rejected"]) == (0.5, 0.1)
    assert row["taken_for"] == {"many": 0.3, "medium": 0.0, "few": 0.1}
    assert row["confusions"] == [{"name": "class 0", "times": 3}, {"name": "class 6", "times": 1}]
    assert [r["name"] for r in data["methods"][0]["tail"]] == ["class 7", "class 6", "class 5"]


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    result = method(EVIL[0], 0, names=EVIL)
    html, page, data = written(
        tmp_path, [result, replace(result, name=EVIL[5])], class_names=EVIL, title=EVIL[1],
        details={EVIL[0]: EVIL[2]},
    )  # fmt: skip
    check_self_contained(html, page)
    check_numbers(page, data)
    assert [c["name"] for c in data["classes"]] == EVIL
    for name in EVIL[:5]:
        assert name in page.text
    assert not any(tag == "b" and "onclick" in attributes for tag, attributes in page.tags)
    assert EVIL[7] in page.text  # in the tail's plot too: nothing but tags is rewritten


def test_one_method_without_samples_threshold_or_open_images(tmp_path: Path) -> None:
    result = method("alone", 0, open_images=False)
    summary = json.loads(json.dumps(result.summary))
    for score in summary["scores"].values():
        score["operating_points"] = {}
    bare = replace(result, summary=summary, samples=(), threshold_rule="")
    html, page, data = written(tmp_path, [bare])
    check_self_contained(html, page)
    assert check_numbers(page, data) > 50
    assert data["methods"][0]["headline"]["auroc"] is None
    assert data["methods"][0]["headline"]["overall"] == result.summary["closed"]["overall"]
    assert data["methods"][0]["change"] is None
    assert "no open images" in page.text
    assert html.count('class="plot"') == 3  # neither ROC, OSCR nor F


def test_empty_shot_groups_are_dashes(tmp_path: Path) -> None:
    counts = np.full(8, 100)
    result = method("rich", 0, counts=counts)
    _, page, data = written(
        tmp_path, [result, method("richer", 1, counts=counts)], train_counts=counts
    )
    check_numbers(page, data)
    assert data["methods"][1]["headline"]["few"] is data["methods"][1]["change"]["few"] is None
    assert data["methods"][0]["tail"] == []
    shown = {pointer: text for pointer, _, text in page.numbers}
    assert shown["/methods/0/headline/few"] == "\N{EN DASH}"


def test_many_classes_stay_a_small_file(tmp_path: Path) -> None:
    classes = 50_000
    counts = np.sort(np.random.default_rng(0).integers(1, 200, classes))[::-1]
    target = np.r_[np.arange(classes), np.full(50, -1)]
    pred = np.where(np.arange(len(target)) % 3 == 0, 0, target.clip(0))
    score = np.random.default_rng(1).normal(size=len(target))
    summary = evaluate_answers(pred, {"max_logit": score}, target, counts)
    result = MethodResult("wide", summary, "max_logit", score, pred, target)
    html, _, _ = written(
        tmp_path, [result], class_names=[f"c{i}" for i in range(classes)], train_counts=counts
    )
    assert len(html) < 1_000_000


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = written(tmp_path, [method("plain", 0)])[0]
    assert written(tmp_path, [method("plain", 0)])[0] == first
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["report.html", "report.json"]


def test_infinite_scores_and_constant_scores_are_drawn(tmp_path: Path) -> None:
    result = method("flat", 0)
    for score in (np.zeros(110), np.where(np.arange(110) < 3, np.inf, np.arange(110.0))):
        _, _, data = written(tmp_path, [replace(result, score=score)])
        assert sum(data["methods"][0]["histogram"]["known"]) == pytest.approx(1)


def test_choose_samples() -> None:
    # Threshold .5. Known: 0 right, 1 wrong, 2 and 3 rejected; open: 4 accepted, 5 to 8 rejected.
    pred = [0, 1, 0, 1, 0, 0, 0, 0, 0]
    target = [0, 0, 0, 1, -1, -1, -1, -1, -1]
    score = [0.9, 0.8, 0.1, 0.2, 0.5, 0.1, 0.1, 0.1, 0.1]
    chosen = choose_samples(pred, target, score, 0.5, per_kind=3)
    assert tuple(chosen) == tuple(KINDS)
    assert chosen["known_correct"].tolist() == [0]
    assert chosen["known_wrong"].tolist() == [1]
    assert chosen["known_rejected"].tolist() == [2, 3]
    assert chosen["open_accepted"].tolist() == [4]
    assert len(chosen["open_rejected"]) == 3 and set(chosen["open_rejected"]) <= {5, 6, 7, 8}
    again = choose_samples(pred, target, score, 0.5, per_kind=3)
    assert all((again[kind] == chosen[kind]).all() for kind in KINDS)
    none = choose_samples([0], [0], [1.0], 0.5)
    assert len(none["open_accepted"]) == 0
    # Two classes, one of them with a single image: two samples show both.
    both = choose_samples([0] * 50 + [1], [0] * 50 + [1], np.ones(51), 0.5, per_kind=2)
    assert both["known_correct"][1] == 50


@pytest.mark.parametrize(
    "shape", [(32, 32), (32, 32, 1), (32, 32, 3), (1, 32, 32), (3, 32, 32), (3, 500, 400), (3, 3)]
)
def test_image_layouts(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    last = image.transpose(1, 2, 0) if shape[0] in (1, 3) and len(shape) == 3 else image
    expected = last[:, :, 0] if last.ndim == 3 and last.shape[2] == 1 else last
    np.testing.assert_array_equal(pixels(image), expected)
    uri = png_uri(image)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as read:
        if max(expected.shape) <= 192:
            np.testing.assert_array_equal(np.asarray(read), expected)
        else:
            assert max(read.size) == 192


def test_sample_without_memory(tmp_path: Path) -> None:
    result = method("plain", 0)
    sample = replace(
        result.samples[0], selector=None, nearest=(), recalled=(), reachability=None,
        confidence=float("nan"),
    )  # fmt: skip
    html, page, data = written(tmp_path, [replace(result, samples=[sample])])
    assert html.count("data:image/png;base64,") == 1
    shown = data["methods"][0]["samples"][0]
    assert shown["gate"] is shown["reachability"] is shown["confidence"] is None
    assert "Gate:" not in page.text and "Nearest known classes" not in page.text


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_picture(tmp_path: Path, suffix: str) -> None:
    results = [method("plain", 0), method("OLTR & co", 1)]
    path = write_picture(tmp_path / "docs" / f"demo{suffix}", results, title="<b>$icons</b>")
    assert 5_000 < path.stat().st_size <= 200_000
    if suffix == ".png":
        with Image.open(path) as image:
            assert image.width == 1350 and 400 < image.height < 800
    else:
        assert path.read_text().count("<image") == 8
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_picture_too_large_is_drawn_smaller(tmp_path: Path, monkeypatch: Any) -> None:
    results = [method("plain", 0)]
    full = write_picture(tmp_path / "full.png", results).stat().st_size
    monkeypatch.setattr("oltr_ext.report.picture.MAX_BYTES", full - 1)
    with Image.open(write_picture(tmp_path / "less.png", results)) as image:
        assert image.width == 990
    monkeypatch.setattr("oltr_ext.report.picture.MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1000; show fewer samples"):
        write_picture(tmp_path / "none.png", results)
    assert {p.name for p in tmp_path.iterdir()} == {"full.png", "less.png"}


def test_picture_without_samples_or_open_images(tmp_path: Path) -> None:
    result = replace(method("alone", 0, open_images=False), samples=())
    assert write_picture(tmp_path / "demo.svg", [result]).stat().st_size > 5_000


def test_bad_input_is_refused(tmp_path: Path) -> None:
    result = method("plain", 0)
    cases: list[tuple[list[MethodResult], dict[str, Any], str]] = [
        ([], {}, "at least one"),
        ([result, result], {}, "names repeat"),
        ([replace(result, score_name="odin")], {}, "'odin'"),
        ([replace(result, threshold=99.0)], {}, "is not the summary's"),
        ([replace(result, pred=np.zeros(3))], {}, "of one length"),
        ([result, replace(result, name="b", target=result.pred)], {}, "same test images"),
        ([result], {"train_counts": COUNTS[:3]}, "train_counts of 8 classes"),
        ([result], {"class_names": NAMES[:3], "train_counts": COUNTS[:3]}, "of 3 classes"),
        ([replace(result, samples=[replace(result.samples[0], image=np.zeros((3, 3)))])], {},
         "uint8 image"),
    ]  # fmt: skip
    for results, change, message in cases:
        with pytest.raises(ValueError, match=message):
            written(tmp_path, results, **change)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"ending in .svg or .png"):
        write_picture(tmp_path / "demo.gif", [result])
    with pytest.raises(ValueError, match="at least one"):
        write_picture(tmp_path / "demo.svg", [])
