"""Frozen embeddings: written whole or not at all, read as they were, trained on like images."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import weakref

import numpy as np
import pytest
import torch
import yaml
from tiny import COUNTS, arrays, config, same_embeddings, same_run, stop_after, write_data

from oltr_ext.cli import main
from oltr_ext.config.loading import ConfigError, load_config, make_config
from oltr_ext.config.methods import METHODS
from oltr_ext.data import read_embeddings, write_embeddings
from oltr_ext.engine import evaluate
from oltr_ext.engine.build import build_model
from oltr_ext.engine.evaluate import answers, collect
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import OtherRunError, train
from oltr_ext.models import OLTRModel
from oltr_ext.nn import LinearHead, heads
from oltr_ext.serve.assess import assess, report
from oltr_ext.serve.embed import embed
from oltr_ext.serve.predict import predict_embeddings, predict_images
from oltr_ext.serve.trained import load_trained

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
    shutil.rmtree(folder)
    write_embeddings(folder, arrays(), source={"made": "otherwise"})
    with pytest.raises(OtherRunError, match="holds a run on other training data"):
        train(run_on, tmp_path / "run")


def test_interrupted_it_goes_on_and_never_reads_as_whole(run, tmp_path, monkeypatch):
    monkeypatch.setattr("oltr_ext.engine.features.BATCH", 7)
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
    same_embeddings(whole, tmp_path / "parts")
    calls.clear()
    embed(run / "images", tmp_path / "parts", device="cpu")  # all there
    assert not calls


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_own_arrays_are_trained_on(tmp_path, dtype, monkeypatch):
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
    with monkeypatch.context() as patch:  # with many classes, few rows at a time
        patch.setattr(heads, "LOGITS", 5 * 4)
        pieces = predict_embeddings(trained, rows, name="mine")
        assert [(p.path, p.closed) for p in pieces] == [(p.path, p.closed) for p in found]
        few = assess(trained, name="own").summary
    assert few["closed"] == result.summary["closed"] and few["samples"] == result.summary["samples"]
    np.save(tmp_path / "rows.npy", rows)
    again = predict_images(trained, [tmp_path / "rows.npy"])
    assert [p.confidence for p in again] == [p.confidence for p in found]
    assert again[1].path == f"{tmp_path / 'rows.npy'}[1]"
    (tmp_path / "bad.npy").write_bytes(b"no array")
    (tmp_path / "empty.npy").touch()
    told = []
    files = [tmp_path / f"{name}.npy" for name in ("bad", "empty", "rows")]
    assert len(predict_images(trained, files, on_error=told.append)) == len(rows)
    assert len(told) == 2 and all("cannot read" in str(each) for each in told)
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
    with pytest.raises(ConfigError, match="only that, is embedding, got small_cnn for embeddings"):
        make_config({**values, "model": {"backbone": "small_cnn"}})
    with pytest.raises(ConfigError, match="only that, is embedding"):
        load_config("icons", ["model.backbone=embedding"])


@pytest.mark.parametrize("name", ["0012", "2026-11-30", "a b: 'ç'", "null"])
def test_printed_commands_name_any_folder(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = write_embeddings(name, arrays())
    monkeypatch.setattr("oltr_ext.serve.embed.embed", lambda *_, **__: manifest)
    assert main(["embed", "icons", "--out", name]) == 0
    printed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    hinted = shlex.split(str(caught.value).rpartition(": embeddings ")[2].partition(";")[0])
    for words in (printed, hinted):
        key = words[words.index("--set") + 1]
        assert str(load_config("embeddings", [key]).data.root) == name


def test_the_command_embeds_trains_and_predicts(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(run / "images"), "--out", "e", "--dtype", "float16"]) == 0
    said = capsys.readouterr().out
    lines = [line.split(maxsplit=1) for line in said.splitlines()]
    assert [name for name, _ in lines] == ["embeddings", "train"] and lines[0][1] == "e"
    printed = [*shlex.split(lines[1][1])[1:], "--out", "printed", "--set", "epochs=2"]
    assert main(printed) == 0  # of 30 images, whole batches
    capsys.readouterr()
    before = (tmp_path / "e" / "manifest.json").stat().st_mtime_ns
    easier = ["--set", "data.workers=1", "--set", "data.max_bad_images=1"]  # the same features
    assert main(["embed", str(run / "images"), "--out", "e", "--dtype", "float16", *easier]) == 0
    assert (tmp_path / "e" / "manifest.json").stat().st_mtime_ns == before
    capsys.readouterr()
    quick = ["--set", "stage1.epochs=1", "--set", "stage2.epochs=1", "--set", "device=cpu"]
    quick += ["--set", "stage1.batch_size=8", "--set", "stage2.batch_size=8"]
    assert (
        main(["train", "embeddings", "--method", "oltr-plus", "--set", "data.root=e", *quick]) == 0
    )
    assert main(["eval", "runs/embeddings_oltr-plus"]) == 0
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "runs/embeddings_oltr-plus")
        capsys.readouterr()
        assert main(["eval", ".", "--set", "data.root=../../e"]) == 0
        assert "\nembeddings_oltr-plus " in capsys.readouterr().out
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
