"""CLIP by open_clip: the image encoder as a backbone, classes that start at their names' texts."""

from __future__ import annotations

import copy
import sys

import open_clip
import pytest
import torch
import torch.nn.functional as F
from nets import tiny_clip
from test_backbones_whole import pixels, values
from tiny import stop_after
from torchvision.transforms import v2

from oltr_ext.config.loading import make_config
from oltr_ext.engine.build import build_model
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import train
from oltr_ext.models import Wants, build_backbone, clip_net, wants
from oltr_ext.models.clip_net import text_directions
from oltr_ext.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from oltr_ext.serve.export import export
from oltr_ext.serve.predict import predict_images
from oltr_ext.serve.trained import load_trained

NAMES = ("house", "sea_lion", "crane", "crane")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def given(clip, data, tmp_path):
    """A run on the tiny data whose classes start at their names."""
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "templates.txt").write_text("a photo of a {}.\na drawing of the {}\n")
    made = values(data, {"backbone": f"open_clip:{clip[0]}", "weights": "DEFAULT"})
    made["model"] |= {"templates": str(tmp_path / "templates.txt")}
    made["data"]["class_names"] = str(tmp_path / "names.txt")
    made["stage1"]["classifier_init"] = made["stage2"]["classifier_init"] = "text"
    return made


def answers(net, images, templates):
    """CLIP's own: cosines of images and texts, the mean of each class's texts by direction."""
    spoken = [name.replace("_", " ") for name in NAMES]
    tokens = open_clip.get_tokenizer("ViT-B-32")
    with torch.no_grad():
        texts = [
            net.encode_text(tokens([t.format(n) for t in templates]), normalize=True).mean(0)
            for n in spoken
        ]
        seen = v2.functional.normalize(images, [0.5] * 3, [0.25] * 3)
        return net.encode_image(seen, normalize=True) @ F.normalize(torch.stack(texts), dim=1).T


def test_a_run_starts_as_clip_without_training(clip, given):
    config = make_config(given)
    splits = load_splits(config.data)
    assert splits.class_names == ["house", "sea_lion", "crane", "crane (2)"]
    images = torch.rand(5, 3, 32, 32)
    want = answers(clip[1], images, ["a photo of a {}.", "a drawing of the {}"])
    seen = v2.functional.normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    model = build_model(config, 1, splits).eval()
    with torch.no_grad():
        assert model.features(seen).norm(dim=1) == pytest.approx(4)
        torch.testing.assert_close(model(seen), 4 * want, rtol=1e-4, atol=1e-4)
    rows = build_model(config, 2, splits).head.classifier.cosnorm_classifier.weight.detach()
    start = model.head.linear.weight.detach()
    torch.testing.assert_close(F.normalize(rows, dim=1), F.normalize(start, dim=1))
    given["model"]["templates"] = None
    plain = build_model(make_config(given), 1, splits).head.linear.weight.detach()
    assert torch.equal(plain, text_directions(str(clip[0]), "DEFAULT", splits.class_names))
    assert torch.equal(plain[2], plain[3]) and not torch.allclose(plain, start, atol=1e-3)


def test_size_mean_and_positions(clip):
    name = f"open_clip:{clip[0]}"
    assert wants(name, "DEFAULT") == Wants(32, "bilinear")
    assert wants("open_clip:ViT-L-14-336", None) == Wants(336, "bicubic")
    assert tuple(clip_net._settings("ViT-B-16-SigLIP", None)["mean"]) == (0.5, 0.5, 0.5)
    large = build_backbone(name, weights="DEFAULT", image_size=64)
    assert large.body.positional_embedding.shape == (1 + 64, 32)
    assert large(torch.rand(2, 3, 64, 64)).shape == (2, 16, 1, 1)
    grey = build_backbone(name, in_channels=1, weights="DEFAULT", image_size=32)
    assert grey.base == large.base and grey(torch.rand(2, 1, 32, 32)).shape == (2, 16, 1, 1)


@pytest.mark.parametrize("how", ["lora", "nothing"])
def test_whole(how, given, data, tmp_path, monkeypatch):
    given["model"]["tune"] = how
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        train(make_config(given), tmp_path / "run")
    run = train(make_config(given), tmp_path / "run")
    files = [data / f"test_{n % 4}_{n}.png" for n in range(6)]
    trained = load_trained(run, device="cpu")
    found = predict_images(trained, files)
    assert {p.label for p in found} <= {*trained.names, None}
    program = torch.export.load(export(trained, tmp_path / "model.pt2")).module()
    got = program(torch.stack([pixels(trained, file) for file in files]))[1]
    want = torch.tensor([p.confidence for p in found], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"backbone": "small_cnn"}}, "text needs a backbone open_clip:<name> with weig"),
        ({"data": {"class_names": None}}, "needs the names of classes: set data.class_names"),
        ({"stage1": {"fc": 8}}, "texts have 16 numbers and features 8; set fc to null"),
    ],
)
def test_what_texts_need_is_told(changes, message, given, tmp_path):
    for group, keys in changes.items():
        given[group] = keys if "backbone" in keys else {**given[group], **keys}
    with pytest.raises(ValueError, match=message):
        train(make_config(given), tmp_path / "run")


def test_templates_and_weights_that_will_not_do(given, tmp_path):
    (tmp_path / "templates.txt").write_text("a photo of a {}.\na photo\n")
    with pytest.raises(ValueError, match=r"templates.txt: expected one \{\} in .* got 'a photo'"):
        train(make_config(given), tmp_path / "run")
    folder, _ = tiny_clip(tmp_path / "silent", texts=False)
    assert build_backbone(f"open_clip:{folder}", weights="DEFAULT").base is not None
    with pytest.raises(ValueError, match=r"needs a text encoder, and .*model\.bin holds none"):
        text_directions(str(folder), "DEFAULT", ["a"])


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("ViT-B-17", None, "no model named 'ViT-B-17'; did you mean open_clip:ViT-B-1"),
        ("ViT-B-16", "nope", "has no weights='nope': expected openai, laion400m_e31, .* of a file"),
        ("ViT-B-16", "openai", "trained with QuickGELU, .* open_clip:ViT-B-16-quickgelu has it"),
        (".", None, r"open_clip:\. has no open_clip_config\.json"),
    ],
)
def test_bad_names_are_told(name, weights, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        build_backbone(f"open_clip:{name}", weights=weights)


def test_published_weights_by_name(clip, monkeypatch):
    def hub(name, pretrained):
        if pretrained == "metaclip_400m":
            raise OSError("the hub cannot be reached")
        assert (name, pretrained) == ("ViT-B-16-quickgelu", "openai")
        return clip[1]

    net, name = copy.deepcopy(clip[1]), "open_clip:ViT-B-16-quickgelu"
    net.visual.proj.data.zero_()
    monkeypatch.setattr(clip_net, "_net", lambda *_: net)
    monkeypatch.setattr(open_clip, "create_model", hub)
    found = build_backbone(name, weights="openai", image_size=32)
    assert torch.equal(found.body.proj, clip[1].visual.proj)
    with pytest.raises(ValueError, match=r"metaclip_400m of .* cannot be fetched \(the hub"):
        build_backbone(name, weights="metaclip_400m", image_size=32)


def test_without_open_clip_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(RuntimeError, match=r"pip install oltr_ext\[open-clip\]"):
        build_backbone("open_clip:ViT-B-16")
