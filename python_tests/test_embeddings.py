"""Frozen embeddings: written whole or not at all, read as they were, trained on like images."""

from __future__ import annotations

import csv
import json
import pickle
import weakref

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import COUNTS, config, same_run, stop_after, write_data

from oltr_ext.cli import main
from oltr_ext.data import FeatureStream, read_embeddings, write_embeddings
from oltr_ext.engine import evaluate
from oltr_ext.engine.assess import assess, report
from oltr_ext.engine.build import build_model
from oltr_ext.engine.config import ConfigError, load_config, make_config
from oltr_ext.engine.embed import embed
from oltr_ext.engine.evaluate import answers, collect
from oltr_ext.engine.methods import METHODS
from oltr_ext.engine.predict import load_trained, predict_embeddings, predict_images
from oltr_ext.engine.splits import load_splits, make_loader
from oltr_ext.engine.train import OtherRunError, train
from oltr_ext.models import OLTRModel
from oltr_ext.nn import LinearHead

CPU = torch.device("cpu")
SPLITS = ("train", "val", "test", "open_val", "open_test")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Images, a model trained on them, and what its backbone and fc make of them."""
    folder = tmp_path_factory.mktemp("embeddings")
    write_data(folder)
    train(make_config(config(folder)), folder / "images")
    embed(folder / "images", folder / "embedded", device="cpu")
    return folder


def on_embeddings(root, **changes):
    """The tiny configuration on embeddings in place of images."""
    values = config(root)
    del values["model"]
    data = {"kind": "embeddings", "root": str(root), "shots": [8, 4]}
    stage2 = {**values["stage2"], "fc": None, "attention": False}
    return {**values, "data": data, "stage2": stage2, **changes}


def arrays(classes=4, width=6, dtype=np.float32):
    """Features and labels of every split, as a user has them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes + 1, width)) * 3

    def part(rows, low=0):
        labels = np.arange(rows) % classes if low == 0 else np.full(rows, classes)
        return (centres[labels] + rng.normal(size=(rows, width))).astype(dtype), labels

    return {
        "train": part(40),
        "val": part(16),
        "test": part(24),
        "open_val": (part(8, 1)[0], None),
        "open_test": part(10, 1),
    }


def test_embeddings_answer_as_their_images_do(run):
    trained = load_trained(run / "images", device="cpu")
    images = load_splits(trained.config.data)
    found = read_embeddings(run / "embedded")
    assert found.class_names == trained.class_names
    assert found.test_ids == images.test.paths + images.open_test.paths
    for name in SPLITS:
        pictures = images.plain if name == "train" else getattr(images, name)
        rows = found.splits[name]
        features, target = rows.__getitems__(np.arange(len(rows)))
        assert np.array_equal(target, pictures.labels)
        want = collect(trained.model, pictures, CPU)
        seen = answers(trained.model.head, features[:, :, 0, 0], target)
        assert np.array_equal(seen.pred, want.pred)
        for score, values in want.scores.items():
            np.testing.assert_array_equal(seen.scores[score], values, err_msg=f"{name} {score}")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_embeddings_and_predicts_images(run, name, tmp_path):
    values = load_config("icons", method=name).model_dump(mode="json")
    values = {**values, **{k: on_embeddings(run / "embedded")[k] for k in ("data", "device")}}
    del values["model"]
    for stage in (values["stage1"], values["stage2"]):
        if stage is not None:
            stage.update(epochs=min(stage["epochs"], 1), batch_size=10)
    if name == "fslwf":
        values["stage2"]["base_shots"] = 5
    train(make_config(values), tmp_path)
    trained = load_trained(tmp_path, device="cpu")
    result = assess(trained, name=name)
    paths = [run / result.splits.image_id(i) for i in range(len(result.seen.pred))]
    said = predict_images(trained, paths, batch_size=11)
    names = trained.class_names
    assert [a.closed for a in said] == [names[c] for c in result.seen.pred]
    assert [a.label is None for a in said] == result.rejected.tolist()


def test_a_run_on_embeddings_resumes_to_the_same_bits(run, tmp_path, monkeypatch):
    settings = make_config(on_embeddings(run / "embedded"))
    train(settings, tmp_path / "whole")
    with monkeypatch.context() as inner:
        stop_after(inner, row=5)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "parts")
    train(settings, tmp_path / "parts")
    same_run(tmp_path / "whole", tmp_path / "parts")
    rows = list(csv.DictReader((tmp_path / "whole" / "log.csv").open()))
    assert float(rows[-1]["val_overall"]) > 0.4 and rows[-1]["lr_feature"] == ""


def test_a_report_names_rows_where_there_are_no_pictures(run, tmp_path):
    train(make_config(on_embeddings(run / "embedded")), tmp_path / "run")
    result = assess(load_trained(tmp_path / "run", device="cpu"), name="x")
    files = report([result], tmp_path / "report.html", picture=tmp_path / "picture.png")
    page = files.html.read_text()
    samples = json.loads(files.json.read_text())["methods"][0]["samples"]
    assert samples and "<img" not in page
    for sample in samples:
        assert sample["image_id"] in page
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_other_embeddings_are_another_run(run, tmp_path):
    folder = tmp_path / "own"
    write_embeddings(folder, arrays(), source={"made": "by hand"})
    run_on = make_config(on_embeddings(folder))
    train(run_on, tmp_path / "run")
    (folder / "manifest.json").unlink()
    write_embeddings(folder, arrays(), source={"made": "otherwise"})
    with pytest.raises(OtherRunError, match="holds a run on other training data"):
        train(run_on, tmp_path / "run")


def test_interrupted_it_goes_on_and_never_reads_as_whole(run, tmp_path, monkeypatch):
    monkeypatch.setattr("oltr_ext.engine.embed.BATCH", 7)
    monkeypatch.setattr(evaluate, "BATCH", 7)
    whole = embed(run / "images", tmp_path / "whole", device="cpu").parent
    features, calls = OLTRModel.features, []

    def counted(self, images):
        calls.append(len(images))
        if len(calls) in stops:
            raise KeyboardInterrupt
        return features(self, images)

    monkeypatch.setattr(OLTRModel, "features", counted)
    stops = [3, 6, 9, 12]
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            embed(run / "images", tmp_path / "parts", device="cpu")
        with pytest.raises(ValueError, match="parts is not finished: run what writes it again"):
            read_embeddings(tmp_path / "parts")
    embed(run / "images", tmp_path / "parts", device="cpu")
    assert sum(calls) - sum(calls[n - 1] for n in stops) == sum(COUNTS) + 16 + 24 + 8 + 10
    same_files(whole, tmp_path / "parts")
    calls.clear()
    embed(run / "images", tmp_path / "parts", device="cpu")  # all there
    assert not calls


def same_files(a, b):
    names = sorted(p.name for p in a.iterdir())
    assert names == sorted(p.name for p in b.iterdir()) and len(names) == 11
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 40 * 24 + 128), batch=st.integers(1, 9))
def test_a_kill_that_leaves_any_number_of_bytes_costs_a_batch(tmp_path_factory, cut, batch):
    folder, parts = tmp_path_factory.mktemp("kill"), arrays()
    made = []

    def start(row):
        for n in range(row, 40, batch):
            made.append(n)
            yield parts["train"][0][n : n + batch]

    source = {"model": "a"}
    streamed = {**parts, "train": (FeatureStream((40, 6), start, batch), parts["train"][1])}
    write_embeddings(folder / "a", streamed, source=source)
    whole = (folder / "a" / "train_features.npy").read_bytes()
    write_embeddings(folder / "b", streamed, source=source)
    (folder / "b" / "manifest.json").rename(folder / "b" / ".manifest.json.partial")
    (folder / "b" / "train_features.npy").write_bytes(whole[:cut])
    (folder / "b" / "open_test_features.npy").unlink()
    made.clear()
    write_embeddings(folder / "b", streamed, source=source)
    same_files(folder / "a", folder / "b")
    left = max(cut - 128, 0) // 24  # whole rows behind a header of 128 bytes
    assert (made[0] if made else 40) == (left if left == 40 else left - left % batch)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_own_arrays_are_trained_on(tmp_path, dtype):
    parts = arrays()
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float64, (40, 6))
    big[:] = parts["train"][0]
    parts["train"] = (big, parts["train"][1])
    parts["val"] = tuple(torch.from_numpy(a) for a in parts["val"])
    manifest = write_embeddings(tmp_path / "own", parts, list("abcd"), dtype=dtype)
    stored = np.load(tmp_path / "own" / "test_features.npy", mmap_mode="r")
    assert stored.dtype == dtype and manifest.name == "manifest.json"
    np.testing.assert_array_equal(stored, parts["test"][0].astype(dtype))
    path = train(make_config(on_embeddings(tmp_path / "own")), tmp_path / "run")
    trained = load_trained(path, device="cpu")
    result = assess(trained, name="own")
    assert result.summary["closed"]["overall"] > 0.9
    assert result.summary["samples"] == {"known": 24, "open": 10}
    assert result.splits.image_id(23) == "test row 23"
    assert result.splits.image_id(24) == "open_test row 0" and result.true_name(24) == "open"
    with pytest.raises(ValueError, match="trained on embeddings that do not say what made them"):
        predict_images(trained, ["x.png"])
    rows = parts["test"][0]
    found = predict_embeddings(trained, rows, name="mine")
    features = torch.from_numpy(rows).float()[:, :, None, None]
    with torch.no_grad():
        closed = trained.model(features).argmax(1)
    assert [p.closed for p in found] == ["abcd"[c] for c in closed] and found[3].path == "mine[3]"
    np.save(tmp_path / "rows.npy", rows)
    again = predict_images(trained, [tmp_path / "rows.npy"])
    assert [p.confidence for p in again] == [p.confidence for p in found]
    assert again[1].path == f"{tmp_path / 'rows.npy'}[1]"
    (tmp_path / "bad.npy").write_bytes(b"no array")
    told = []
    both = [tmp_path / "bad.npy", tmp_path / "rows.npy"]
    assert len(predict_images(trained, both, on_error=told.append)) == len(rows)
    assert "cannot read" in str(told[0])
    for bad, message in (
        (rows[:, :5], r"shape \(N, 6\), floats, got \(\d+, 5\)"),
        (rows * np.nan, "finite embeddings"),
        (rows.astype(int), "floats, got .* of int64"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_embeddings(trained, bad)
    # what is there is not overwritten
    with pytest.raises(ValueError, match="own holds other embeddings; choose another folder"):
        write_embeddings(tmp_path / "own", arrays())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val": None}, "expected splits train, val, test and perhaps .*, got train, test, open"),
        ({"extra": (np.ones((2, 6)), np.zeros(2))}, "expected splits train, val, test"),
        ({"test": (np.ones((2, 5)), np.zeros(2, int))}, r"one width, got .*'test': 5"),
        ({"test": (np.ones(6), np.zeros(6, int))}, r"test features \(N, D\), got shape \(6,\)"),
        ({"test": (np.ones((2, 6)), np.zeros(3, int))}, "expected 2 integer labels of test, got"),
        ({"test": (np.ones((2, 6)), np.zeros(2))}, "expected 2 integer labels of test, got float"),
        ({"test": (np.ones((2, 6)), np.array([0, 4]))}, "label 4 of test, row 1, is out of range"),
        ({"train": (np.ones((2, 6)), np.array([-1, 3]))}, "label -1 of train, row 0, .* 0 to 3"),
        ({"val": (np.ones((2, 6)), np.array([-1, -1]))}, "val holds no image of a known class"),
        ({"val": (np.full((2, 6), np.nan), np.array([0, 1]))}, "val_features.npy: row 0 is not"),
    ],
)
def test_wrong_arrays_are_told_and_leave_nothing_whole(tmp_path, change, message):
    parts = {k: v for k, v in {**arrays(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        write_embeddings(tmp_path / "own", parts)
    with pytest.raises((ValueError, FileNotFoundError), match=r"is not finished|no embeddings in"):
        read_embeddings(tmp_path / "own")


def test_what_does_not_fit_is_told(tmp_path):
    parts = arrays()
    parts["train"][0][37, 2] = 1e6
    with pytest.raises(ValueError, match=r"train_features\.npy: row 37 is not finite as float16"):
        write_embeddings(tmp_path, parts, dtype="float16")
    write_embeddings(tmp_path, parts)  # nobody can tell whose the rest is: begun again
    with pytest.raises(ValueError, match="expected 34 test_ids, got 1"):
        write_embeddings(tmp_path / "b", parts, test_ids=["a"])
    with pytest.raises(ValueError, match="expected dtype float32 or float16, got 'float64'"):
        write_embeddings(tmp_path / "b", parts, dtype="float64")
    short = {**parts, "test": (FeatureStream((24, 6), lambda row: [np.ones((3, 6))]), [0] * 24)}
    with pytest.raises(ValueError, match=r"test_features.npy: expected 24 rows, the stream gave 3"):
        write_embeddings(tmp_path / "c", short)
    short["test"] = (FeatureStream((24, 6), lambda row: [np.ones((3, 5))]), [0] * 24)
    with pytest.raises(ValueError, match=r"expected features \(B, 6\), got shape \(3, 5\)"):
        write_embeddings(tmp_path / "d", short)
    write_embeddings(tmp_path / "e", parts, source={"n": 1})
    (tmp_path / "e" / "manifest.json").rename(tmp_path / "e" / ".manifest.json.partial")
    with pytest.raises(ValueError, match="e holds the unfinished writing of other embeddings"):
        write_embeddings(tmp_path / "e", parts, source={"n": 2})


def test_damage_is_told_when_it_is_read(tmp_path):
    def fresh(name):
        return write_embeddings(tmp_path / name, arrays()).parent

    with pytest.raises(FileNotFoundError, match=r"no embeddings in .*none: it has no manifest"):
        read_embeddings(tmp_path / "none")
    folder = fresh("cut")
    file = folder / "val_features.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"val_features.npy is truncated or damaged"):
        read_embeddings(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*val_features.npy"):
        read_embeddings(folder)
    folder = fresh("shape")
    np.save(folder / "test_features.npy", np.ones((24, 7), np.float32))
    with pytest.raises(ValueError, match=r"says float32 \(24, 6\), the file holds .*\(24, 7\)"):
        read_embeddings(folder)
    folder = fresh("labels")
    np.save(folder / "train_labels.npy", np.zeros(40, np.int64))
    with pytest.raises(ValueError, match=r"train_labels.npy is not what manifest.json describes"):
        read_embeddings(folder)
    folder = fresh("manifest")
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, message in (
        ({"class_names": ["a"]}, "label 1 of train, row 1, is out of range: there are 1 classes"),
        ({"width": 0}, "manifest.json is no manifest of embeddings: width: "),
        ({"format": 2}, "manifest.json is no manifest of embeddings: format: "),
        ({"splits": {}}, "expected a split train"),
    ):
        (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match=message):
            read_embeddings(folder)
    # a number that is none is seen when its row is used, and no sooner
    folder = fresh("nan")
    file = np.lib.format.open_memmap(folder / "train_features.npy", "r+")
    file[7, 3] = np.inf
    file.flush()
    rows = read_embeddings(folder).splits["train"]
    rows.__getitems__(np.array([6, 8]))
    with pytest.raises(ValueError, match=r"train_features.npy: row 7 is not finite"):
        rows.__getitems__(np.array([[0, 6], [1, 7]]))


def test_rows_travel_to_loader_processes_as_a_path(tmp_path):
    write_embeddings(tmp_path, arrays())
    rows = read_embeddings(tmp_path).splits["train"]
    assert len(pickle.dumps(rows)) < 2000
    keys = [np.array([[0, 3], [1, 39]]), np.array([[2, 0]])]
    got = list(make_loader(rows, keys, 1))
    for (features, labels), key in zip(got, keys, strict=True):
        want = rows.__getitems__(key)
        assert torch.equal(features, want[0]) and torch.equal(labels, want[1])
        assert features.shape == (len(key), 6, 1, 1) and features.dtype == torch.float32
    assert rows[3][0].shape == (6, 1, 1) and rows[3][1] == 3


def test_the_logits_of_a_batch_are_gone_before_the_next(tmp_path, monkeypatch):
    """N x C never exists, nor any two batches of it."""
    write_embeddings(tmp_path, arrays())
    monkeypatch.setattr(evaluate, "BATCH", 8)
    alive, most = [], []
    outputs = LinearHead.outputs

    def watched(self, features):
        out = outputs(self, features)
        alive.append(weakref.ref(out.logits))
        most.append(sum(ref() is not None for ref in alive))
        return out

    monkeypatch.setattr(LinearHead, "outputs", watched)
    run = make_config(on_embeddings(tmp_path, stage2=None))
    splits = load_splits(run.data)
    seen = collect(build_model(run, 1, splits), splits.train, CPU)
    assert len(seen.pred) == 40 and len(most) == 5 and max(most) == 1


def test_predict_refuses_other_weights_than_the_embeddings(run, tmp_path):
    embed(run / "images", tmp_path / "embedded", device="cpu")
    train(make_config(on_embeddings(tmp_path / "embedded", stage2=None)), tmp_path / "run")
    trained = load_trained(tmp_path / "run", device="cpu")
    del trained.source["config"]["log_every"]  # a key that came later stands for its default
    assert predict_images(trained, [run / "test_0_0.png"])
    trained.source["weights_sha256"] = "0"
    with pytest.raises(ValueError, match=r"images/model.safetensors holds other weights than"):
        predict_images(trained, [run / "test_0_0.png"])


def test_backbone_and_data_go_together(run):
    values = on_embeddings(run / "embedded")
    assert make_config(values).model.backbone == "embedding"
    assert make_config(make_config(values).model_dump(mode="json")) == make_config(values)
    with pytest.raises(ConfigError, match=r"model: .*only that, is embedding, got .*small_cnn"):
        make_config({**values, "model": {"backbone": "small_cnn"}})
    with pytest.raises(ConfigError, match="only that, is embedding"):
        load_config("icons", ["model.backbone=embedding"])


def test_the_command_embeds_trains_and_predicts(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(run / "images"), "--out", "e", "--dtype", "float16"]) == 0
    assert capsys.readouterr().out == "embeddings  e\n"
    quick = ["--set", "stage1.epochs=1", "--set", "stage2.epochs=1", "--set", "device=cpu"]
    quick += ["--set", "stage1.batch_size=8", "--set", "stage2.batch_size=8"]
    assert (
        main(["train", "embeddings", "--method", "oltr-plus", "--set", "data.root=e", *quick]) == 0
    )
    assert main(["eval", "runs/embeddings_oltr-plus"]) == 0
    assert main(["predict", "runs/embeddings_oltr-plus", str(run / "test_0_0.png")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(str(run / "test_0_0.png"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config(run)))
    for words, message in (
        (["embed", "tiny.yaml", "--out", "x"], "model.weights: small_cnn has learned nothing to"),
        (["embed", "embeddings", "--out", "x"], "embeddings holds embeddings already"),
        (["embed", str(run / "images"), "--out", "e"], "e holds other embeddings"),
        (["train", "embeddings", "--set", "data.root=none"], "no embeddings in none: it has"),
    ):
        assert main(words) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"oltr: {message}") and told.count("\n") == 1, told
