"""Epochs left to `auto`: counted by steps, shared between stages, kept by a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import config as tiny

from oltr_ext.cli import main
from oltr_ext.config import epochs
from oltr_ext.config.epochs import auto_epochs, settle_epochs
from oltr_ext.config.loading import ConfigError, load_config, make_config
from oltr_ext.config.methods import METHODS
from oltr_ext.engine import checkpoint
from oltr_ext.engine.train import OtherRunError, train

LR = {"feature": 0.1, "classifier": 0.1}
FIRST = {"batch_size": 64, "lr": LR, "schedule": {"kind": "cosine"}}
BARE = {"data": {"kind": "icons"}, "stage1": FIRST}


def open_ended(folder: Path, **changes: Any) -> dict[str, Any]:
    """The tiny configuration without a word on epochs and stage 2."""
    values = tiny(folder)
    del values["stage2"]
    first = {key: value for key, value in values["stage1"].items() if key != "epochs"}
    return {**values, "stage1": first, **changes}


@pytest.mark.parametrize(
    ("images", "batch", "random", "expected"),
    [
        (453, 64, True, 143),  # 7 steps an epoch: 1,001
        (453, 128, True, 334),  # 3
        (453, 128, False, 100),
        (2_000, 64, True, 33),
        (115_846, 128, True, 30),
        (100, 64, True, 500),
        (10, 64, True, 500),  # less than a batch: `feasible.check_batches` has the error
    ],
)
def test_auto_counts_steps(images, batch, random, expected):
    assert auto_epochs(images, batch, random=random) == expected


@pytest.mark.parametrize("method", METHODS)
def test_stages_share_what_auto_comes_to_as_they_share_a_number(method):
    stages = []
    for number in ("auto", 143):
        values = {**BARE, "stage1": {**FIRST, "epochs": number}}
        settled = settle_epochs(make_config(values, method=method), 453)
        stages.append((settled.stage1, settled.stage2))
    assert stages[0] == stages[1]
    assert sum(s.epochs for s in stages[0] if s is not None) == 143


def test_an_open_number_is_printed_and_read_back_as_it_is():
    for method in ("plain", "oltr", "oltr-plus"):
        made = make_config(BARE, method=method)
        again = make_config(made.model_dump(mode="json"))
        assert again == made and made.model_dump()["stage1"]["epochs"] in ("auto", 0.5, 0.25)
        other = make_config(made.model_dump(mode="json"), method="crt")
        assert (other.stage1.epochs, other.stage2.epochs) == (0.8, 0.2)


def test_a_number_stays_what_it_is():
    two = make_config(BARE, ["stage1.epochs=40"], method="oltr-plus")  # after it was shared
    assert [s.epochs for s in (two.stage1, two.stage2)] == [40, 0.75]
    settled = settle_epochs(two, 453)
    assert [s.epochs for s in (settled.stage1, settled.stage2)] == [40, 107]
    alone = make_config(BARE, ["stage2=null"], method="crt")
    assert settle_epochs(alone, 453).stage1.epochs == 114 and alone.stage2 is None
    every = make_config({**BARE, "stage1": {"epochs": 90, "lr": LR}}).stage1.schedule.every
    assert every == 10  # as it always was
    step = make_config(BARE, ["stage1.schedule={kind: step}"])
    assert step.stage1.schedule.every == "auto"
    assert settle_epochs(step, 453).stage1.schedule.every == 47
    step = make_config(BARE, ["stage1.schedule={kind: step, every: 5}"])
    assert settle_epochs(step, 453).stage1.schedule.every == 5
    for wrong in ("1.5", "often", "0", "-0.5"):
        with pytest.raises(ConfigError, match=rf"stage1.epochs: .*got .?{wrong}"):
            make_config(BARE, [f"stage1.epochs={wrong}"])


@pytest.mark.parametrize("share", [0.001, 0.01, 0.99, 0.999])
def test_the_smallest_share_is_an_epoch(share):
    made = make_config(BARE, [f"stage1.epochs={share}", f"stage2.epochs={1 - share}"], method="crt")
    settled = settle_epochs(made, 40_000)
    assert settled.stage1.epochs + settled.stage2.epochs == 30
    assert min(settled.stage1.epochs, settled.stage2.epochs) >= 1


def test_weights_ask_for_fewer_steps_and_so_do_embeddings():
    photos = {"kind": "lists", "train": "a", "val": 0.1, "test": "b"}
    values = {"data": photos, "stage1": {"lr": LR}}
    assert settle_epochs(make_config(values), 453).stage1.epochs == 334
    tuned = make_config({**values, "model": {"weights": "DEFAULT"}})
    assert settle_epochs(tuned, 453).stage1.epochs == 100
    rows = make_config({"data": {"kind": "embeddings", "root": "x"}, "stage1": {"lr": LR}})
    assert settle_epochs(rows, 453).stage1.epochs == 100


def test_a_run_keeps_the_number_that_it_began_with(data, tmp_path, monkeypatch):
    monkeypatch.setattr(epochs, "LEAST", 2)
    monkeypatch.setattr(epochs, "STEPS", {True: 9, False: 9})
    left, said = make_config(open_ended(data), method="crt"), []
    path = train(left, tmp_path / "run", say=said.append)
    assert "stage 1: 2 epochs in batches of 8, stage 2: 1 epoch in batches of 8" in said[0]
    assert "epochs: auto: 3 epochs in all, 9 steps" in said[0]
    kept = checkpoint.load(path)[1]["config"]
    assert (kept["stage1"]["epochs"], kept["stage2"]["epochs"]) == (2, 1)
    monkeypatch.setattr(epochs, "STEPS", {True: 900, False: 9})  # another version's rule
    said.clear()
    train(left, tmp_path / "run", say=said.append)
    assert said == [f"{tmp_path}/run is trained already"]
    # but who writes a number down, or takes it away, asks for another run
    with pytest.raises(OtherRunError, match=r"stage1.epochs = 2, and this one asks for 5"):
        train(make_config(open_ended(data), ["stage1.epochs=5"], method="crt"), tmp_path / "run")
    written = make_config(open_ended(data), ["stage1.epochs=1"])
    train(written, tmp_path / "written")
    with pytest.raises(OtherRunError, match=r"stage1.epochs = 1, and this one asks for 300"):
        train(make_config(open_ended(data)), tmp_path / "written")


def test_stage_1_of_another_run_has_its_share(data, tmp_path, monkeypatch):
    monkeypatch.setattr(epochs, "LEAST", 2)
    monkeypatch.setattr(epochs, "STEPS", {True: 9, False: 9})
    whole = make_config(open_ended(data), method="crt")
    first = train(make_config(open_ended(data), ["stage2=null"], method="crt"), tmp_path / "one")
    shared = train(whole, tmp_path / "two", stage1=first)
    own = train(whole, tmp_path / "own")
    mine, theirs = (checkpoint.load(path)[0] for path in (shared, own))
    assert all((mine[name] == theirs[name]).all() for name in mine)


def test_few_steps_by_a_number_are_told(data, tmp_path):
    said = []
    train(make_config(open_ended(data), ["stage1.epochs=2"]), tmp_path, say=said.append)
    line = "6 steps are few for a network that starts at random: epochs: auto would be 334"
    assert f"{line} epochs in all instead of 2" in said[0]


def test_packaged_configurations_state_their_epochs():
    for name in ("icons", "glyphs-2000", "imagenet_lt", "embeddings"):
        assert isinstance(load_config(name).stage1.epochs, int)


def of_stages(config: Any) -> tuple[Any, ...]:
    return tuple(s.epochs for s in (config.stage1, config.stage2) if s is not None)


def test_one_key_sets_the_epochs_of_all_stages(data):
    two = tiny(data)  # of two and two epochs
    assert of_stages(make_config(two, ["epochs=10"])) == (5, 5)
    two["stage2"] = {**two["stage2"], "epochs": 6}
    assert of_stages(make_config(two, ["epochs=4"])) == (1, 3)
    assert of_stages(make_config(two, ["epochs=auto"])) == (0.25, 0.75)
    assert of_stages(make_config(two, ["epochs=4", "stage2.epochs=9"])) == (1, 9)
    assert of_stages(make_config({**two, "stage2": None}, ["epochs=4"])) == (4,)
    fitted = {**two, "stage2": {"kind": "ncm"}}
    assert of_stages(make_config(fitted, ["epochs=4"])) == (4, 0)
    for method, number in (("oltr-plus", (2, 8)), ("oltr", (5, 5)), ("plain", (10,))):
        assert of_stages(make_config(BARE, ["epochs=10"], method=method)) == number
        assert of_stages(make_config({**BARE, "epochs": 10}, method=method)) == number
        assert of_stages(make_config(two, ["epochs=10"], method=method)) == number
    assert of_stages(make_config({**BARE, "epochs": 3}, ["epochs=10"], method="plain")) == (10,)
    # of the stages that are left, and of their kinds
    for method in (None, "oltr-plus"):
        alone = make_config(two, ["epochs=10", "stage2=null"], method=method)
        assert of_stages(alone) == (10,)
    kind = make_config(two, ["stage2={kind: tau_norm}", "epochs=10"])
    assert of_stages(kind) == (10, 0)


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        ({}, ["epochs=0"], r"--set epochs=0: epochs: expected a number from 1 on, or auto, got 0"),
        ({}, ["epochs=0.5"], r"got 0\.5"),
        ({"epochs": "few"}, [], r"^config: epochs: .* got 'few'"),
        ({}, ["epochs=1"], r"needs an epoch for each of its two stages, got 1 in all"),
        ({"epochs": 3, "stage1": {**FIRST, "epochs": 2}}, [], r"epochs are those of all stages, and"
         r" stage1\.epochs too are there"),
    ],
)  # fmt: skip
def test_epochs_that_none_can_train_for(values, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_config({**BARE, **values}, overrides, method="oltr-plus")


def test_a_stage_that_is_set_alone_is_told(data, tmp_path, capsys):
    values = open_ended(data)
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(values))

    def said(*words: str) -> str:
        asked = ["train", str(file), "--out", str(tmp_path / "none"), "--stage1", "nowhere"]
        assert main([*asked, *words]) == 1
        return capsys.readouterr().err

    line = "stage1.epochs is set for that stage alone, and stage2.epochs is 0.75 of auto; --set epo"
    assert line in said("--method", "oltr-plus", "--set", "stage1.epochs=1")
    assert line in said("--set", "stage1.epochs=1")
    quiet = "is set for that stage alone"
    assert quiet not in said("--method", "oltr-plus", "--set", "epochs=4")
    assert quiet not in said("--set", "stage1.epochs=1", "--set", "stage2.epochs=1")
    assert quiet not in said("--method", "ncm", "--set", "stage1.epochs=1")
    found = said("--method", "oltr-plus", "--set", "stage2.epochs=1")
    assert "stage2.epochs is set for that stage alone, and stage1.epochs is 0.25 of auto" in found
