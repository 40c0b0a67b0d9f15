"""A run as a detector of pytorch-ood, its scores in OpenOOD's files, embeddings in FAISS's."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny import arrays

import oltr_ext
from oltr_ext.cli import main
from oltr_ext.cli.commands import _parts
from oltr_ext.data import from_faiss, read_embeddings, to_faiss, write_embeddings
from oltr_ext.metrics import open_set_metrics
from oltr_ext.serve.adapters import ood_detector, write_openood
from oltr_ext.serve.assess import assess


@pytest.fixture(scope="module")
def model(finished):
    return oltr_ext.load(finished, device="cpu")


@pytest.fixture(scope="module")
def result(model):
    return assess(model.trained, name="it")


def test_a_detector_of_pytorch_ood(model, result):
    pytest.importorskip("pytorch_ood")
    from pytorch_ood.api import Detector
    from pytorch_ood.metrics import OODMetrics

    detector = ood_detector(model)
    assert isinstance(detector, Detector) and detector.fit([]) is detector
    assert detector.device == model.trained.device
    metrics, parts = OODMetrics(), (result.splits.test, result.splits.open_test)
    found = []
    for part in parts:
        pixels, labels = part.__getitems__(np.arange(len(part)))
        found.append(detector(pixels))
        metrics.update(found[-1], labels)
    assert torch.cat(found).numpy() == pytest.approx(-result.confidence, rel=1e-4, abs=1e-6)
    ours = open_set_metrics(result.confidence, result.seen.target)
    assert float(metrics.compute()["AUROC"]) == pytest.approx(ours["auroc"], abs=1e-5)
    other = ood_detector(model.trained, "energy").to("cpu")
    features = torch.randn(3, model.trained.model.feature_dim)
    logits = model.trained.model.head(features)
    assert other.predict_features(features) == pytest.approx(-logits.logsumexp(1).double().detach())
    with pytest.raises(ValueError, match="no_such"):
        ood_detector(model, "no_such")


def test_without_pytorch_ood(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_ood.api", None)
    with pytest.raises(RuntimeError, match="pip install pytorch-ood"):
        ood_detector(model)


def test_files_of_openood(model, result, finished, tmp_path, capsys):
    told = ("--out", str(tmp_path / "judged"), "--openood", str(tmp_path / "o"))
    assert main(["eval", str(finished), *told]) == 0
    parts = {name: np.load(tmp_path / "o/scores" / f"{name}.npz") for name in ("test", "open_test")}
    assert all(sorted(part.files) == ["conf", "label", "pred"] for part in parts.values())
    assert (parts["open_test"]["label"] == -1).all() and len(parts["open_test"]["label"]) == 10
    known, strange = parts["test"], parts["open_test"]
    summary = result.summary["closed"]
    assert (known["pred"] == known["label"]).mean() == pytest.approx(summary["overall"])
    conf = np.r_[known["conf"], strange["conf"]]
    out = np.r_[known["label"], strange["label"]] == -1
    chosen = result.summary["scores"][model.trained.threshold["score"]]
    assert roc_auc_score(out, -conf) == pytest.approx(chosen["auroc"])  # open positive, as theirs
    assert write_openood(result, tmp_path / "o")[0] == tmp_path / "o/scores/test.npz"  # the same
    mine = tmp_path / "mine/scores/test.npz"
    mine.parent.mkdir(parents=True)
    mine.write_text("my own")
    with pytest.raises(FileExistsError, match="holds other scores"):
        write_openood(result, tmp_path / "mine")
    assert mine.read_text() == "my own" and len(list(mine.parent.iterdir())) == 1


@pytest.mark.parametrize("names", [("test", "other"), ("near/x", "near_x")])
def test_no_two_sets_have_one_file_of_openood(result, tmp_path, monkeypatch, names):
    sets = [*names] * (len(result.splits.open_test) // 2)
    monkeypatch.setattr(result.splits, "sets_of_open", lambda: sets)
    with pytest.raises(ValueError, match="would be of two sets"):
        write_openood(result, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_files_of_several_runs_stay_in_the_folder(finished, tmp_path, capsys):
    runs = [shutil.copytree(finished, tmp_path / name / "run") for name in "ab"]
    told = [*map(str, runs), "--out", str(tmp_path / "judged"), "--openood", str(tmp_path / "o")]
    assert main(["eval", *told]) == 0  # which calls them by their paths
    called = ["_".join(run.parts[1:])[-80:] for run in runs]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == called
    assert not any((run / "scores").exists() for run in runs)
    shutil.rmtree(tmp_path / "o")
    assert main(["eval", *told, "--name", "../x/a", "--name", "x_A"]) == 0
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["x_A_2", "x_a"]
    assert _parts(["..", "/", "C:\\run", "run"]) == ["run", "run_2", "C_run", "run_3"]


def test_embeddings_to_and_from_faiss(tmp_path):
    faiss = pytest.importorskip("faiss")
    splits = arrays()
    write_embeddings(tmp_path / "e", splits)
    kept = read_embeddings(tmp_path / "e").splits["train"]
    index = to_faiss(kept.features)
    faiss.write_index(index, str(tmp_path / "train.index"))
    back, ids = from_faiss(tmp_path / "train.index")
    assert np.array_equal(back, splits["train"][0]) and ids.tolist() == list(range(40))
    write_embeddings(tmp_path / "again", {**splits, "train": (back, splits["train"][1])})
    asked = splits["test"][0]
    gaps = ((asked[:, None] - back[None]) ** 2).sum(2)
    assert np.array_equal(index.search(asked, 1)[1][:, 0], gaps.argmin(1))

    named = to_faiss(back.astype(np.float16), np.arange(40) * 7 + 3, metric="cosine")
    unit, ids = from_faiss(named)
    assert ids.tolist() == [n * 7 + 3 for n in range(40)]
    assert np.linalg.norm(unit, axis=1) == pytest.approx(np.ones(40), abs=1e-5)
    asked = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    best = ids[(asked @ unit.T).argmax(1)]
    assert np.array_equal(named.search(asked, 1)[1][:, 0], best)

    ivf = faiss.index_factory(6, "IVF3,Flat")
    ivf.train(back)
    ivf.add(back)
    assert np.array_equal(from_faiss(ivf)[0], back)
    for call, error in (
        (lambda: to_faiss(back[0]), r"expected features \(N, D\)"),
        (lambda: to_faiss(back, [1.0]), "expected 40 integer ids"),
        (lambda: to_faiss(np.full((2, 2), np.nan)), "expected finite"),
        (lambda: to_faiss(back, metric="l1"), "l2 or cosine, got 'l1'"),
        (lambda: from_faiss(tmp_path / "e" / "manifest.json"), "from_faiss"),
    ):
        with pytest.raises(ValueError, match=error):
            call()
