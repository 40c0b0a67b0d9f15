"""Augmentation: what each key and each preset does, and which one small images get."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import config, write_data
from torchvision.transforms import v2

from oltr_ext._pixels import IMAGENET_MEAN, IMAGENET_STD
from oltr_ext.config.loading import load_config, make_config
from oltr_ext.config.pictures import recipe, settled
from oltr_ext.config.schema import ListData
from oltr_ext.data import GENTLE, Augment, TensorImages, network_input
from oltr_ext.data.icons import load_icons
from oltr_ext.data.samplers import mix
from oltr_ext.engine import checkpoint
from oltr_ext.engine.splits import load_splits, make_loader
from oltr_ext.engine.train import train
from oltr_ext.models import Wants
from oltr_ext.serve.trained import load_trained

PRESETS = ("photo", "gentle", "randaugment", "trivialaugment", "augmix")


@pytest.fixture
def icons():
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(0, 255, (10, 1, 32, 32), dtype=np.uint8))


def batch(images, keys):
    ((pixels, labels),) = make_loader(images, [np.asarray(keys)], 0)
    return pixels, labels


def test_augmentation_is_a_pure_function_of_its_key(icons):
    augment = Augment(shift=3, scale=0.2, stretch=0.1, rotate=10, flip=0.5, erase=0.5, ink=0.2)
    data = TensorImages(icons, np.arange(10), augment, seed=5)
    keys = np.stack([np.arange(100, 110), np.arange(10)], axis=1)
    whole, labels = batch(data, keys)
    part, _ = batch(data, keys[[7, 2]])
    torch.testing.assert_close(part, whole[[7, 2]], rtol=0, atol=1e-6)
    assert torch.equal(labels, torch.arange(10))
    moved, _ = batch(data, keys + np.array([1, 0]))
    assert (moved != whole).flatten(1).any(dim=1).all()


def test_plain_indices_are_never_augmented(icons):
    data = TensorImages(icons, np.zeros(10, np.int64), Augment(shift=3, erase=1.0))
    images, _ = batch(data, [4, 4])
    assert torch.equal(images[0], icons[4].float() / 255) and torch.equal(images[0], images[1])


def test_each_augmentation_does_what_it_says():
    dot = torch.zeros(400, 1, 32, 32)
    dot[:, :, 16, 20] = 1.0
    keys = np.arange(400).astype(np.uint64)
    x, y = torch.arange(32.0), torch.arange(32.0)

    def centre(images):
        mass = images.sum(dim=(1, 2, 3))
        return (images.sum(dim=(1, 2)) @ x) / mass, (images.sum(dim=(1, 3)) @ y) / mass

    cx, cy = centre(Augment(shift=4)(dot, keys))
    assert 3.5 < (cx - 20).abs().max() < 4.1 and 3.5 < (cy - 16).abs().max() < 4.1
    cx, _ = centre(Augment(flip=0.25)(dot, keys))
    assert set(cx.round().tolist()) == {11.0, 20.0}
    assert 0.18 < (cx < 15).float().mean() < 0.32
    ones = torch.ones(400, 1, 32, 32)
    erased = 1 - Augment(erase=0.5)(ones, keys).mean(dim=(1, 2, 3))
    assert 0.4 < (erased > 0).float().mean() < 0.6
    assert erased[erased > 0].min() > 0.04 and erased.max() < 0.27
    ink = Augment(ink=0.5)(ones, keys)[:, 0, 0, 0]
    assert 0.66 < ink.min() < 0.75 and 1.4 < ink.max() < 1.51
    assert torch.equal(Augment()(dot, keys), dot)


def test_another_default_dtype_changes_nothing(icons):
    """`torch.set_default_dtype`, which users set before they train."""
    data = TensorImages(icons, np.arange(10), GENTLE)
    keys = np.stack([np.arange(10), np.arange(10)], axis=1)
    want, _ = batch(data, keys)
    torch.set_default_dtype(torch.float64)
    try:
        got, _ = batch(data, keys)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float32 and torch.equal(got, want)


def test_a_shift_is_a_share_of_the_side():
    keys = np.arange(50).astype(np.uint64)
    for size in (32, 64):
        dot = torch.zeros(50, 1, size, size)
        dot[..., size // 2, size // 2] = 1.0
        where = Augment(shift=4)(dot, keys).sum(dim=(1, 2)) @ torch.arange(float(size))
        moved = (where - size // 2).abs().max() / size
        assert 0.11 < moved < 0.13


def test_what_comes_into_view_of_a_colour_image_is_its_ground():
    """So a character on white paper stays one, and one bright on black is as in a grey pack."""
    keys = np.arange(40).astype(np.uint64)
    paper = torch.tensor([1.0, 0.9, 0.8])[None, :, None, None].expand(40, 3, 32, 32)
    augment = Augment(shift=8, scale=0.3, rotate=30, erase=1.0, ink=0.5)
    torch.testing.assert_close(augment(paper, keys), paper)
    ink = paper.clone()
    ink[:, :, 8:24, 8:24] = 0.0
    assert (GENTLE(ink, keys) != ink).flatten(1).any(dim=1).all()
    grey = torch.from_numpy(load_icons().images[:40, None]) / 255
    torch.testing.assert_close(GENTLE(grey.expand(-1, 3, -1, -1), keys)[:, :1], GENTLE(grey, keys))


def write_icons(folder, count=12, ground=0):
    """Some training icons as a list of PNG files, each a class; their pixels, and the list."""
    pack = load_icons()
    rows = pack.rows("train")[:: len(pack.rows("train")) // count][:count]
    pixels = np.maximum(pack.images[rows], ground)
    for row, image in zip(rows, pixels, strict=True):
        Image.fromarray(image).save(folder / f"{row}.png")
    text = "".join(f"{row}.png {n}\n" for n, row in enumerate(rows))
    (folder / "icons.txt").write_text(text)
    names = {part: folder / "icons.txt" for part in ("train", "val", "test")}
    return pixels, {"kind": "lists", "root": folder, "workers": 0, **names}


def test_small_lists_are_augmented_as_packs_are(tmp_path):
    """The same thing, to the rounding of float32: so the same files train alike."""
    pixels, values = write_icons(tmp_path)
    lists = load_splits(ListData(**values))
    pack = TensorImages(torch.from_numpy(pixels[:, None]), lists.train.labels, GENTLE)
    keys = np.stack([np.arange(50, 62), np.arange(12)], axis=1)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    for rows in (keys, keys[:, 1]):
        got, labels = batch(lists.train, rows)
        want, again = batch(pack, rows)
        assert torch.equal(labels, again) and got.shape == (12, 3, 32, 32)
        torch.testing.assert_close(got * std + mean, want.expand(-1, 3, -1, -1))
    assert lists.note == (
        "images: 32 x 32 (pad), augmented by `gentle` (shift 3, scale 0.2, stretch 0.1, rotate 10, "
        "erase 0.25, ink 0.2); data.image_size and data.augment chosen by the size of the images"
    )


@pytest.mark.parametrize("size", [32, 160])
@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_draws_by_seed_and_position_alone(tmp_path, preset, size):
    _, values = write_icons(tmp_path)
    wave = np.add.outer(np.arange(size), np.arange(size))[..., None] * [1, 2, 3]
    wave = (128 + 100 * np.sin(wave / 9)).astype(np.uint8)
    for line in (tmp_path / "icons.txt").read_text().splitlines():
        Image.fromarray(wave).save(tmp_path / line.split()[0])
    splits = load_splits(ListData(**values, image_size=size, augment=preset))
    keys = np.stack([np.arange(12), np.arange(12)], axis=1)
    state = torch.get_rng_state()
    whole, _ = batch(splits.train, keys)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    torch.testing.assert_close(batch(splits.train, keys[[7, 2]])[0], whole[[7, 2]])
    splits.train.seed = 1
    assert not torch.equal(batch(splits.train, keys)[0], whole)
    plain, _ = batch(splits.plain, np.arange(12))
    assert whole.shape == plain.shape == (12, 3, size, size)
    changed = (whole - plain).abs().flatten(1).mean(dim=1)
    assert (changed > 0).sum() >= 6  # `trivialaugment` and `augmix` may do nothing now and then
    for images in (splits.train, splits.plain):  # what loader processes hand over
        assert images.__getitems__(keys[:2, 1])[0].dtype == torch.uint8


def test_none_changes_nothing(tmp_path):
    pixels, values = write_icons(tmp_path, ground=77)
    splits = load_splits(ListData(**values, augment="none"))
    keys = np.stack([np.arange(12), np.arange(12)], axis=1)
    assert torch.equal(batch(splits.train, keys)[0], batch(splits.plain, keys[:, 1])[0])
    want = network_input(torch.from_numpy(pixels[:, None]).expand(-1, 3, -1, -1))
    assert torch.equal(batch(splits.plain, keys[:, 1])[0], want)


@pytest.mark.parametrize(
    ("key", "value"),
    [("crop", 0.3), ("flip", 1.0), ("jitter", 0.5), ("policy", "randaugment"), ("rotate", 40.0)],
)
def test_single_keys_add_to_a_preset(tmp_path, key, value):
    _, values = write_icons(tmp_path)
    plain = load_splits(ListData(**values, augment="none"))
    data = ListData(**values, augment={"preset": "none", key: value})
    train = load_splits(data).train
    keys = np.stack([np.arange(12), np.arange(12)], axis=1)
    images, still = batch(train, keys)[0], batch(plain.train, keys)[0]
    assert (images != still).flatten(1).any(dim=1).sum() > 8
    if key == "flip":
        torch.testing.assert_close(images, still.flip(3))


def test_pictures_are_fitted_as_said(tmp_path):
    """What each way shows of 40 x 20 pixels, green on the left and red from the 12th on."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :12], pixels[:, 12:] = (0, 255, 0), (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "l.txt").write_text("a.png 0\n")
    parts = {part: tmp_path / "l.txt" for part in ("train", "val", "test")}

    def fitted(fit, size=16):
        data = ListData(kind="lists", **parts, image_size=size, augment={"fit": fit})
        image, _ = load_splits(data).plain[0]
        assert image.shape == (3, size, size)
        return image

    crop, pad, resize = (fitted(fit) for fit in ("crop", "pad", "resize"))
    assert crop[1, :, 0].min() > 150 and crop[0, :, 2:].min() > 250  # its sides cut off
    assert pad[0, 4:12, 6:].min() > 250 and pad[1, 4:12, :4].min() > 250  # all of it, half as high
    assert pad[:, :4].flatten(1).unique(dim=1).tolist() == [[255], [0], [0]]  # the border's median
    assert resize[1, :, :4].min() > 250 and resize[0, :, 6:].min() > 250  # all of it, as high
    assert torch.equal(fitted("pad", 40)[:, 10:30], torch.from_numpy(pixels).permute(2, 0, 1))


def test_the_size_of_the_images_chooses(tmp_path):
    def chosen(side, wants=None, **keys):
        for n in range(5):  # one large among small is no matter
            Image.new("RGB", (side if n else 500, 8)).save(tmp_path / f"{n}.png")
        (tmp_path / "l.txt").write_text("".join(f"{n}.png 0\n" for n in range(5)))
        parts = {part: tmp_path / "l.txt" for part in ("train", "val", "test")}
        found = settled(ListData(kind="lists", **parts, **keys), wants)
        assert settled(found) is found
        return found.image_size, found.augment.preset, found.augment.fit

    assert chosen(28) == (28, "gentle", "pad")
    assert chosen(9) == (16, "gentle", "pad")
    assert chosen(128) == (128, "gentle", "pad")
    assert chosen(129) == (224, "photo", "crop")
    assert chosen(32, Wants(224, "bicubic")) == (224, "gentle", "pad")
    assert chosen(300, image_size=64) == (64, "gentle", "pad")
    assert chosen(32, image_size=224) == (224, "gentle", "pad")
    assert chosen(300, image_size=224) == (224, "photo", "crop")
    assert chosen(32, augment="photo") == (32, "photo", "crop")
    assert chosen(32, augment="randaugment") == (32, "randaugment", "pad")
    assert chosen(300, augment="randaugment") == (224, "randaugment", "crop")
    assert chosen(300, augment={"fit": "resize"}) == (224, "photo", "resize")
    (tmp_path / "l.txt").unlink()
    missing = {part: tmp_path / "l.txt" for part in ("train", "val", "test")}
    assert settled(ListData(kind="lists", **missing)).image_size == 224  # told elsewhere


GENTLY = {"shift": 3, "scale": 0.2, "stretch": 0.1, "rotate": 10, "erase": 0.25, "ink": 0.2}


@pytest.mark.parametrize(
    ("preset", "size", "keys"),
    [
        ("photo", 224, {"fit": "crop", "crop": 0.08, "flip": 0.5, "jitter": 0.4}),
        ("photo", 32, {"fit": "crop", "crop": 0.08, "flip": 0.5, "jitter": 0.4}),
        ("gentle", 224, {"fit": "pad", **GENTLY}),
        ("none", 224, {"fit": "pad"}),
        ("augmix", 32, {"fit": "pad", "policy": "augmix", "shift": 3}),
        ("augmix", 224, {"fit": "crop", "policy": "augmix", "crop": 0.08, "flip": 0.5}),
    ],
)
def test_a_preset_is_the_keys_that_the_readme_gives(tmp_path, preset, size, keys):
    missing = {part: tmp_path / "l.txt" for part in ("train", "val", "test")}
    data = settled(ListData(kind="lists", **missing, augment=preset, image_size=size))
    nothing = {"crop": 1, "flip": 0, "jitter": 0, "policy": "none", **dict.fromkeys(GENTLY, 0)}
    assert data.augment.model_dump() == {**nothing, **keys, "preset": preset}
    how = recipe(data)
    assert (how.flip, how.augment.flip) == (keys.get("flip", 0), 0)  # done once
    flipped = data.augment.model_copy(update={"flip": 0.3})
    assert recipe(data.model_copy(update={"augment": flipped})).flip == 0.3


def test_photos_are_those_of_torchvision(tmp_path):
    """The pipeline of the published results, with its draws."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8))
    image.save(tmp_path / "a.png")
    (tmp_path / "l.txt").write_text("a.png 0\n" * 8)
    parts = {part: tmp_path / "l.txt" for part in ("train", "val", "test")}
    data = ListData(kind="lists", **parts, workers=0, augment="photo", image_size=32)
    tail = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    steps = (v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4, 0))
    published = v2.Compose([v2.PILToTensor(), *steps, *tail])
    judged = v2.Compose([v2.PILToTensor(), v2.Resize(37), v2.CenterCrop(32), *tail])
    keys = np.stack([np.arange(8), np.arange(8)], axis=1)
    splits = load_splits(data)
    for n, got in enumerate(batch(splits.train, keys)[0]):
        torch.default_generator.manual_seed(int(mix(0, n) >> np.uint64(1)))
        torch.testing.assert_close(got, published(image))
    torch.testing.assert_close(batch(splits.test, [0])[0][0], judged(image))


def test_what_was_chosen_is_said_and_kept(tmp_path):
    write_data(tmp_path)
    values = {**config(tmp_path), "stage2": None}
    del values["data"]["image_size"]
    said = []
    train(make_config(values), tmp_path / "run", say=said.append)
    opening = said[0].splitlines()[1]
    assert opening.startswith("images: 16 x 16 (pad), augmented by `gentle` (shift 3, ")
    assert opening.endswith("data.image_size and data.augment chosen by the size of the images")
    train(make_config(values), tmp_path / "run", say=said.append)
    assert said[-1].endswith("is trained already")
    other = make_config(values, ["data.augment.rotate=3"])
    with pytest.raises(ValueError, match=r"data.augment.rotate = 10.0, and this one asks for 3"):
        train(other, tmp_path / "run")


def test_a_run_from_before_there_was_a_choice_was_trained_on_photos(tmp_path):
    write_data(tmp_path)
    values = {**config(tmp_path), "stage2": None}
    train(make_config(values, ["data.augment=photo"]), tmp_path / "run")
    for file in (tmp_path / "run").glob("*.safetensors"):
        tensors, header = checkpoint.load(file)
        del header["config"]["data"]["augment"]
        checkpoint.save(file, tensors, header)
    found = load_trained(tmp_path / "run", device="cpu").config.data
    assert (found.augment.preset, found.augment.fit, found.image_size) == ("photo", "crop", 16)
    with pytest.raises(ValueError, match=r"augment.preset = photo, and this one asks for gentle"):
        train(make_config(values), tmp_path / "run")
    said = []
    train(make_config(values, ["data.augment=photo"]), tmp_path / "run", say=said.append)
    assert said[-1].endswith("is trained already")


def test_a_preset_may_stand_for_its_keys():
    spelt = load_config("icons", [f"data.augment={GENTLY}"])
    assert load_config("icons") == spelt  # its runs and tables stay those of before
    assert load_config("icons", ["data.augment.flip=0.5"]).data.augment.shift == 3
    assert load_config("icons", ["data.augment=none"]).data.augment.shift == 0
    data = load_config("imagenet_lt", ["data.augment.flip=0.1"]).data
    assert (data.augment.preset, data.augment.flip) == ("photo", 0.1)
