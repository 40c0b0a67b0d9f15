"""The command end to end, as a user runs it: exit codes, one-line errors, reruns, JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from PIL import Image
from tiny import config, write_data

from oltr_ext.cli import main
from oltr_ext.config.loading import load_config
from oltr_ext.config.methods import METHODS
from oltr_ext.data.icons import load_icons
from oltr_ext.engine import checkpoint


def oltr(*words, cwd, **options):
    return subprocess.run(
        [sys.executable, "-m", "oltr_ext", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_data(folder / "data")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config(folder / "data")))
    done = oltr("train", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "model  runs/tiny/model.safetensors"
    return folder


def test_eval_judges_and_reports(folder, capsys):
    assert main(["eval", str(folder / "runs/tiny"), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["method", "all", "many", "medium", "few"]
    assert lines[1].startswith("tiny ")
    assert (folder / "runs/tiny/report.html").stat().st_size > 10_000
    assert main(["eval", str(folder / "runs/tiny/model.safetensors"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["samples"] == {"known": 24, "open": 10}


def test_eval_compares_runs(folder, capsys, tmp_path):
    run, model = folder / "runs/tiny", folder / "runs/tiny/model.safetensors"
    names = ["--name", "first", "--name", "second"]
    assert main(["eval", str(run), str(model), *names, "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["first", "second"]
    assert lines[1].split()[1:] == lines[2].split()[1:]
    assert "second" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert main(["eval", str(run), str(model), *names, "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["name"] == "first" and first["closed"] == second["closed"]


def test_eval_compares_like_with_like(folder, capsys, tmp_path):
    run = str(folder / "runs/tiny")
    assert main(["eval", run, run, "--name", "a"]) == 1
    assert "expected 2 names for 2 models, no two the same, got a\n" in capsys.readouterr().err
    assert main(["eval", run, run]) == 1
    assert f"no two the same, got {run}, {run}\n" in capsys.readouterr().err
    short = tmp_path / "short.txt"
    short.write_text("".join((folder / "data/test.txt").read_text().splitlines(True)[:-1]))
    other = ["train", str(folder / "tiny.yaml"), "--set", f"data.test={short}"]
    assert main([*other, "--set", "stage1.epochs=1", "--out", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    assert main(["eval", run, str(tmp_path / "other")]) == 1
    assert "was tested on other data than" in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "moved")
    tensors, header = checkpoint.load(tmp_path / "moved" / "model.safetensors")
    header["config"]["data"]["shots"] = "decoupling"
    checkpoint.save(tmp_path / "moved" / "model.safetensors", tensors, header)
    assert main(["eval", run, str(tmp_path / "moved")]) == 1
    assert "moved/model.safetensors has other data.shots than" in capsys.readouterr().err


def test_eval_finds_data_that_has_moved(folder, capsys, tmp_path):
    write_data(tmp_path / "moved")
    moved = [f"data.{part}={tmp_path}/moved/{part}.txt" for part in ("train", "val", "test")]
    overrides = [
        word for item in [*moved, f"data.root={tmp_path}/moved"] for word in ("--set", item)
    ]
    assert main(["eval", str(folder / "runs/tiny"), "--json", *overrides]) == 0
    there = json.loads(capsys.readouterr().out)
    assert main(["eval", str(folder / "runs/tiny"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["closed"] == there["closed"]
    assert main(["eval", str(folder / "runs/tiny"), "--set", "data.test=none.txt"]) == 1
    assert capsys.readouterr().err == "oltr: ImageList: no list file none.txt\n"
    assert main(["eval", str(folder / "runs/tiny"), "--set", "device=nonsense"]) == 1
    assert "--set device=nonsense: " in capsys.readouterr().err


def test_predict_says_label_or_unknown(folder, capsys):
    images = [str(folder / "data" / f"test_{c}_0.png") for c in range(4)]
    command = ["predict", str(folder / "runs/tiny"), *images, "--nearest", "2"]
    assert main([*command, "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [a["path"] for a in answers] == images
    for answer in answers:
        assert (answer["label"] is None) == (answer["confidence"] < answer["threshold"])
        assert len(answer["nearest"]) == 2
    assert main(command) == 0
    for line, answer in zip(capsys.readouterr().out.splitlines(), answers, strict=True):
        assert line.startswith(f"{answer['path']}: {answer['label'] or 'unknown'}  ")


def test_predict_takes_folders(folder, capsys, tmp_path):
    run, image = str(folder / "runs/tiny"), folder / "data" / "test_0_0.png"
    (tmp_path / "in" / "deep").mkdir(parents=True)
    names = [str(tmp_path / "in" / name) for name in ("b.png", "deep/a.png")]
    for name in names:
        (tmp_path / name).write_bytes(image.read_bytes())
    (tmp_path / "in" / "notes.txt").write_text("no image")
    for more in ([], ["--set", "0.2"]):
        assert main(["predict", run, str(image), str(tmp_path / "in"), "--json", *more]) == 0
        found = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
        assert found == [str(image), *names]
    (tmp_path / "none").mkdir()
    assert main(["predict", run, str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"oltr: no image in the folder {tmp_path}/none\n"


def test_predict_answers_for_the_images_that_can_be_read(folder, capsys, tmp_path):
    good = [str(folder / "data" / f"test_{c}_0.png") for c in (0, 1, 0)]
    (tmp_path / "bad.png").write_text("no image")
    command = ["predict", str(folder / "runs/tiny"), good[0], str(tmp_path / "bad.png"), *good[1:]]
    assert main([*command, str(tmp_path / "none.png")]) == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == good
    bad, none = err.splitlines()
    assert bad.startswith(f"oltr: cannot read image {tmp_path}/bad.png: ")
    assert none == f"oltr: no image {tmp_path}/none.png"
    with pytest.raises(ValueError, match="cannot read image"):
        main([*command, "--debug"])


def test_names_that_the_terminal_has_no_letters_for(folder, monkeypatch, tmp_path):
    image = tmp_path / "\u732b.png"
    image.write_bytes((folder / "data" / "test_0_0.png").read_bytes())
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    assert main(["predict", str(folder / "runs/tiny"), str(image)]) == 0
    sys.stdout.flush()
    assert rb"\u732b.png: " in written.getvalue()


def test_stage_1_is_a_folder_or_its_model(folder, capsys, tmp_path):
    command = ["train", str(folder / "tiny.yaml"), "--out"]
    assert main([*command, str(tmp_path / "one"), "--set", "stage2=null"]) == 0
    model = str(tmp_path / "one" / "model.safetensors")
    assert main([*command, str(tmp_path / "two"), "--stage1", model]) == 0
    assert f"stage 1 taken from {model}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`.\n"),
            "CUDA error: out of memory; Compile with `TORCH_USE_CUDA_DSA`.",
        ),
        (
            RuntimeError(
                "Error(s) in loading state_dict for OLTRModel:\n"
                '\tMissing key(s) in state_dict: "backbone.a", "backbone.b". \n'
                "\tsize mismatch for head.weight: copying a param with shape torch.Size([4, 2]).\n"
            ),
            "Error(s) in loading state_dict for OLTRModel: Missing key(s) in state_dict: "
            '"backbone.a", "backbone.b". size mismatch for head.weight: copying a param with shape '
            "torch.Size([4, 2]).",
        ),
        (
            RuntimeError("\n".join(f"{n}" for n in range(9))),
            "0; 1; 2; 3; 4; 5; and 3 more lines (--debug shows them)",
        ),
        (RuntimeError("word " * 100), "word " * 47 + "..."),
        (
            ValueError(
                "Caught ValueError in DataLoader worker process 0.\n"
                "Original Traceback (most recent call last):\n"
                '  File "x.py", line 1, in f\n    raise\nValueError: no image: x\nof y\n'
            ),
            "no image: x; of y",
        ),
        (RuntimeError("Caught.\nOriginal Traceback\n  File\nStopIteration"), "StopIteration"),
        (OSError(), "OSError"),
    ],
)
def test_the_line_of_an_error_says_what_happened(error, line, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("oltr_ext.cli.commands.run_methods", fail)
    assert main(["methods"]) == 1
    assert capsys.readouterr().err == f"oltr: {line}\n"


def test_home_is_put_into_a_folder_that_the_shell_left_alone(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--set", "stage2=null", "--set", "stage1.epochs=1", "--out=~/runs/a"]
    assert main(["train", str(folder / "tiny.yaml"), *words]) == 0
    assert capsys.readouterr().out == f"model  {tmp_path}/runs/a/model.safetensors\n"


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        ("run_train", ["train", "icons"], "interrupted; the same command goes on from here"),
        (
            "run_train",
            ["train", "icons", "--fresh"],
            "interrupted; the same command without --fresh goes on from here",
        ),
        ("run_methods", ["methods"], "interrupted"),
    ],
)
def test_an_interrupt_says_what_goes_on(command, words, told, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"oltr_ext.cli.commands.{command}", interrupt)
    assert main(words) == 130
    assert capsys.readouterr().err == f"\noltr: {told}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "none.yaml"], "oltr: no configuration file none.yaml; "),
        (["train", "icons", "--set", "stage1.epoch=3"], "stage1.epoch: unknown key"),
        (["train", "icons", "--set", "device=gpu"], "oltr: device 'gpu' cannot be used"),
        (["eval", "none"], "oltr: no run none"),
        (["predict", "none", "x.png"], "oltr: no run none"),
        (
            ["demo", "--methods", "best"],
            "oltr: icons: no method 'best'; there are plain, lifted, focal, range, openmax, fslwf",
        ),
        (["train", "icons", "--method", "best"], "oltr: icons: no method 'best'; there are plain"),
        (["data", "check", "icons"], "oltr: icons: data.kind is icons; only lists have files"),
    ],
)
def test_errors_are_one_line_and_code_1(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    with pytest.raises((ValueError, OSError)):
        main([*words, "--debug"])


def test_a_full_disk_is_told_in_words(capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("oltr_ext.cli.commands.run_methods", full)
    assert main(["methods"]) == 1 and capsys.readouterr().err == "oltr: no space left on the disk\n"


def test_an_error_in_a_loader_process_is_one_line_too(folder, capsys, tmp_path):
    values = config(folder / "data")
    values["data"]["workers"] = 1
    broken = folder / "data" / "broken.png"
    broken.write_bytes((folder / "data" / "train_0_0.png").read_bytes()[:300])
    lines = (folder / "data" / "train.txt").read_text().splitlines()
    (folder / "data" / "broken.txt").write_text("\n".join(["broken.png 0", *lines[1:]]))
    values["data"]["train"] = str(folder / "data" / "broken.txt")
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(tmp_path / "broken.yaml"), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len([line for line in told if line.startswith("oltr: ")]) == 1
    assert f"broken.txt:1: cannot read image {broken}" in told[-1]


def test_a_few_unreadable_images_are_told_and_left_out(folder, capsys, tmp_path):
    """Found by loader processes, in training and test; the rest stays in its place."""
    values = {**config(folder / "data"), "stage2": None}
    values["stage1"] = {**values["stage1"], "batch_size": 10, "epochs": 1}
    values["data"] |= {"workers": 1, "max_bad_images": 1, "root": str(folder / "data")}
    (folder / "data" / "text.png").write_text("no image")
    for part in ("train", "test"):
        lines = (folder / "data" / f"{part}.txt").read_text().splitlines()
        (tmp_path / f"{part}.txt").write_text("\n".join(["text.png 0", *lines[1:]]))
        values["data"][part] = str(tmp_path / f"{part}.txt")
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(values))
    run = str(tmp_path / "out")
    assert main(["train", str(tmp_path / "few.yaml"), "--out", run]) == 0
    told = "1 of 30 images cannot be read, the first text.png"
    assert f"{tmp_path / 'train.txt'}: {told}" in capsys.readouterr().err.splitlines()
    assert main(["eval", run, "--json", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["samples"] == {"known": 23, "open": 10}
    told = "1 of 24 images cannot be read, the first text.png"
    assert err.splitlines() == [f"oltr: {tmp_path / 'test.txt'}: {told}"]
    assert main(["eval", run, "--set", "data.max_bad_images=0", "--device", "cpu"]) == 1
    assert "test.txt:1: cannot read image" in capsys.readouterr().err


def test_usage_errors_are_code_2_and_help_has_examples(capsys):
    check = ["data", "check", "x", "--decode", "0"]
    for words in ([], ["fly"], ["train"], ["predict", "x", "y", "--nearest", "0"], ["data"], check):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
    capsys.readouterr()
    for name in ("demo", "train", "eval", "predict", "embed", "data check", "info", "methods"):
        with pytest.raises(SystemExit) as caught:
            main([*name.split(), "--help"])
        assert caught.value.code == 0
        assert f"examples:\n  oltr {name}" in capsys.readouterr().out


def test_methods_and_info(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["method", "paper", "what", "it", "changes", "command"]
    assert [line.split()[0] for line in lines[1:]] == list(METHODS)
    for name, line in zip(METHODS, lines[1:], strict=True):
        assert line.endswith(f"oltr train icons --method {name}")
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out


def test_interrupt_is_code_130_and_the_same_command_goes_on(folder):
    command = ["train", "tiny.yaml", "--out", "runs/long", "--set", "stage1.epochs=400"]
    child = subprocess.Popen(
        [sys.executable, "-m", "oltr_ext", *command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell's background jobs ignore the interrupt, and hand that down to their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.time() + 120
    while not (folder / "runs/long/previous.safetensors").exists() and time.time() < until:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 130 and "goes on from here" in told and "Traceback" not in told


def test_demo_trains_judges_and_runs_again(tmp_path, monkeypatch, capsys):
    quick = ["demo", "--out", "demo", "--set", "stage1.epochs=1"]
    done = oltr(*quick, "--methods", "plain", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in (
        "plain",
        "AUROC",
        "Held for unknown by plain",
        "of 200 strangers",
        "of 500 known",
    ):
        assert words in done.stdout
    assert "report  demo/report.html" in done.stdout
    rows = list(csv.DictReader((tmp_path / "demo/unknown.csv").open()))
    icons = load_icons()
    names = {f"{s}:{i}" for s, i in zip(icons.set_name, icons.icon_name, strict=True)}
    assert rows and {row["image"] for row in rows} <= names
    model = (tmp_path / "demo/plain/model.safetensors").read_bytes()
    # again, then with another seed in the same folder: both work, only the second trains
    assert main([*quick[:2], str(tmp_path / "demo"), *quick[3:], "--methods", "plain"]) == 0
    assert (tmp_path / "demo/plain/model.safetensors").read_bytes() == model
    monkeypatch.chdir(tmp_path)
    assert main([*quick, "--methods", "plain", "--seed", "1"]) == 0
    assert "starting afresh" in capsys.readouterr().out
    assert (tmp_path / "demo/plain/model.safetensors").read_bytes() != model
    # and an icon that was exported to a file is read as the same icon
    index = int(icons.rows("test")[0])
    Image.fromarray(255 - icons.images[index]).save(tmp_path / "icon.png")
    assert main(["predict", "demo/plain", "icon.png"]) == 0
    assert capsys.readouterr().out.startswith("icon.png: ")


def test_config_prints_every_key_and_reads_back(folder, capsys, tmp_path):
    command = ["config", str(folder / "tiny.yaml"), "--method", "oltr-plus", "--set", "seed=5"]
    assert main(command) == 0
    (tmp_path / "whole.yaml").write_text(capsys.readouterr().out)
    whole = load_config(tmp_path / "whole.yaml")
    assert whole == load_config(folder / "tiny.yaml", ["seed=5"], method="oltr-plus")
    assert whole.test_prior == "balanced" and whole.seed == 5
