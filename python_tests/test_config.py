"""Configurations: packaged ones load, overrides apply, and every error is one readable line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from oltr_ext.config import augment_keys, model_keys, open_set, schema
from oltr_ext.config.loading import ConfigError, as_yaml, config_names, load_config, make_config
from oltr_ext.config.methods import METHODS

SMALL = {
    "data": {"kind": "icons"},
    "stage1": {"epochs": 1, "lr": {"feature": 0.1, "classifier": 0.1}},
}

OFFICIAL = "{compat: official, epochs: 1, lr: {feature: 1, classifier: 1}}"

PRIOR = r"test_prior: .*'balanced' or 'val' or less than or equal to 2, got 3$"


@pytest.mark.parametrize("name", config_names())
def test_packaged_configurations_load_with_every_method(name):
    for method in (None, *METHODS):
        config = load_config(name, method=method)
        assert make_config(config.model_dump(mode="json")) == config


def test_overrides_are_yaml_at_a_dotted_path():
    config = load_config(
        "icons",
        ["seed=7", "stage1.lr.feature=1e-2", "data.augment={shift: 1}", "amp=off", "device=cpu"],
    )
    assert (config.seed, config.stage1.lr.feature, config.amp) == (7, 0.01, "off")
    assert config.data.augment.shift == 1 and config.data.augment.scale == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage1.epoch=3"], "icons: stage1.epoch: unknown key; did you mean epochs?"),
        (["stage1.epochs=0"], "icons: stage1.epochs: .* number from 1 on, auto, .* below 1, got 0"),
        (["stage1.lr.feature=-1"], "icons: stage1.lr.feature: .*got -1"),
        (
            ["stage1.nesterov=true", "stage1.momentum=0"],
            "icons: stage1: nesterov: true needs momentum above 0",
        ),
        (["stage1.lr.feature=.nan"], "icons: stage1.lr.feature: .*got nan"),
        (["amp=fp8"], "icons: amp: .*'off', 'bf16' or 'fp16', got 'fp8'"),
        (["data.augment.flip=2"], "icons: data.augment.flip: .*less than or equal to 1"),
        (["data.kind=photos"], "icons: data: .*'icons', 'pack', 'lists', 'embeddings'"),
        (["data={kind: lists}"], r"data.train: this key is required \(and 2 more\)"),
        (["stage1=null"], "icons: stage1: "),
        (["stage1={}"], r"stage1.lr: this key is required, such as 0.1 for a small network"),
        (["data.shots=all"], "data.shots: .* tuple or 'oltr' or 'decoupling', got 'all'$"),
        (["data.shots=[10, 30]"], r"data.shots: .*few <= many \+ 1, got \[10, 30\]"),
        (["seed=99999999999999999999"], "icons: seed: .*less than 9223372036854775808"),
        (["seed"], "--set seed: expected key.path=value"),
        (["seed.x=1"], "icons: seed: "),
        (["data.kind.x=1"], "--set data.kind.x: kind is a value"),
        (["seed=[1"], r"--set seed=\[1: not YAML"),
        (["stage1.loss={kind: focal, gama: 1}"], "stage1.loss.gama: unknown key; did you mean gam"),
        (["stage1.loss.kind=hinge"], "stage1.loss: .*'cross_entropy', 'focal', 'lifted', 'range'"),
        (["stage2.kind=crt"], r"stage2.epochs: this key is required"),
        (["stage2={kind: ncm, epochs: 3}"], "stage2.epochs: input should be 0, got 3"),
        ([f"stage2={OFFICIAL}", "stage2.accumulate=2"], "stage2: .*official needs accumulate = 1"),
        ([f"stage2={OFFICIAL}", "amp=fp16"], "stage2: .*official needs amp = off or bf16"),
        (["stage2.kind=svm"], "stage2: .*'svm'.*'memory', 'crt', 'lws', 'fslwf', 'tau_norm'"),
    ],
)
def test_errors_are_one_line_with_the_path(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("icons", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("embeddings", "data.augment=gentle", "data.augment: unknown key"),
        ("icons", "data.image_size=32", "data.image_size: unknown key"),
        (
            "imagenet_lt",
            "data.image_sizes=32",
            "data.image_sizes: unknown key; did you mean image_size?",
        ),
        (
            "imagenet_lt",
            "data.augment.fits=pad",
            "data.augment.fits: unknown key; did you mean fit?",
        ),
        ("imagenet_lt", "data.augment.epoch=3", "data.augment.epoch: unknown key"),
        ("icons", "data.augment.jiter=1", "data.augment.jiter: unknown key"),
        ("icons", "stage1.loss={kind: focal, weight: 1}", "stage1.loss.weight: unknown key"),
        ("icons", "stage1.lr.features=1", "stage1.lr.features: unknown key; did you mean feature?"),
        ("icons", "epoch=3", "epoch: unknown key; did you mean epochs?"),
    ],
)
def test_a_suggestion_is_a_key_that_may_stand_there(name, override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(name, [override])
    assert str(caught.value) == f"{name}: {message}"


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("icons", "data.augment=photo", "data.augment: .*preset gentle or none .*got 'photo'"),
        ("imagenet_lt", "data.augment=gentel", "data.augment.preset: .*'gentle', .*got 'gentel'"),
        ("imagenet_lt", "data.augment={fit: cut}", "data.augment.fit: .*'pad' or 'resize', got"),
        ("imagenet_lt", "data.augment.crop=0", "data.augment.crop: .*greater than 0, got 0"),
        ("imagenet_lt", "data.image_size=4", "data.image_size: .*equal to 8 or .*'auto', got 4$"),
        ("icons", "test_prior=3", PRIOR),
    ],
)
def test_what_may_be_of_several_types_is_named_with_all_of_them(name, override, message):
    with pytest.raises(ConfigError, match=f"^{name}: {message}"):
        load_config(name, [override])


def test_an_override_mends_what_a_file_lacks_under_any_method():
    """A method is applied to the file, which the override is needed to make hold."""
    values = {**SMALL, "stage1": {**SMALL["stage1"], "epochs": 8}}
    unmade = {**values, "model": {"backbone": "torchvision:resnet18", "tune": "bias_and_norms"}}
    with pytest.raises(ConfigError, match=r"^config: model: tune: .*, and weights is null$"):
        make_config(unmade, method="oltr-plus")
    for method in (None, "plain", "oltr-plus"):
        assert make_config(unmade, ["model.tune=all"], method=method).model.tune == "all"
        assert make_config(unmade, ["model.weights=DEFAULT"], method=method).model.weights
    # of stages it is the last word, not what a method divides
    shared, longer = (make_config(values, words, method="oltr-plus")
                      for words in ([], ["stage1.epochs=9"]))  # fmt: skip
    assert longer.stage1.epochs == 9 and longer.stage2 == shared.stage2


def test_a_number_is_one_as_yaml_1_2_writes_it(tmp_path):
    for text, value in (("1e-3", 1e-3), ("1E3", 1e3), ("1.5e3", 1.5e3), ("+.5e0", 0.5)):
        assert load_config("icons", [f"stage1.lr={text}"]).stage1.lr.classifier == value
    lists = {"kind": "lists", "train": "a.txt", "val": "b.txt", "test": "c.txt"}
    values = {**SMALL, "data": lists}
    assert make_config(values, ["data.val=1e-1"]).data.val == 0.1
    assert str(make_config(values, ["data.val='1e-1'"]).data.val) == "1e-1"
    # where a text is wanted it is what any number is
    for text, got in (("123", "123"), ("1e5", "100000.0")):
        with pytest.raises(ConfigError, match=f"data.test: input is not a valid path .*got {got}"):
            make_config(values, [f"data.test={text}"])
    file = tmp_path / "x.yaml"
    file.write_text("data: {kind: icons}\nstage1: {epochs: 5e-1, lr: 1e-5}\nseed: 010\n")
    config = load_config(file)
    assert (config.stage1.epochs, config.stage1.lr.feature, config.seed) == (0.5, 1e-5, 8)
    whole = make_config(values, ["data.root='1e5'", "stage1.weight_decay=1e-5"])
    file.write_text(as_yaml(whole))  # a text stays one
    assert load_config(file) == whole and str(whole.data.root) == "1e5"


def test_missing_and_broken_files_are_named(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.yaml").touch()
    with pytest.raises(ConfigError, match=r"file .*set; did you mean .*set.data\.yaml\?"):
        load_config(tmp_path / "set")
    with pytest.raises(ConfigError, match="method=oltr: expected --method oltr, which is no key"):
        load_config("icons", ["method=oltr"])
    with pytest.raises(ConfigError, match="no configuration file icon; did you mean icons"):
        load_config("icon")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="of embeddings: embeddings --set"):
        load_config(tmp_path)
    file = tmp_path / "x.yaml"
    for text, message in [("a: [", "x.yaml: not YAML"), ("3", "expected a mapping of keys, got")]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(file)


def test_a_file_is_as_good_as_a_name(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "data: {kind: icons}\nstage1: {epochs: 2, lr: {feature: .1, classifier: .1}}\namp: off\n"
    )
    config = load_config(file)
    assert config.stage1.epochs == 2 and config.stage2 is None and config.amp == "off"
    assert make_config(SMALL).stage1.epochs == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage1: {epochs: 1}\nseed: 3\nstage1: {epochs: 2}\n", "stage1 is .* lines 1 and 3"),
        ("seed: 1\nstage1:\n  epochs: 1\n  lr: 1\n  'epochs': 3\n", "epochs is .* lines 3 and 5"),
        ("data:\n  augment: {flip: 1, shift: 2, flip: 0}\n", "flip is there .* lines 2 and 2"),
    ],
)
def test_a_key_twice_is_told_with_both_lines(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"x\.yaml: {message}$"):
        load_config(tmp_path / "x.yaml")


def test_a_key_twice_in_an_override_too_but_not_what_a_merge_replaces(tmp_path):
    with pytest.raises(ConfigError, match=r"--set stage1=.*: epochs is there twice"):
        load_config("icons", ["stage1={epochs: 1, epochs: 2}"])
    (tmp_path / "x.yaml").write_text(
        "data: {kind: icons}\n"
        "stage1: &one {epochs: 1, lr: &lr {feature: .1, classifier: .1}}\n"
        "stage2: {<<: *one, epochs: 2, lr: {<<: *lr, centroid: .1}}\n"
    )
    config = load_config(tmp_path / "x.yaml")
    assert (config.stage1.epochs, config.stage2.epochs, config.stage2.lr.feature) == (1, 2, 0.1)


def test_home_and_variables_are_put_into_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SETS", "/sets")
    data = {
        "kind": "lists",
        "root": "~/birds",
        "lists": "$HOME/lists",
        **{part: f"${{SETS}}/{part}.txt" for part in ("train", "val", "test")},
        "class_names": "$UNKNOWN/~/names.txt",
    }
    found = make_config({**SMALL, "data": data}).data
    assert str(found.root) == "/home/me/birds" and str(found.lists) == "/home/me/lists"
    assert [str(p) for p in (found.train, found.val, found.test)] == [
        f"/sets/{part}.txt" for part in ("train", "val", "test")
    ]
    assert str(found.class_names) == "$UNKNOWN/~/names.txt"
    for data in ({"kind": "embeddings", "root": "~/e"}, {"kind": "pack", "name": "~/e"}):
        found = make_config({**SMALL, "data": data}).data
        assert str(getattr(found, "root", None) or found.name) == "/home/me/e"


def test_one_rate_is_that_of_network_and_classifier():
    first = make_config({**SMALL, "stage1": {"epochs": 1, "lr": 0.1}})
    assert first == make_config(SMALL)
    for method in ("plain", "oltr-plus"):
        one = make_config({**SMALL, "stage1": {"epochs": 9, "lr": 0.1}}, method=method)
        both = {"epochs": 9, "lr": {"feature": 0.1, "classifier": 0.1}}
        assert one == make_config({**SMALL, "stage1": both}, method=method)
    with pytest.raises(ConfigError, match=r"stage1.lr.feature: .*got -0.1"):
        make_config(SMALL, ["stage1.lr=-0.1"])
    with pytest.raises(ConfigError, match="config: stage1: this key is required, such as"):
        make_config({"data": {"kind": "icons"}})


PAGE = {
    "The run": schema.Config,
    "`data` of kind `icons`: the embedded icons": schema.IconsData,
    "`data` of kind `pack`: images in one file": schema.PackData,
    "`data` of kind `lists`: your images": schema.ListData,
    "`data` of kind `embeddings`: features": schema.EmbeddingsData,
    "`data.augment` of `icons` and `pack`": augment_keys.AugmentConfig,
    "`data.augment` of `lists`": augment_keys.ListAugment,
    "`model`": model_keys.ModelConfig,
    "Every stage that trains": schema.Stage,
    "`lr`": schema.LearningRates,
    "`schedule`": schema.Schedule,
    "`stage1`, and `stage2` of kind `memory`, beside these": schema.FeatureStage,
    "`stage1` alone": schema.Stage1,
    "`stage1.loss` of kind `focal`": schema.Focal,
    "`stage1.loss` of kind `lifted`": schema.Lifted,
    "`stage1.loss` of kind `range`": schema.Range,
    "`stage2` of kind `memory`: the meta-embedding head": schema.MemoryStage,
    "`stage2` of kind `crt` or `lws`: the classifier trained again": schema.RetrainStage,
    "`stage2` of kind `fslwf`": schema.EpisodeStage,
    "`stage2` of kind `tau_norm`, `ncm`, `logit_adjustment` or `openmax`": schema.FitStage,
    "`open_set`": open_set.OpenSet,
    "`distributed`": schema.Distributed,
}
"""Headings of the page of keys, and the group that each is about."""


def groups(base):
    return {base, *(group for each in base.__subclasses__() for group in groups(each))}


def shown(field):
    """A default as the page has it; None where it is a group with defaults of its own."""
    if field.is_required():
        return "`-`"
    if isinstance(field.default, BaseModel):
        return None
    default = field.default
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def test_the_page_of_keys_has_every_one_with_its_default():
    text = Path(schema.__file__).with_name("README.md").read_text()
    sections = dict(s.split("\n", 1) for s in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    assert sections.keys() == PAGE.keys()
    assert {*PAGE.values()} == groups(augment_keys.Strict) - {
        augment_keys.Strict, schema.CrossEntropy}  # fmt: skip
    for heading, group in PAGE.items():
        rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", sections[heading], flags=re.MULTILINE))
        fields = {
            name: field
            for name, field in group.model_fields.items()
            if name in group.__annotations__
            and not (name == "kind" and (field.is_required() or not get_args(field.annotation)[1:]))
        }
        assert rows.keys() == fields.keys(), heading
        for name, field in fields.items():
            assert shown(field) in (None, rows[name]), f"{heading}: {name}"
