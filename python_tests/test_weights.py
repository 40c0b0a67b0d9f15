"""Weights to start from: fetched, from a file, interpolated; and what is said where they fail."""

from __future__ import annotations

import urllib.error
import urllib.request
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import config
from torchvision.models import ResNet18_Weights, WeightsEnum, get_model, vit_b_32

from oltr_ext.config.loading import make_config
from oltr_ext.engine import train as training
from oltr_ext.engine.build import build_model
from oltr_ext.engine.train import train
from oltr_ext.models import build_backbone
from oltr_ext.serve.trained import load_embedder

FILE = Path(ResNet18_Weights.DEFAULT.url).name
NET = "torchvision:resnet18"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch.hub's folder of checkpoints, empty, without a network."""

    def no_network(*_, **__):
        raise urllib.error.URLError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def said(**options):
    with pytest.raises(ValueError) as caught:
        build_backbone(NET, weights="DEFAULT", **options)
    text = str(caught.value)
    assert "\n" not in text and "DEFAULT of torchvision:resnet18" in text
    return text


def test_no_network_says_which_weights_from_where_and_what_else(cache):
    text = said()
    assert f"cannot be fetched from https://download.pytorch.org/models/{FILE} (" in text
    assert "name resolution" in text
    assert text.endswith(f"set model.weights to the file or copy it to {cache / FILE}")


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_in_the_cache_is_named(cache, content):
    (cache / FILE).write_bytes(content)
    assert f": {cache / FILE} is damaged (" in said() and "remove it" in said()


def test_a_truncated_file_in_the_cache_is_named(cache):
    torch.save(get_model("resnet18").state_dict(), cache / FILE)
    (cache / FILE).write_bytes((cache / FILE).read_bytes()[:100_000])
    assert f": {cache / FILE} is damaged (" in said()


def test_the_file_of_another_net_is_told_by_what_differs(cache, tmp_path):
    other = get_model("resnet34").state_dict()
    torch.save(other, cache / FILE)
    text = said()
    assert f"{cache / FILE} holds the weights of another net: " in text
    assert "are not in this net, the first layer1.2.conv1.weight" in text
    torch.save(other, tmp_path / "own.pth")
    for net, difference in (
        ("torchvision:resnet50", r"85 tensors are missing, the first .*; 31 have another"),
        ("resnet10", "are not in this net, the first layer1.1.conv1.weight"),
        ("small_cnn", "tensors are missing, the first layers.0.weight"),
    ):
        with pytest.raises(ValueError, match=rf"model.weights: .*own.pth .* net: .*{difference}"):
            build_backbone(net, weights=str(tmp_path / "own.pth"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "no such file"),
        ("text.pth", b"text", "is damaged, or holds more than tensors"),
        ("text.safetensors", b"text", "is damaged, or holds more than tensors"),
        ("list.pt", [1, 2], "holds no tensors by name: expected a state dict"),
        ("empty.pt", {"state_dict": {}}, "holds no tensors by name"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"model.weights: {path}:? {message}"):
        build_backbone(NET, weights=str(path))


@pytest.mark.parametrize("form", ["pth", "safetensors", "module", "own classes"])
def test_a_file_of_ones_own_gives_the_net_it_was_saved_from(tmp_path, form):
    net = get_model("resnet18", num_classes=7 if form == "own classes" else 1000)
    state, path = net.state_dict(), tmp_path / "own.pth"
    if form == "safetensors":
        path = tmp_path / "own.safetensors"
        save_file(state, path)
    elif form == "module":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        # as published ones, from before there was a count of batches
        torch.save({k: v for k, v in state.items() if "num_batches" not in k}, path)
    got = build_backbone(NET, weights=str(path)).body.state_dict()
    assert got and all(torch.equal(value, state[key]) for key, value in got.items())


def test_densenets_published_names_are_todays(tmp_path):
    net = get_model("densenet121")
    old = {
        k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v
        for k, v in net.state_dict().items()
    }
    assert old.keys() != net.state_dict().keys()
    torch.save(old, tmp_path / "old.pth")
    got = build_backbone("torchvision:densenet121", weights=str(tmp_path / "old.pth"))
    assert torch.equal(got.body.features.conv0.weight, net.features.conv0.weight)
    one, other = (n.features.denseblock2.denselayer3.norm1 for n in (got.body, net))
    assert torch.equal(one.weight, other.weight)


def test_a_vision_transformer_is_built_for_the_size_of_the_images(tmp_path, monkeypatch):
    """From weights for 384 pixels, as SWAG's: positions that do not vary stay as they are."""
    # five times 88 million numbers that no one looks at
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda tensor, *_, **__: tensor.zero_())
    large = vit_b_32(image_size=384)
    place = large.encoder.pos_embedding
    with torch.no_grad():
        place[:, 1:] = torch.randn(768)
        place[:, 0] = torch.randn(768)
    state = large.state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: dict(state))
    small = build_backbone("torchvision:vit_b_32", weights="DEFAULT", image_size=64)
    got = small.body.encoder.pos_embedding
    assert got.shape == (1, 1 + 4, 768)
    torch.testing.assert_close(got[:, 1:], place[:, 1:5])
    assert torch.equal(got[:, 0], place[:, 0])
    assert small(torch.rand(2, 3, 64, 64)).shape == (2, 768, 1, 1)
    net = {"backbone": "torchvision:vit_b_32", "weights": "DEFAULT"}
    values = {**config(tmp_path), "model": net}
    values["data"]["image_size"] = 64
    model = load_embedder(make_config(values), device="cpu").model
    assert torch.equal(model.backbone.body.encoder.pos_embedding, got)
    shape = {"channels": 3, "size": 64, "train_counts": [2, 1]}
    model = build_model(make_config(values), 1, shape, weights=False)
    assert model.backbone.body.encoder.pos_embedding.shape == got.shape
    same = build_backbone("torchvision:vit_b_32", weights="DEFAULT", image_size=384)
    assert torch.equal(same.body.encoder.pos_embedding, place)


@pytest.mark.parametrize(
    ("net", "size", "message"),
    [
        ("vit_b_32", 100, r"cannot take images of 100 x 100: its patches are of 32 x 32"),
        ("maxvit_t", 64, r"cannot take images of 64 x 64: Input size \(16, 16\) of block 0"),
        ("inception_v3", 32, "cannot take images of 32 x 32: .*Kernel size can't be greater"),
        ("vgg19", 24, "cannot take images of 24 x 24: .*Output size is too small"),
        ("resnet19", 32, "torchvision has no model named 'resnet19'"),
    ],
)
def test_a_size_that_a_net_cannot_take_is_told_before_data_are_read(
    tmp_path, monkeypatch, net, size, message
):
    monkeypatch.setattr(training, "load_splits", None)
    values = {**config(tmp_path), "model": {"backbone": f"torchvision:{net}"}}
    values["data"]["image_size"] = size
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as caught:
        train(make_config(values), tmp_path / "run")
    assert "\n" not in str(caught.value) and torch.equal(torch.get_rng_state(), state)


def test_files_in_the_folder_at_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = get_model("resnet18")
    for name in ("last.pth.tar", "weights"):
        torch.save({"state_dict": net.state_dict()}, name)
        got = build_backbone(NET, weights=name)
        assert torch.equal(got.body.conv1.weight, net.conv1.weight)
    Path("a.npz").touch()
    with pytest.raises(ValueError, match=r"weights: a\.npz is of NumPy: expected a state"):
        build_backbone(NET, weights="a.npz")
    with pytest.raises(ValueError, match=r"model\.weights: gone\.tar: no such file"):
        build_backbone(NET, weights="gone.tar")


def test_what_else_a_file_holds_is_said_in_few_words(tmp_path):
    torch.save({"state_dict": {}, "args": Namespace(lr=0.1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError) as caught:
        build_backbone(NET, weights=str(tmp_path / "a.pth"))
    said = str(caught.value)
    assert "more than tensors (Unsupported global: GLOBAL argparse.Namespace" in said
    assert "\x1b" not in said and "Please" not in said and "trust" not in said
    torch.save({"epoch": 3, "net": {}}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"expected a state dict; there are epoch, net$"):
        build_backbone(NET, weights=str(tmp_path / "b.pth"))
