"""List files and their errors, batches as pure functions of their keys, transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from oltr_ext.data import (
    ImageList,
    Recipe,
    TensorImages,
    eval_transform,
    icon_image,
    read_names,
    train_transform,
)
from oltr_ext.data.lists import UNREADABLE

PHOTO = Recipe(crop=0.08, flip=0.5, jitter=0.4)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "a b").mkdir()
    for n in range(4):
        pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a b" / f"{n}.png")
    lines = [f"a b/{n}.png {n % 3 - (n == 3)}" for n in range(4)]
    (tmp_path / "train.txt").write_text("\n".join([lines[0], "", *lines[1:]]) + "\n")
    return tmp_path


def test_image_list_reads_the_published_format(folder):
    images = ImageList(folder / "train.txt", None, eval_transform(32))
    assert len(images) == 4
    assert images.labels.tolist() == [0, 1, 2, -1]
    image, label = images[1]
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8 and label == 1


def test_random_transforms_depend_on_seed_and_position_only(folder):
    images = ImageList(folder / "train.txt", folder, train_transform(32, PHOTO), seed=3)
    keys = np.array([[10, 2], [11, 2], [12, 0]])
    state = torch.get_rng_state()
    a, labels = images.__getitems__(keys)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    b, _ = images.__getitems__(keys[1:])
    assert torch.equal(a[1:], b)
    assert not torch.equal(a[0], a[1])
    assert labels.tolist() == [2, 2, 0]
    other = ImageList(folder / "train.txt", folder, train_transform(32, PHOTO), seed=4)
    assert not torch.equal(a, other.__getitems__(keys)[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a b/1.png x", r"train.txt:2: expected `path label` .* got 'a b/1.png x'"),
        ("a b/1.png -2", "train.txt:2: expected `path label`"),
        ("17", "train.txt:2: expected `path label`"),
    ],
)
def test_bad_lines_are_named(folder, line, message):
    (folder / "train.txt").write_text("a b/0.png 0\n" + line)
    with pytest.raises(ValueError, match=message):
        ImageList(folder / "train.txt", folder, eval_transform())


def test_missing_things_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no list file .*none.txt"):
        ImageList(folder / "none.txt", folder, eval_transform())
    (folder / "train.txt").write_text("a b/0.png 0\na b/9.png 0")
    with pytest.raises(FileNotFoundError, match=r"train.txt:2: no image .*9.png"):
        ImageList(folder / "train.txt", folder, eval_transform())
    (folder / "train.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"train.txt lists no images"):
        ImageList(folder / "train.txt", folder, eval_transform())


def test_class_names(tmp_path):
    file = tmp_path / "names.txt"
    with pytest.raises(FileNotFoundError, match=r"class_names: no file .*names.txt"):
        read_names(file)
    file.write_bytes("\ufeffcr\u00eape\r\n\nred fox\n".encode())  # with a BOM
    assert read_names(file) == ["cr\u00eape", "red fox"]
    file.write_bytes("cr\u00eape\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names.txt is not UTF-8 text"):
        read_names(file)
    file.write_text("crane\nowl\ncrane\ncrane\nfox\n")  # ImageNet has two of them
    assert read_names(file) == ["crane", "owl", "crane (2)", "crane (3)", "fox"]
    file.write_text("crane\ncrane \ncrane (2)\n")
    assert read_names(file) == ["crane", "crane (2)", "crane (2) (2)"]
    file.write_text("a\u2028b\x0cc\nd\n")  # a line of the labels, whatever else ends lines
    assert read_names(file) == ["a\u2028b\x0cc", "d"]


def test_truncated_image_is_named(folder):
    path = folder / "a b" / "1.png"
    path.write_bytes(path.read_bytes()[:900])
    images = ImageList(folder / "train.txt", folder, eval_transform())
    with pytest.raises(ValueError, match=r"train.txt:3: cannot read image .*1.png"):
        images[1]
    path.write_text("no image at all")
    with pytest.raises(ValueError, match=r"cannot read image .*1.png"):
        images[1]


def test_an_image_too_large_to_be_decoded_is_an_unreadable_one(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # twice as many are an error to PIL
    images = ImageList(folder / "train.txt", folder, eval_transform())
    with pytest.raises(ValueError, match=r"train.txt:1: cannot read image .* decompression bomb"):
        images[0]
    assert ImageList(folder / "train.txt", folder, eval_transform(), max_bad=1)[0][1] == UNREADABLE


@pytest.fixture
def icons():
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(0, 255, (10, 1, 32, 32), dtype=np.uint8))


def test_bad_tensors_are_named(icons):
    with pytest.raises(TypeError, match="expected uint8"):
        TensorImages(icons.float(), np.zeros(10))
    with pytest.raises(ValueError, match=r"got \(10, 1, 32, 32\) and \(9,\)"):
        TensorImages(icons, np.zeros(9))
    with pytest.raises(ValueError, match="empty"):
        TensorImages(icons[:0], np.zeros(0))


def test_any_image_becomes_an_icon():
    page = Image.new("L", (64, 48), 255)
    page.paste(0, (20, 12, 44, 36))
    icon = icon_image(page)
    assert icon.shape == (32, 32) and icon.dtype == np.uint8
    assert icon[16, 16] == 255 and icon[0, 0] == 0
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (8, 8, 24, 24))
    np.testing.assert_array_equal(icon_image(clear) > 0, np.pad(np.ones((16, 16), bool), 8))
    grey = Image.new("L", (32, 32), 7)  # a colour of it is transparent
    grey.paste(0, (8, 8, 24, 24))
    grey.info["transparency"] = 7
    np.testing.assert_array_equal(icon_image(grey), icon_image(clear))
    own = icon_image(Image.fromarray(icon))
    np.testing.assert_array_equal(own, icon)


def test_unreadable_images_are_counted_replaced_in_training_and_left_out_elsewhere(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(8):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(tmp_path / f"{n}.png")
    for n in (2, 6, 7):
        (tmp_path / f"{n}.png").write_bytes((tmp_path / f"{n}.png").read_bytes()[:200])
    (tmp_path / "list.txt").write_text("\n".join(f"{n}.png {n // 4}" for n in range(8)))

    def images(**options):
        return ImageList(tmp_path / "list.txt", None, eval_transform(16), **options)

    train = images(max_bad=3, substitute=True)
    assert train.problem() is None
    pixels, labels = train.__getitems__(np.array([2, 3, 6, 7, 4]))
    assert labels.tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(pixels[0], pixels[1])  # the next of its class,
    assert torch.equal(pixels[2], pixels[4]) and torch.equal(pixels[3], pixels[4])  # going round
    assert train.bad.nonzero().flatten().tolist() == [2, 6, 7]
    assert train.problem() == f"{train.file}: 3 of 8 images cannot be read, the first 2.png"
    again, _ = images(max_bad=3, substitute=True).__getitems__(np.array([4, 7, 6, 3, 2]))
    assert torch.equal(again.flip(0), pixels)  # whatever was found before
    few = images(max_bad=1, substitute=True)
    few[2]
    with pytest.raises(ValueError, match=r"2 of 8 .* the first 2.png; data.max_bad_images = 1"):
        few[6]
    for n in (4, 5):
        (tmp_path / f"{n}.png").write_text("no image")
    with pytest.raises(ValueError, match="no image of class 1 can be read"):
        images(max_bad=8, substitute=True)[4]

    val = images(max_bad=8)
    pixels, labels = val.__getitems__(np.arange(8))
    assert labels.tolist() == [0, 0, UNREADABLE, 0, *[UNREADABLE] * 4]
    assert pixels.shape == (8, 3, 16, 16)
    val.names = list("abcdefgh")
    val.leave_out([2, 4, 5])
    assert val.names == ["a", "b", "d", "g", "h"]
    assert val.paths == ["0.png", "1.png", "3.png", "6.png", "7.png"]
    assert val.labels.tolist() == [0, 0, 0, 1, 1] and val.lines == [1, 2, 4, 7, 8]
    assert val.problem() == f"{val.file}: 5 of 8 images cannot be read, the first 2.png"
    val.leave_out([3, 4])
    assert val.problem() == f"{val.file}: 5 of 8 images cannot be read, the first 2.png"
    with pytest.raises(ValueError, match="none of its images can be read"):
        val.leave_out([0, 1, 2])
