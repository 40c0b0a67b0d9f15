"""timm's nets as backbones: the feature is the net's own, its weights by name or from a file."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import timm
import torch
from nets import FAMILIES, drawn, saved
from PIL import Image
from safetensors.torch import save_file
from tiny import config
from torchvision.transforms import v2

from oltr_ext.config.loading import make_config, run_config
from oltr_ext.engine.build import wants_of
from oltr_ext.engine.splits import load_splits
from oltr_ext.models import Wants, build_backbone, wants
from oltr_ext.models.pixels import IMAGENET_MEAN, IMAGENET_STD


@pytest.mark.parametrize("family", FAMILIES)
def test_a_feature_is_what_the_net_itself_classifies(family, tmp_path):
    name, size = FAMILIES[family], 32
    sized = {"img_size": size} if family in ("ViT", "Swin") else {}
    state = drawn(name, **sized)
    backbone = build_backbone(
        f"timm:{name}", weights=saved(state, tmp_path / "w.pth"), image_size=size
    ).eval()
    net = timm.create_model(name, **sized).eval()
    net.load_state_dict(state)
    pixels = torch.rand(2, 3, size, size)
    cfg = timm.data.resolve_model_data_config(net)
    seen = v2.functional.normalize(pixels, cfg["mean"], cfg["std"])
    want = net.forward_head(net.forward_features(seen), pre_logits=True)
    with torch.no_grad():
        maps = backbone(v2.functional.normalize(pixels, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(maps.mean((2, 3)), want, rtol=1e-4, atol=1e-5)
    assert backbone.feature_dim == want.shape[1] == net.get_classifier().in_features
    assert (maps.shape[2] > 1) == (family == "Swin")  # the others halve 32 five times, or pool
    assert not torch.allclose(want[0], want[1], rtol=1e-3)  # it says something of the images
    grey = build_backbone(f"timm:{name}", in_channels=1, image_size=size)
    grey(torch.rand(2, 1, size, size)).square().mean().backward()
    lacking = [n for n, p in grey.named_parameters() if p.grad is None]
    assert not lacking  # no classifier is left behind


def test_the_width_is_not_always_what_timm_calls_it():
    net = build_backbone("timm:mobilenetv3_small_050", image_size=32)
    assert (net.body.num_features, net.feature_dim) == (288, 1024)
    maps = build_backbone("timm:test_resnet", image_size=64)(torch.rand(1, 3, 64, 64))
    assert maps.shape == (1, 96, 2, 2)  # a map where its mean is the feature


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda s: s,
        lambda s: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"model.backbone.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"_orig_mod.{k}": v for k, v in s.items()}, "optimizer": {"lr": 1}},
        lambda s: {
            "student": {},
            "teacher": {
                **{f"module.backbone.{k}": v for k, v in s.items()},
                "module.head.mlp.0.weight": torch.ones(4096, 4096),
            },
        },
        lambda s: {
            **{f"visual.trunk.{k}": v for k, v in s.items()},
            "text.weight": torch.ones(9, 9),
        },
        lambda s: {f"encoder.{k}": v for k, v in s.items()},
    ],
    ids=["plain", "DataParallel", "Lightning", "compiled", "teacher", "CLIP", "encoder"],
)
@pytest.mark.parametrize("family", ["ResNet", "ViT"])
def test_wrappers_of_names_are_understood(wrapped, family, tmp_path, recwarn):
    state = drawn(FAMILIES[family])
    path = saved(wrapped(state), tmp_path / "w.pt")
    got = build_backbone(f"timm:{FAMILIES[family]}", weights=path).body.state_dict()
    assert got and all(torch.equal(value, state[key]) for key, value in got.items())
    assert not recwarn.list


def test_a_file_for_another_size_is_interpolated(tmp_path):
    for name in ("test_vit", "tiny_swin"):
        state = drawn(name)
        save_file(state, tmp_path / f"{name}.safetensors")
        weights = str(tmp_path / f"{name}.safetensors")
        small = build_backbone(f"timm:{name}", weights=weights, image_size=64)
        assert small(torch.rand(1, 3, 64, 64)).shape[1] == small.feature_dim
        same = [k for k, v in small.body.state_dict().items() if v.shape == state[k].shape]
        assert all(torch.equal(small.body.state_dict()[k], state[k]) for k in same)
        assert len(same) >= len(state) - 8
    file = str(tmp_path / "test_vit.safetensors")
    native = build_backbone("timm:test_vit", weights=file)
    moved = build_backbone("timm:test_vit", weights=file, image_size=64)
    there, here = native.body.pos_embed, moved.body.pos_embed
    assert there.shape == (1, 101, 64) and here.shape == (1, 17, 64)
    torch.testing.assert_close(here[:, 1:].mean(), there[:, 1:].mean(), rtol=0.1, atol=0.01)
    assert native.base == moved.base  # told by what was read, not by what became of it
    other = saved({**drawn("test_vit"), "cls_token": torch.ones(1, 1, 64)}, tmp_path / "other.pt")
    assert native.base.sha256 != build_backbone("timm:test_vit", weights=other).base.sha256


def test_what_does_not_match_is_said_and_much_is_an_error(tmp_path):
    state = drawn("test_resnet")
    most = {k: v for k, v in state.items() if not k.startswith("layer1.0.bn1")}
    most["projector.0.weight"] = torch.ones(3)
    path = saved(most, tmp_path / "most.pt")
    with pytest.warns(UserWarning) as told:
        net = build_backbone("timm:test_resnet", weights=path)
    (text,) = [str(each.message) for each in told]
    assert text == (
        f"model.weights: {path}: missing, so drawn at random: layer1.0.bn1.weight, "
        "layer1.0.bn1.bias, layer1.0.bn1.running_mean, layer1.0.bn1.running_var; not in this net, "
        "so left out: projector.0.weight"
    )
    assert torch.equal(net.body.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])
    assert "body.layer1.0.bn1.weight" not in net.base.keys
    for other, said in (
        ("test_convnext", r"\d+ tensors are missing, the first conv1.0.weight; \d+ are not in"),
        ("resnet10t", "have another shape, the first"),
    ):
        path = saved(drawn(other), tmp_path / "other.pt")
        with pytest.raises(ValueError, match=f"weights of another net: .*{said}"):
            build_backbone("timm:test_resnet", weights=path)
    half = saved({k: v for k, v in state.items() if "layer4" not in k}, tmp_path / "half.pt")
    with pytest.raises(ValueError, match=r"are missing, the first layer4\.0\.conv1\.weight"):
        build_backbone("timm:test_resnet", weights=half)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "timm:resnet51"}, "timm has no model named 'resnet51'; did you mean timm:resnet"),
        (
            {"name": "timm:resnet50.nope"},
            "timm:resnet50 has no weights='nope': expected DEFAULT, a1",
        ),
        (
            {"name": "timm:resnet50", "weights": "nope"},
            "has no weights='nope': expected DEFAULT, a1",
        ),
        ({"name": "timm:test_resnet", "in_channels": 4}, "takes 1 or 3 channels, got 4"),
        ({"name": "timm:vit_tiny_patch16_224", "image_size": 8}, "cannot take images of 8 x 8: "),
        ({"name": "tim:resnet50"}, r"torchvision:<name>, timm:<name>, .* got 'tim:resnet50'"),
    ],
)
def test_bad_names_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(**call)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RuntimeError, match=r"timm is not installed: pip install oltr_ext\[timm\]"):
        build_backbone("timm:test_resnet")


def test_published_weights_by_name(monkeypatch):
    """As timm fetches them, and what is said where it cannot."""
    make, asked = timm.create_model, []

    def hub(name, pretrained=False, **options):
        net = make(name, **options)
        if pretrained:
            asked.append(name)
            if "broken" in asked:
                raise OSError("the hub cannot be reached")
            net.load_state_dict(drawn("test_resnet"))
        return net

    monkeypatch.setattr(timm, "create_model", hub)
    state = torch.get_rng_state()
    for weights, full in (("DEFAULT", "test_resnet"), ("r160_in1k", "test_resnet.r160_in1k")):
        torch.set_rng_state(state)
        net = build_backbone("timm:test_resnet", weights=weights)
        after = torch.rand(1)
        assert asked.pop() == full
        assert torch.equal(net.body.conv1[0].weight, drawn("test_resnet")["conv1.0.weight"])
        torch.set_rng_state(state)
        build_backbone("timm:test_resnet", weights=weights, load=False)
        assert torch.equal(after, torch.rand(1)) and not asked
    asked.append("broken")
    with pytest.raises(
        ValueError, match=r"timm:test_resnet cannot be fetched \(the hub .* to the file"
    ):
        build_backbone("timm:test_resnet", weights="DEFAULT")


def test_size_and_interpolation_are_the_nets_own(data, tmp_path):
    assert wants("timm:test_vit", "DEFAULT") == Wants(160, "bicubic")
    assert wants("timm:resnet50.tv_in1k", None) == Wants(224, "bilinear")
    assert wants("torchvision:resnet18", "DEFAULT") == Wants(224, "bilinear")
    values = config(data)
    values["data"] |= {"image_size": "auto", "augment": {"fit": "crop"}}
    values["model"] = {"backbone": "timm:test_vit", "weights": "DEFAULT"}
    found = load_splits(make_config(values).data, wants_of(make_config(values)))
    assert (found.size, found.data.interpolation) == (160, "bicubic")
    assert "160 x 160 (crop, bicubic)" in found.note
    picture = Image.open(data / "test_0_0.png").convert("RGB")
    got = found.test.transform(picture).numpy().astype(int)
    for smooth, near in ((Image.BICUBIC, True), (Image.BILINEAR, False)):
        whole = np.asarray(picture.resize((183, 183), smooth)).transpose(2, 0, 1)
        assert (np.abs(whole[:, 12:172, 12:172] - got).max() <= 2) == near
    values["model"] = {"backbone": "timm:test_vit"}  # from scratch: as the images are
    found = load_splits(make_config(values).data, wants_of(make_config(values)))
    assert (found.size, found.data.interpolation) == (16, "bilinear")
    old = make_config(values).model_dump(mode="json")
    del old["data"]["interpolation"]  # a run from before
    assert run_config(old, source="run").data.interpolation == "bilinear"
