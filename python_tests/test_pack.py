"""Packs: what holds is read to the same values, what does not is told in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import config

from oltr_ext.cli import main
from oltr_ext.config.loading import load_config, make_config
from oltr_ext.config.schema import PackData
from oltr_ext.data.pack import ARRAYS, MADE_BY, SPLITS, Pack, cache_folder, load_pack, save_pack
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import train
from oltr_ext.serve import trained as reading
from oltr_ext.serve.assess import assess
from oltr_ext.serve.inputs import pixels_of
from oltr_ext.serve.predict import predict_images
from oltr_ext.serve.trained import load_embedder, load_trained

COUNTS = (14, 9, 4, 3)


def stripes(shape: int, rng: np.random.Generator) -> np.ndarray:
    wave = 128 + 90 * np.sin(np.arange(32) * (0.4, 0.8, 1.3, 2.0, 2.8, 3.1)[shape])
    pixels = wave[None, :] + rng.normal(0, 25, (32, 32))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def tiny_pack() -> Pack:
    """Four known classes, one open class for validation and one for test."""
    rng = np.random.default_rng(0)
    parts = [(0, c, n) for c, n in enumerate(COUNTS)]
    parts += [(s, c, n) for s, n in ((1, 4), (2, 6)) for c in range(4)] + [(3, 4, 8), (4, 5, 10)]
    rows = [(s, c) for s, c, n in parts for _ in range(n)]
    split, label = np.array(rows).T
    return Pack(
        images=np.stack([stripes(c, rng) for c in label]),
        class_index=label,
        split_index=split,
        source_index=np.minimum(split, 2) % 3,
        class_names=[*"abcdef"],
        source_names=["one", "two", "three"],
        about="noise",
    )


@pytest.fixture
def arrays(tmp_path):
    """The arrays of a good file, to be spoilt."""
    save_pack(tmp_path / "good.npz", tiny_pack())
    with np.load(tmp_path / "good.npz") as file:
        return dict(file)


def test_a_pack_is_read_as_it_was_written_and_equal_packs_are_equal_bytes(tmp_path):
    pack = tiny_pack()
    save_pack(tmp_path / "a.npz", pack)
    save_pack(tmp_path / "b.npz", tiny_pack())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    back = load_pack(str(tmp_path / "a.npz"))
    for key in ARRAYS:
        np.testing.assert_array_equal(getattr(back, key), getattr(pack, key))
    assert (back.num_known, back.known_names, back.about) == (4, [*"abcd"], "noise")
    assert back.train_counts.tolist() == list(COUNTS)
    images, labels = back.split("open_test")
    assert images.shape == (10, 1, 32, 32) and images.dtype == torch.uint8
    assert labels.tolist() == [-1] * 10
    assert back.image_id(int(back.rows("test")[0])) == "three:a"
    with pytest.raises(ValueError, match="expected a split of train, val"):
        back.rows("valid")


def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_pack(tmp_path / "a.npz", tiny_pack())
    before = (tmp_path / "a.npz").read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(KeyboardInterrupt):
        save_pack(tmp_path / "a.npz", tiny_pack())
    assert (tmp_path / "a.npz").read_bytes() == before


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "a.npz"
    save_pack(path, tiny_pack())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"^{path} is (truncated or damaged|no pack): ") as caught:
        load_pack(str(path))
    assert "\n" not in str(caught.value)


def test_a_damaged_pack_of_the_package_says_how_to_make_it_again(tmp_path, monkeypatch):
    monkeypatch.setenv("OLTR_EXT_CACHE", str(tmp_path))
    path = tmp_path / "glyphs-2000.npz"
    save_pack(path, tiny_pack())
    blob = bytearray(path.read_bytes())
    blob[4000] ^= 1  # a pixel
    path.write_bytes(bytes(blob))
    with pytest.raises(ValueError, match=r"damaged: .*; make it: oltr data make glyphs$"):
        load_pack("glyphs-2000")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "is no pack: it has no array images"),
        (
            {"images": np.zeros((30, 32, 32))},
            r"expected images \(N, S, S\) or .* of uint8, S at least 8, got .*float64",
        ),
        ({"images": np.zeros((3, 32, 32), np.uint8)}, r"expected class_index of 3 integers, got"),
        ({"class_index": (0, 9)}, "expected class_index from 0 to 5, got 0 to 9"),
        ({"split_index": (0, -1)}, "expected split_index from 0 to 4, got -1 to 4"),
        ({"source_index": (0, 3)}, "expected source_index from 0 to 2, got 0 to 3"),
        ({"class_index": (-1, 0)}, "class 'a' is in train and in open_test: the two may share no"),
        ({"class_index": (-1, 4)}, "class 'e' is in open_val and in open_test"),
        ({"class_index": (30, 5)}, "class 'f' is in val and in open_test"),
        ({"split_index": "val"}, "there is no val image"),
        ({"class_names": np.array([None] * 6)}, "is no pack: "),
    ],
)
def test_what_does_not_hold_is_named(arrays, tmp_path, change, message):
    for key, value in change.items():
        if value is None:
            del arrays[key]
        elif isinstance(value, str):
            arrays[key][arrays[key] == SPLITS.index(value)] = 2
        elif isinstance(value, tuple):
            arrays[key][value[0]] = value[1]
        else:
            arrays[key] = value
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        load_pack(str(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_other_files_are_no_packs(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "b.npz").write_text("hello")
    for name in ("a.npy", "b.npz"):
        with pytest.raises(ValueError, match=f"{name} is no pack"):
            load_pack(str(tmp_path / name))


def test_a_pack_that_is_not_there_says_how_to_make_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OLTR_EXT_CACHE", str(tmp_path))
    for name, maker in (("glyphs-18000", "glyphs"), ("icons-large", "icons-large")):
        assert main(["train", name, "--out", str(tmp_path / "out")]) == 1
        told = capsys.readouterr().err
        assert told == f"oltr: no pack {tmp_path}/{name}.npz; make it: oltr data make {maker}\n"
    assert main(["train", "glyphs-2000", "--set", "data.name=glyphs"]) == 1
    assert "no pack glyphs; packs of the package: glyphs-2000, " in capsys.readouterr().err


def test_no_folder_for_the_cache_names_what_sets_it(tmp_path, monkeypatch, capsys):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("OLTR_EXT_CACHE", raising=False)
    monkeypatch.setattr("pathlib.Path.home", unknown)
    for words in (["data", "make", "glyphs"], ["train", "glyphs-2000"]):
        assert main(words) == 1
        told = capsys.readouterr().err
        assert told.endswith("no home folder for the cache: set OLTR_EXT_CACHE to a folder\n")
    (tmp_path / "file").touch()
    monkeypatch.setenv("OLTR_EXT_CACHE", str(tmp_path / "file" / "cache"))
    assert main(["data", "make", "icons-large"]) == 1
    told = capsys.readouterr().err
    assert f"cannot write to the cache {tmp_path}/file/cache (Not a directory): set OLTR_EX" in told
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OLTR_EXT_CACHE", "~/cache")
    assert cache_folder() == tmp_path / "cache"


ROWS = st.one_of(
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(0, 4), st.integers(1, 5)),
)


@given(st.lists(ROWS, max_size=8))
def test_whatever_is_accepted_keeps_known_and_open_apart(rows):
    splits, labels = zip(*[(0, 0), (0, 1), (1, 0), (2, 1), *rows], strict=True)
    try:
        pack = Pack(
            images=np.zeros((len(splits), 32, 32), np.uint8),
            class_index=np.array(labels),
            split_index=np.array(splits),
            source_index=np.zeros(len(splits), np.int64),
            class_names=[*"abcdef"],
            source_names=["x"],
        )
    except ValueError:
        return
    seen = {s: set(pack.class_index[pack.rows(s)].tolist()) for s in SPLITS}
    known, opened = set(range(pack.num_known)), seen["open_val"] | seen["open_test"]
    assert seen["train"] == known >= seen["val"] | seen["test"]
    assert not known & opened and not seen["open_val"] & seen["open_test"]
    for split in SPLITS:
        labels = pack.split(split)[1]
        assert ((labels < 0) == split.startswith("open")).all()


def test_a_pack_trains_and_judges_and_predicts(tmp_path):
    save_pack(tmp_path / "mine.npz", tiny_pack())
    values = config(tmp_path)
    values["data"] = {
        "kind": "pack",
        "name": str(tmp_path / "mine.npz"),
        "augment": {"shift": 1},
        "shots": [8, 4],
    }
    run = make_config(values)
    splits = load_splits(run.data)
    assert (splits.channels, splits.size, splits.class_names) == (1, 32, [*"abcd"])
    assert splits.train.images is splits.plain.images and splits.plain.augment is None
    train(run, tmp_path / "run")
    trained = load_trained(tmp_path / "run", device="cpu")
    result = assess(trained, name="tiny")
    assert result.summary["samples"] == {"known": 24, "open": 10}
    assert result.true_name(30) == "f" and splits.image_id(30) == "three:f"
    Image.fromarray(tiny_pack().images[0]).save(tmp_path / "a.png")
    (answer,) = predict_images(trained, [tmp_path / "a.png"])
    assert answer.closed in "abcd"


def test_a_pack_is_grey_to_a_published_backbone_too(tmp_path, monkeypatch):
    save_pack(tmp_path / "mine.npz", tiny_pack())
    values = config(tmp_path)
    values["data"] = {"kind": "pack", "name": str(tmp_path / "mine.npz")}
    values["model"] = {"backbone": "small_cnn", "weights": "published"}
    seen = []
    build = reading.build_backbone

    def spy(name, *, in_channels, weights, image_size):
        seen.append((in_channels, weights, image_size))
        return build(name, in_channels=in_channels)

    monkeypatch.setattr(reading, "build_backbone", spy)
    embedder = load_embedder(make_config(values), device="cpu")
    assert seen == [(1, "published", 32)]
    images = torch.from_numpy(tiny_pack().images[:2, None]).float()
    assert embedder.model.features(images).shape == (2, 256)


def test_an_image_is_inverted_for_the_packages_own_packs_alone(tmp_path):
    """Others are trained on as they are, light ground or dark."""
    grey = tiny_pack().images[0] // 2 + 128
    Image.fromarray(grey).save(tmp_path / "light.png")
    pixels = torch.from_numpy(grey)[None]
    for name in (*MADE_BY, str(tmp_path / "mine.npz")):
        data = PackData(kind="pack", name=name)
        seen = pixels_of(data, (1, 32, 32), tmp_path / "light.png")
        assert torch.equal(seen, 255 - pixels if name in MADE_BY else pixels)


@pytest.mark.parametrize("method", ["plain", "oltr", "oltr-plus"])
@pytest.mark.parametrize("name", list(MADE_BY))
def test_the_packs_configurations_keep_their_data_and_budget(name, method):
    plain, run = load_config(name), load_config(name, method=method)
    assert run.data == plain.data and run.data.name == name and run.model == plain.model
    assert run.data.augment.flip == 0  # a mirrored character is another one, or none
    stages = [s for s in (run.stage1, run.stage2) if s is not None]
    assert sum(s.epochs for s in stages) == plain.stage1.epochs
