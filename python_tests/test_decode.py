"""Reading image files: upright, on white, eight bits; and whatever cannot be read is damage."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from tiny import config, write_data

from oltr_ext.cli import main
from oltr_ext.config.loading import make_config
from oltr_ext.config.schema import IconsData, ListData, PackData
from oltr_ext.data import ImageError, read_image, read_rgb
from oltr_ext.data.lists import UNREADABLE
from oltr_ext.data.transforms import LONGEST
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.verify import check_data
from oltr_ext.serve.inputs import pixels_of

TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation: how the pixels lie in the file."""


def lists(folder, *names, **keys):
    (folder / "l.txt").write_text("".join(f"{name} {n}\n" for n, name in enumerate(names)))
    parts = {part: folder / "l.txt" for part in ("train", "val", "test")}
    return ListData(kind="lists", **parts, workers=0, **keys)


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_upright_wherever_they_are_read(tmp_path, orientation, mode):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (24, 40), np.uint8)
    upright = Image.fromarray(grey).convert("RGB" if mode == "RGB" else "L")
    if mode == "RGB":
        upright.putpixel((3, 5), (255, 0, 0))
    stored = upright
    if mode == "I;16":
        stored = Image.fromarray(grey.astype(np.uint16) << 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.save(tmp_path / "plain.png")
    stored.transpose(TURNED[orientation]).save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "phone.png"), upright)
    data = lists(tmp_path, "phone.png", "plain.png", image_size=32, augment={"fit": "crop"})
    splits = load_splits(data)
    for part in (splits.train, splits.plain, splits.val, splits.test):
        torch.manual_seed(0)
        first = part[0][0]
        torch.manual_seed(0)
        assert torch.equal(first, part[1][0])
    assert splits.test.image(0).size == (40, 24)  # as the report shows it
    pack = PackData(kind="pack", name="mine.npz")
    for asked, shape in (
        (splits.data, (3, 32, 32)),
        (pack, (3, 32, 32)),
        (pack, (1, 32, 32)),
        (IconsData(kind="icons"), (1, 32, 32)),
    ):
        one, other = (pixels_of(asked, shape, tmp_path / f"{n}.png") for n in ("phone", "plain"))
        assert one.shape == shape and torch.equal(one, other)


def test_damaged_exif_is_no_damage(tmp_path):
    image = Image.new("RGB", (20, 10), "red")
    image.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x00garbage")
    assert read_image(tmp_path / "a.jpg").size == (20, 10)


def test_transparency_lies_on_white(tmp_path):
    """What an image editor keeps under it is often black, and so was all of an icon."""
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (4, 4, 12, 12))
    image.save(tmp_path / "rgba.png")
    image.convert("LA").save(tmp_path / "la.png")
    image.quantize().save(tmp_path / "p.png")
    keyed = Image.new("L", (16, 16), 7)
    keyed.paste(0, (4, 4, 12, 12))
    keyed.save(tmp_path / "keyed.png", transparency=7)
    want = np.full((16, 16, 3), 255, np.uint8)
    want[4:12, 4:12] = 0
    for name in ("rgba", "la", "p", "keyed"):
        np.testing.assert_array_equal(read_rgb(tmp_path / f"{name}.png"), want, err_msg=name)


@pytest.mark.parametrize("how", ["P5", "P2"])
def test_grey_of_sixteen_bits_that_pillow_holds_in_32(tmp_path, how):
    grey = np.random.default_rng(0).integers(0, 65536, (24, 40), np.uint16)
    grey[0, :2] = 0, 65535
    pixels = grey.astype(">u2").tobytes() if how == "P5" else " ".join(map(str, grey.flat)).encode()
    (tmp_path / "a.pgm").write_bytes(f"{how}\n40 24\n65535\n".encode() + pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.pgm"), (grey >> 8).astype(np.uint8))
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"pixels of 32 bits \(mode I\)"):
        read_image(tmp_path / "a.tif")


def damaged_spider() -> bytes:
    """AttributeError in Pillow: an image of a stack that was never opened."""
    file = io.BytesIO()
    Image.new("F", (10, 12)).save(file, "SPIDER")
    return file.getvalue()[:107] + b"\x7f" + file.getvalue()[108:]


def too_long() -> bytes:
    file = io.BytesIO()
    Image.new("1", (20_000, 1)).save(file, "PNG")
    assert len(file.getvalue()) < 200
    return file.getvalue()


DAMAGE = {
    "a.spi": (damaged_spider, "AttributeError in its decoder: .*stkoffset"),
    "a.png": (too_long, f"20000 x 1 pixels, more than {LONGEST} times as long as wide"),
    "b.png": (lambda: b"no image", "cannot identify image file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_counted_and_found(tmp_path, name):
    made, message = DAMAGE[name]
    write_data(tmp_path)
    (tmp_path / name).write_bytes(made())
    values = config(tmp_path)
    values["data"]["augment"] = "photo"  # which crops
    for part in ("train", "val"):
        file = tmp_path / f"{part}.txt"
        file.write_text(f"{name} 0\n{file.read_text()}")
    data = make_config(values).data
    splits = load_splits(data)
    for images in (splits.train, splits.plain, splits.val):
        with pytest.raises(
            ValueError, match=rf"{images.file}:1: cannot read image .*{name}: "
        ) as e:
            images[0]
        assert message.split(".*")[0] in str(e.value) and "\n" not in str(e.value)
    splits = load_splits(data.model_copy(update={"max_bad_images": 1}))
    for images, label in ((splits.train, 0), (splits.plain, 0), (splits.val, UNREADABLE)):
        assert images[0][1] == label and images.bad.tolist().count(True) == 1
    problems = [p for p in check_data(data).problems if name in p and "cannot be decoded" in p]
    assert len(problems) == 2 and all(p.startswith(("train: 1", "val: 1")) for p in problems)
    with pytest.raises(ValueError, match=rf"cannot read image .*{name}: {message}"):
        pixels_of(splits.data, (3, 16, 16), tmp_path / name)
    (tmp_path / "mine.yaml").write_text(str(values).replace("'", '"'))
    assert main(["data", "check", str(tmp_path / "mine.yaml")]) == 1


@pytest.mark.parametrize("kind", [TypeError, AttributeError, KeyError, struct.error, MemoryError])
def test_whatever_a_decoder_raises_is_damage(tmp_path, monkeypatch, kind):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")

    def fail(_):
        raise kind("of two\nlines")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ImageError, match=rf"^{kind.__name__} in its decoder: .?of two"):
        read_image(tmp_path / "a.png")
    images = load_splits(lists(tmp_path, "a.png", max_bad_images=1)).test
    assert images[0][1] == UNREADABLE


def test_a_long_image_taken_whole_is_none(tmp_path):
    (tmp_path / "a.png").write_bytes(too_long())
    shown, _ = load_splits(lists(tmp_path, "a.png", image_size=32)).test[0]
    assert shown.shape == (3, 32, 32)
    image = pixels_of(IconsData(kind="icons"), (1, 32, 32), tmp_path / "a.png")
    assert image.shape == (1, 32, 32)


def test_an_image_without_pixels_is_none():
    for none in (Image.new("L", (0, 5)), Image.new("RGB", (5, 0))):
        for read in (read_image, read_rgb):
            with pytest.raises(ImageError, match=r"x [05] pixels: there is nothing to see"):
                read(none)


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    assert Image.open(tmp_path / "deep.png").mode.startswith("I;16")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "deep.png")), grey >> 8)
    with pytest.raises(ImageError, match=r"pixels of 32 bits \(mode F\); expected 8 or 16"):
        read_image(tmp_path / "float.tiff")
