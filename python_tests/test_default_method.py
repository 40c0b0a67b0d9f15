"""What trains where neither configuration nor command says how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import config as tiny

import oltr_ext
from oltr_ext.cli import main
from oltr_ext.config.loading import ConfigError, make_config
from oltr_ext.config.methods import DEFAULT
from oltr_ext.engine import checkpoint, tensorfile
from oltr_ext.engine.choose import configured

LR = {"feature": 0.1, "classifier": 0.1}
BARE: dict[str, Any] = {"data": {"kind": "icons"}, "stage1": {"epochs": 8, "lr": LR}}


def test_the_default_is_for_those_who_say_nothing():
    default = make_config(BARE, method=DEFAULT)
    assert make_config(BARE, method="auto") == default
    assert make_config(BARE).stage2 is None
    assert make_config(BARE, ["stage2.batch_size=32"], method="auto").stage2.batch_size == 32
    crt = make_config(BARE, method="crt")
    for said in ({"method": "crt"}, crt.model_dump(mode="json")):
        assert make_config({**BARE, **said}, method="auto") == crt
        assert make_config({**BARE, **said}) == crt
        assert make_config({**BARE, **said}, method=DEFAULT) == default
    for key, value in (
        ("stage2", None),
        ("stage1", {**BARE["stage1"], "loss": {"kind": "focal"}}),
        ("stage1", {**BARE["stage1"], "sampler": "class_aware"}),
        ("stage1", {**BARE["stage1"], "class_prior": 1}),
    ):
        values = {**BARE, key: value}
        assert make_config(values, method="auto") == make_config(values)
    for override in ("stage2=null", "stage1.loss.kind=focal", "stage1.class_prior=1"):
        assert make_config(BARE, [override], method="auto") == make_config(BARE, [override])
    with pytest.raises(ConfigError, match=r"no method 'crtt'; did you mean crt\?"):
        make_config({**BARE, "method": "crtt"})


@pytest.fixture
def alone(data, tmp_path, monkeypatch) -> Path:
    """A configuration of stage 1 alone, in the working folder."""
    monkeypatch.chdir(tmp_path)
    values = {key: value for key, value in tiny(data).items() if key != "stage2"}
    Path("my.yaml").write_text(yaml.safe_dump(values))
    return Path("my.yaml")


def test_train_says_by_what_and_goes_on_with_what_is_there(alone, capsys):
    assert main(["train", "my.yaml", "--out", "new"]) == 0
    assert f"method: {DEFAULT}, for neither" in capsys.readouterr().err
    assert checkpoint.load("new/model.safetensors")[1]["config"]["stage2"]["kind"] == "memory"
    # a run from when stage 1 alone was the default, or by another way
    assert main(["train", "my.yaml", "--method", "plain", "--out", "runs/my"]) == 0
    before = Path("runs/my/model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["train", "my.yaml"]) == 0
    said = capsys.readouterr().err
    assert "holds a run of stage 1 alone, which goes on as such" in said
    assert "is trained already" in said
    assert Path("runs/my/model.safetensors").read_bytes() == before
    assert main(["train", "my.yaml", "--fresh"]) == 0
    assert checkpoint.load("runs/my/model.safetensors")[1]["config"]["stage2"] is not None
    few = ["--set", "stage2.epochs=1", "--out", "few"]  # a key of the default's own
    assert main(["train", "my.yaml", *few]) == 0
    assert checkpoint.load("few/model.safetensors")[1]["config"]["stage2"]["epochs"] == 1
    capsys.readouterr()
    assert main(["config", "my.yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["stage2"]["class_prior"] == 1


def test_what_is_there_is_told_by_its_header(tmp_path, monkeypatch):
    """Each of several processes asks, and none can hold a bank that they share."""

    def whole(*_):
        raise AssertionError("a tensor was read whole")

    def load(method):
        return make_config(BARE, method=method)

    checkpoint.save_last(tmp_path, {"x": torch.ones(3)}, {"config": {"stage2": None}})
    monkeypatch.setattr(tensorfile.TensorFile, "__getitem__", whole)
    assert configured(load, tmp_path, say=print)[0].stage2 is None


def test_python_and_the_command_train_alike(alone):
    assert main(["train", "my.yaml", "--out", "a"]) == 0
    said: list[str] = []
    oltr_ext.train("my.yaml", out="b", say=said.append)
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()
    assert said[0].startswith(f"method: {DEFAULT}")
    # a second stage of the configuration's own is not replaced
    values = yaml.safe_load(alone.read_text())
    values["stage2"] = {**values["stage1"], "kind": "crt"}
    oltr_ext.train(values, out="c", say=lambda _: None)
    assert checkpoint.load("c/model.safetensors")[1]["config"]["stage2"]["kind"] == "crt"
