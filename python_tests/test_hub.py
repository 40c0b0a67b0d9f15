"""A trained model as a folder for the Hugging Face Hub, and by its name there; all without it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets import drawn, saved, tiny_clip
from strangers import rows, train_on_rows
from test_backbones_whole import values

import oltr_ext
from oltr_ext.cli import main
from oltr_ext.config.loading import make_config
from oltr_ext.engine import checkpoint
from oltr_ext.engine.train import train
from oltr_ext.serve.enroll import ChangedError
from oltr_ext.serve.model import Model

hub = pytest.importorskip("huggingface_hub")
COMMIT = "0" * 40


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "of mine" / "run"))


def cached(folder: Path, cache: Path, name: str) -> None:
    """As huggingface_hub keeps what it has fetched."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)


def same(one: Model, other: Model, images: list[Path]) -> None:
    answers, others = one.predict(images), other.predict(images)
    assert answers.label.tolist() == others.label.tolist()
    assert answers.confidence.tolist() == others.confidence.tolist()


def test_what_is_saved_is_loaded_elsewhere(run, data, tmp_path):
    model = oltr_ext.load(run, device="cpu")
    strangers = [data / f"open_test_4_{n}.png" for n in range(4)]
    model.enroll(strangers, "fifth")  # in memory alone
    folder = model.save_pretrained(tmp_path / "new" / "mine")
    assert sorted(f.name for f in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    images = [*sorted(data.glob("test_*.png"))[::4], *data.glob("open_test_*.png")]
    back = oltr_ext.load(folder, device="cpu")
    assert back.class_names[-1] == "fifth" and back.classes == model.classes
    same(model, back, images)
    assert np.array_equal(
        model.predict_set(images, 0.1).indptr, back.predict_set(images, 0.1).indptr
    )
    about = json.loads((folder / "config.json").read_text())
    assert about["library_name"] == "oltr_ext" and about["id2label"]["4"] == "fifth"
    assert about["threshold"]["value"] == back.trained.threshold["value"]
    assert "fifth" not in oltr_ext.load(run).class_names


def test_a_run_is_not_written_over(run):
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="run is the folder of a run, whose model would be"):
        oltr_ext.load(run, device="cpu").save_pretrained(run)
    assert (run / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_a_file_of_another_s_is_not_written_over(run, tmp_path, name):
    model = oltr_ext.load(run, device="cpu")
    (tmp_path / name).write_text('{"library_name": "timm"}')
    with pytest.raises(FileExistsError, match=f"{name} is there and not of a folder that this"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / name).read_text() == '{"library_name": "timm"}'
    assert len([file for file in tmp_path.iterdir() if file.is_file()]) == 1
    (tmp_path / name).rename(tmp_path / "notes.txt")
    for _ in range(2):  # its own it may
        model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["library_name"] == "oltr_ext"
    names = {file.name for file in tmp_path.iterdir() if file.is_file()}
    assert names == {"README.md", "config.json", "model.safetensors", "notes.txt"}


def test_what_a_kill_leaves_is_written_again(run, tmp_path, monkeypatch):
    model, replace = oltr_ext.load(run, device="cpu"), os.replace

    def once(source, target):
        assert not any(file.name[0] != "." for file in target.parent.iterdir())
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", once)
        with pytest.raises(AssertionError):
            model.save_pretrained(tmp_path / "saved")
    assert len(list((tmp_path / "saved").glob("[!.]*"))) == 1
    assert len(list(model.save_pretrained(tmp_path / "saved").iterdir())) == 3


def test_no_folder_of_this_machine_is_told(run, data, tmp_path):
    folder = oltr_ext.load(run, device="cpu").save_pretrained(tmp_path / "mine")
    for file in folder.iterdir():
        assert str(data).encode() not in file.read_bytes()
        assert str(tmp_path).encode() not in file.read_bytes()
    held = checkpoint.load(folder / "model.safetensors")[1]["config"]["data"]
    assert (held["root"], held["train"]) == (data.name, "train.txt")
    moved = [f"data.{part}={data / f'{part}.txt'}" for part in ("train", "val", "test")]
    strangers = [f"data.{part}={data / f'{part}.txt'}" for part in ("open_val", "open_test")]
    words = [w for key in (*moved, *strangers, f"data.root={data}") for w in ("--set", key)]
    assert main(["eval", str(folder), "--device", "cpu", "--json", *words]) == 0


@pytest.mark.parametrize("how", ["nothing", "bias_and_norms", "lora"])
def test_a_tuned_model_is_saved_whole(how, data, tmp_path):
    weights = tmp_path / "of mine" / "net.pth"
    weights.parent.mkdir()
    saved(drawn("test_resnet"), weights)
    net = {"backbone": "timm:test_resnet", "weights": str(weights), "tune": how}
    given = {**values(data, net), "stage2": None}
    model = oltr_ext.load(train(make_config(given), tmp_path / "run"), device="cpu")
    model.enroll([data / f"open_test_4_{n}.png" for n in range(4)], "fifth")
    folder = model.save_pretrained(tmp_path / "saved")
    weights.unlink()
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in folder.iterdir())
    back = oltr_ext.load(folder, device="cpu")
    same(model, back, sorted(data.glob("test_*.png"))[::6])
    back.remove("fifth")
    back.save()
    again = oltr_ext.load(folder, device="cpu").save_pretrained(tmp_path / "again")
    same(back, oltr_ext.load(again, device="cpu"), sorted(data.glob("test_*.png"))[::6])


def test_what_a_folder_here_describes_is_refused(data, tmp_path):
    clip, _ = tiny_clip(tmp_path / "clip")
    given = values(data, {"backbone": f"open_clip:{clip}", "weights": "DEFAULT"})
    run = train(make_config({**given, "stage2": None}), tmp_path / "run")
    with pytest.raises(ValueError, match=f"has the backbone open_clip:{clip}, which nobody can"):
        oltr_ext.load(run, device="cpu").save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_card_has_the_figures_of_the_report(run, data, tmp_path, capsys):
    model = oltr_ext.load(run, device="cpu")
    text = (model.save_pretrained(tmp_path / "a") / "README.md").read_text()
    assert "has not been judged" in text and "model-index" not in text
    assert main(["eval", str(run), "--device", "cpu"]) == 0
    capsys.readouterr()
    extra = {"license": "mit", "datasets": ["me/stripes"]}
    file = model.save_pretrained(tmp_path / "b", name="me/stripes", card=extra) / "README.md"
    report = json.loads((run / "report.json").read_text())
    headline = report["methods"][0]["headline"]
    card = hub.ModelCard.load(file)
    assert card.data.license == "mit" and card.data.library_name == "oltr_ext"
    assert {each.metric_name: each.metric_value for each in card.data.eval_results} == {
        **{f"accuracy, {key}": headline[key] for key in ("overall", "many", "medium", "few")},
        "AUROC": headline["auroc"],
        "FPR at 95 % of known": headline["fpr95"],
        "OSCR": headline["oscr"],
    }
    assert f"| accuracy, overall | {100 * headline['overall']:.1f} |" in card.text
    assert f"| AUROC | {100 * headline['auroc']:.1f} |" in card.text
    assert "On 24 test images" in card.text and "and 10 of none" in card.text
    assert 'oltr_ext.load("me/stripes")' in card.text and "| classes | 4 |" in card.text
    model.enroll([data / "open_test_4_0.png"], "fifth")  # the report is of another model now
    text = (model.save_pretrained(tmp_path / "c") / "README.md").read_text()
    assert "| classes | 5, 1 enrolled |" in text and "has not been judged" in text


def test_the_card_has_no_figures_of_another_model(tmp_path, capsys):
    run = train_on_rows(tmp_path)

    def judged(model, name):
        text = (model.save_pretrained(tmp_path / name) / "README.md").read_text()
        return "has not been judged" not in text

    model = oltr_ext.load(run, device="cpu")
    model.enroll(rows("d", 5), "d")
    model.save()
    assert main(["eval", str(run), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert judged(model, "a") and judged(oltr_ext.load(run, device="cpu"), "b")
    model.rename("a", "A")  # whose figures are what they were
    assert judged(model, "c")
    model.remove(["b"])
    assert not judged(model, "d")
    model.undo()
    assert judged(model, "e")
    model.remove(["d"])
    model.enroll(rows("e", 5), "d")  # as many classes, of the same names
    assert not judged(model, "f")
    file = run / "report.json"
    old = json.loads(file.read_text())
    del old["methods"][0]["summary"]["model"]  # from before it was written down
    file.write_text(json.dumps(old))
    assert not judged(oltr_ext.load(run, device="cpu"), "g")


def test_a_run_that_was_trained_anew_is_not_what_is_in_memory(run, tmp_path):
    model = oltr_ext.load(run, device="cpu")
    tensors, header = checkpoint.load(run / "model.safetensors")
    header["state"]["total"] += 1
    checkpoint.save(run / "model.safetensors", tensors, header)
    with pytest.raises(ChangedError, match="was trained anew since it was read"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_by_its_name_on_the_hub(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    model = oltr_ext.load(run, device="cpu")
    cached(model.save_pretrained("saved"), tmp_path / "cache", "me/stripes")
    images = sorted(data.glob("test_*.png"))[::6]
    same(model, Model.from_pretrained("me/stripes", cache_dir=tmp_path / "cache"), images)
    with pytest.raises(ValueError, match="no run or model me/stripes here, and none"):
        oltr_ext.load("me/stripes")  # of another cache
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="no run or model me/stripes here, and none"):
        Model.from_pretrained("me/stripes", revision="other", cache_dir=tmp_path / "cache")
    (tmp_path / "me").mkdir()  # a folder of that name is meant first
    with pytest.raises(ValueError, match="no run me/stripes"):
        Model.from_pretrained("me/stripes", cache_dir=tmp_path / "cache")


def test_the_hubs_copy_stays_what_its_hash_says(run, data, tmp_path):
    saved_to = oltr_ext.load(run, device="cpu").save_pretrained(tmp_path / "saved")
    cached(saved_to, tmp_path / "cache", "me/it")
    model = Model.from_pretrained("me/it", cache_dir=tmp_path / "cache", local_files_only=True)
    before = model.trained.path.read_bytes()
    model.enroll([data / f"open_test_4_{n}.png" for n in range(4)], "fifth")
    with pytest.raises(ValueError, match=r"is the Hub's own, .*: save_pretrained to a folder"):
        model.save()
    assert model.trained.path.read_bytes() == before
    own = oltr_ext.load(model.save_pretrained(tmp_path / "own"), device="cpu")
    own.rename("fifth", "5th")
    assert oltr_ext.load(own.save()).class_names[-1] == "5th"


def test_it_is_pushed_whole(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    asked = []

    class Api:
        def __init__(self, token):
            asked.append(token)

        def create_repo(self, repo_id, private, exist_ok):
            asked.append((repo_id, private, exist_ok))
            return SimpleNamespace(repo_id=repo_id)

        def file_exists(self, repo_id, filename, revision):
            return any((tmp_path / "cache").rglob(filename))

        def upload_folder(self, repo_id, folder_path, revision, commit_message):
            asked.append((revision, commit_message))
            if commit_message != "first":
                return SimpleNamespace(commit_url=sorted(f.name for f in folder_path.iterdir()))
            cached(Path(folder_path), tmp_path / "cache", repo_id)
            return SimpleNamespace(commit_url=f"https://example/{repo_id}")

    monkeypatch.setattr(hub, "HfApi", Api)
    model = oltr_ext.load(run, device="cpu")
    where = model.push_to_hub("me/it", private=True, token="t", commit_message="first")
    assert where == "https://example/me/it"
    assert asked == ["t", ("me/it", True, True), (None, "first")]
    back = Model.from_pretrained("me/it", cache_dir=tmp_path / "cache", device="cpu")
    same(model, back, sorted(data.glob("test_*.png"))[::6])
    both = ["config.json", "model.safetensors"]
    assert model.push_to_hub("me/it") == str(both)  # the card that is there stays
    assert model.push_to_hub("me/it", card={"license": "mit"}) == str(["README.md", *both])


def test_a_model_of_features(tmp_path):
    run = train_on_rows(tmp_path, "plain")
    model = oltr_ext.load(run, device="cpu")
    folder = model.save_pretrained(tmp_path / "saved")
    given = np.concatenate([rows("a", 4, 8), rows("d", 4, 8)])
    found, back = model.predict(given), oltr_ext.load(folder, device="cpu").predict(given)
    assert found.label.tolist() == back.label.tolist()
    assert "features of 32 numbers" in (folder / "README.md").read_text()
    tensors = [checkpoint.load(p / "model.safetensors")[0] for p in (run, folder)]
    assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())


def test_without_the_extra(run_python, finished, tmp_path):
    said = run_python(
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "import oltr_ext\n"
        f"model = oltr_ext.load({str(finished)!r}, device='cpu')\n"
        "for call in (lambda: model.save_pretrained('a'), lambda: model.push_to_hub('a/b'),\n"
        "             lambda: oltr_ext.load('nobody/nothing')):\n"
        "    try: call()\n"
        "    except (RuntimeError, ValueError) as error: print(error)\n"
    )
    assert said.count("pip install oltr_ext[hub]") == 3
    assert not (tmp_path / "a").exists()
