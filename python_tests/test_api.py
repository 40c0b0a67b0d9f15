"""`oltr_ext.train` and `oltr_ext.load`: three lines, every kind of question, one kind of answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import config

import oltr_ext
from oltr_ext.config.loading import ConfigError
from oltr_ext.data import write_embeddings
from oltr_ext.serve.model import Model, Predictions
from oltr_ext.serve.predict import Prediction, image_features, predict_images

FIELDS = [field.name for field in dataclasses.fields(Prediction)] + ["known"]


@pytest.fixture(scope="module")
def model(finished: Path) -> Model:
    return oltr_ext.load(finished, device="cpu")


@pytest.fixture(scope="module")
def files(data: Path) -> list[Path]:
    return sorted(data.rglob("*.png"))[:4]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run on features of three well-parted classes, and rows of them with one far from all."""
    folder = tmp_path_factory.mktemp("embedded")
    draw = np.random.default_rng(0)
    means = np.eye(3, 8) * 6

    def part(n: int) -> tuple[Any, Any]:
        label = np.arange(n) % 3
        return (means[label] + draw.normal(size=(n, 8))).astype(np.float32), label

    write_embeddings(
        folder / "rows", {"train": part(120), "val": part(30), "test": part(9)}, list("abc")
    )
    size = {"stage1.batch_size": 16, "stage2.batch_size": 16}
    settings = {"stage1.epochs": 10, "stage2.epochs": 10, **size, "device": "cpu"}
    run = oltr_ext.train(
        folder / "rows",
        method="oltr-plus",
        out=folder / "run",
        settings=settings,
        say=lambda _: None,
    )
    return run, part(9)[0]


def test_import_stays_light(run_python: Any) -> None:
    code = (
        "import sys, oltr_ext\n"
        "heavy = {'pydantic', 'sklearn', 'torchvision', 'oltr_ext.nn', 'oltr_ext.engine'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "print({'load', 'train', 'nn'} <= set(dir(oltr_ext)), oltr_ext.load.__name__)\n"
        "from oltr_ext import train; print(train.__module__)"
    )
    assert run_python(code).splitlines() == ["[]", "True load", "oltr_ext.api"]


def test_tensors_of_features_of_any_dtype_and_images_with_channels_first(
    model: Model, embedded: tuple[Path, Any]
) -> None:
    run, rows = embedded
    of_rows, half = oltr_ext.load(run, device="cpu"), torch.from_numpy(rows).bfloat16()
    assert list(of_rows.predict(half)) == list(of_rows.predict(half.float()))
    planes = torch.zeros(3, 16, 16, dtype=torch.uint8)
    for image in (planes, planes.numpy()):
        with pytest.raises(ValueError, match=r"expected pixels \(H, W, 3\).* are to come last"):
            model.predict(image)
    assert len(model.predict([*planes])) == 3  # grey ones
    assert len(model.predict(torch.zeros(2, 16, 16, 3, dtype=torch.uint8))) == 2
    for none in (np.zeros((0, 5), np.uint8), np.zeros((0, 0, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"cannot read image image\[0\]: . x 0 pixels"):
            model.predict(none)


def test_rows_of_files_beside_images(
    model: Model, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on images takes features such as `embed` makes with it, by file and by row."""
    monkeypatch.chdir(tmp_path)
    given = image_features(model.trained, files)
    np.save("rows.npy", np.concatenate([features.numpy() for _, features in given]))
    want, found = model.predict(files), model.predict([files[0], "rows.npy[1]", "rows.npy"])
    assert found.path.tolist()[1:] == ["rows.npy[1]", *(f"rows.npy[{n}]" for n in range(4))]
    which = [0, 1, 0, 1, 2, 3]
    assert found.closed.tolist() == want.closed[which].tolist()
    np.testing.assert_allclose(found.confidence, want.confidence[which], rtol=1e-5)


def test_every_kind_of_image_gives_the_answer_of_its_file(model: Model, files: list[Path]) -> None:
    expected = predict_images(model.trained, files)
    whole = model.predict(files)
    assert isinstance(whole, Predictions) and len(whole) == len(files)
    assert list(whole) == expected
    pictures = [Image.open(file).convert("RGB") for file in files]
    for asked in (
        [str(file) for file in files],
        pictures,
        [np.asarray(each) for each in pictures],
        [torch.from_numpy(np.array(each)) for each in pictures],
        [files[0], *pictures[1:]],
    ):
        found = model.predict(asked)
        assert [dataclasses.replace(p, path="") for p in found] == [
            dataclasses.replace(p, path="") for p in expected
        ]
    assert model.predict(pictures).path.tolist() == [f"image[{n}]" for n in range(len(files))]


def test_one_gives_the_fields_that_many_give(model: Model, files: list[Path]) -> None:
    many = model.predict(files)
    for asked in (files[0], str(files[0]), Image.open(files[0]), np.asarray(Image.open(files[0]))):
        one = model.predict(asked)
        assert isinstance(one, Prediction)
        for name in FIELDS:
            column = getattr(many, name)
            assert len(column) == len(files)
            if name == "confidence":  # alone and in a batch: other rounding
                assert column[0] == pytest.approx(one.confidence, rel=1e-4)
            elif name not in ("path", "nearest"):
                assert column[0] == getattr(one, name), name
    assert isinstance(many[1:], Predictions) and many[1:][0] == many[1]
    assert many.known.dtype == bool and many.confidence.dtype == np.float64
    empty = model.predict([])
    assert len(empty) == 0 and empty.label.shape == (0,) and empty.known.dtype == bool


def test_features_of_a_model_of_images_are_those_of_its_head(
    model: Model, files: list[Path]
) -> None:
    from oltr_ext.data import network_input
    from oltr_ext.serve.inputs import pixels_of

    trained = model.trained
    pixels = torch.stack([pixels_of(trained.config.data, trained.image_shape, f) for f in files])
    with torch.no_grad():
        features = trained.model.features(network_input(pixels)).float()
    by_file, by_feature = model.predict(files), model.predict(features)
    assert by_file.label.tolist() == by_feature.label.tolist()
    np.testing.assert_allclose(by_file.confidence, by_feature.confidence, rtol=1e-5)


def test_training_on_features(embedded: tuple[Path, Any]) -> None:
    run, rows = embedded
    assert (run / "model.safetensors").is_file()
    model = oltr_ext.load(run, device="cpu")
    assert model.class_names == ["a", "b", "c"]
    found = model.predict(rows)
    assert found.closed.tolist() == list("abcabcabc")
    assert found.path[2] == "row[2]"
    assert set(found.label[found.known]) <= set("abc") and found.known.sum() >= 6
    assert all(label is None for label in found.label[~found.known])
    one = model.predict(rows[0])
    assert isinstance(one, Prediction) and one.closed == "a"
    assert model.predict(list(rows)).closed.tolist() == found.closed.tolist()
    assert model.predict(torch.from_numpy(rows)).closed.tolist() == found.closed.tolist()
    np.save(run / "rows.npy", rows)
    assert len(model.predict(run / "rows.npy")) == len(rows)


def test_what_is_neither_is_told(model: Model, embedded: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"expected an image or features.*got int"):
        model.predict(3)
    with pytest.raises(ValueError, match=r"image\[0\]: expected a file.*got \(3, 4, 5\) of int64"):
        model.predict([np.zeros((3, 4, 5), np.int64)])
    with pytest.raises(FileNotFoundError, match=r"no image nowhere\.png"):
        model.predict("nowhere.png")
    width = model.trained.model.feature_dim
    with pytest.raises(ValueError, match=rf"expected embeddings of shape \(N, {width}\)"):
        model.predict(np.zeros((2, width + 1)))
    with pytest.raises(ValueError, match="do not say what made them"):
        oltr_ext.load(embedded[0], device="cpu").predict("nowhere.png")
    with pytest.raises(ConfigError, match=r"no manifest\.json"):
        oltr_ext.train(tmp_path, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="did you mean icons"):
        oltr_ext.train("icon", out=tmp_path / "run")


def test_a_packaged_name_goes_before_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("icons").mkdir()
    with pytest.raises(ConfigError, match=r"stage1\.epoch: unknown key"):
        oltr_ext.train("icons", out="run", settings={"stage1.epoch": 3})
    Path("birds").mkdir()
    Path("birds/data.yaml").touch()  # of an import
    with pytest.raises(ConfigError, match=r"no manifest\.json; did you mean birds.data\.yaml\?"):
        oltr_ext.train("birds", out="run")


def test_a_mapping_trains_as_its_file_does(data: Path, finished: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = oltr_ext.train(config(data), method=None, out=tmp_path / "run", say=said.append)
    model = "model.safetensors"
    assert (run / model).read_bytes() == (finished / model).read_bytes()
    assert said
    with pytest.raises(ConfigError, match=r"stage1\.epoch"):
        oltr_ext.train(config(data), out=run, settings={"stage1.epoch": 3})
