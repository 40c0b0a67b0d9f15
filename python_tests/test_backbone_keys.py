"""Keys of `model` on how a backbone is run: recomputed blocks, compiled, in which layout."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from nets import FAMILIES
from tiny import config, same_run
from torch import nn

from oltr_ext.config.loading import ConfigError, make_config
from oltr_ext.engine.batchnorm import GlobalBatchNorm, synchronise
from oltr_ext.engine.build import build_model
from oltr_ext.engine.train import train
from oltr_ext.models import build_backbone
from oltr_ext.models.recompute import forget_inside_blocks

SHAPE = {"channels": 3, "size": 32, "train_counts": [3, 2]}


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_blocks_give_the_same_bits(family):
    """Gradients, BatchNorm's statistics and what is drawn for dropout; and fewer numbers kept."""
    plain = build_backbone(f"timm:{FAMILIES[family]}", image_size=64)
    for module in plain.modules():
        if isinstance(module, nn.ReLU | nn.GELU):
            module.register_forward_hook(lambda m, _, y: nn.functional.dropout(y, 0.1, m.training))
    again = copy.deepcopy(plain)
    forget_inside_blocks(again)
    images, kept = torch.rand(4, 3, 64, 64), []
    for net in (plain, again):
        torch.manual_seed(3)
        sizes = {}

        def keep(x, sizes=sizes):
            sizes[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = net(images)
        kept.append(sum(sizes.values()))
        out.square().mean().backward()
    assert kept[1] < 0.8 * kept[0]
    for (name, one), two in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name
    for (name, one), two in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(one, two), name
    assert plain.state_dict().keys() == again.state_dict().keys()
    assert torch.equal(copy.deepcopy(again).eval()(images), plain.eval()(images))


def test_a_backbone_without_blocks_says_so(tmp_path):
    model = {"backbone": "torchvision:resnet18", "gradient_checkpointing": True}
    with pytest.raises(ValueError, match="no blocks that can be told apart; those of timm:"):
        build_model(make_config({**config(tmp_path), "model": model}), 1, SHAPE)
    model["compile"] = True
    with pytest.raises(ConfigError, match="compile and gradient_checkpointing do not go together"):
        make_config({**config(tmp_path), "model": model})


def test_a_compiled_backbone_trains_to_the_same_within_rounding(data, tmp_path, monkeypatch):
    make, graphs = nn.Module.compile, []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda self: make(self, backend=counted))
    values = {**config(data), "stage2": None}
    values["stage1"] = {**values["stage1"], "epochs": 1}
    train(make_config(values), tmp_path / "plain")
    assert not graphs
    values["model"] = {"backbone": "small_cnn", "compile": True}
    train(make_config(values), tmp_path / "compiled")
    assert len(graphs) >= 2  # of training and of validation
    logs = [(tmp_path / run / "log.csv").read_text() for run in ("plain", "compiled")]
    one, other = ([float(x) for x in log.split()[1].split(",")[3:5]] for log in logs)
    assert one == pytest.approx(other, rel=1e-4)


def test_layout_of_images(tmp_path):
    for last in (True, False):
        values = {**config(tmp_path), "model": {"backbone": "small_cnn", "channels_last": last}}
        weight = build_model(make_config(values), 1, SHAPE).backbone.layers[4].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == last


def test_batchnorm_of_several_processes_keeps_timms_activation():
    """timm's BatchNorm has its activation inside, which another in its place must have too."""
    torch.manual_seed(0)
    one = timm.create_model("test_efficientnet", num_classes=0)
    other = copy.deepcopy(one)
    synchronise(other)
    inside = [m for m in other.modules() if isinstance(m, GlobalBatchNorm)]
    assert any(not isinstance(m.act, nn.Identity) for m in inside)
    images = torch.rand(4, 3, 32, 32)
    for _ in range(2):
        torch.testing.assert_close(one(images), other(images), rtol=1e-4, atol=1e-5)
        one(images).square().mean().backward()
        other(images).square().mean().backward()
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4, msg=name)
    assert one.state_dict().keys() == other.state_dict().keys()
    torch.testing.assert_close(one.eval()(images), other.eval()(images), rtol=1e-4, atol=1e-5)


def test_recomputing_is_the_same_run(data, tmp_path):
    values = {**config(data), "stage2": None, "model": {"backbone": "timm:test_resnet"}}
    values["stage1"] = {**values["stage1"], "epochs": 1}
    values["data"]["image_size"] = 32
    train(make_config(values), tmp_path / "plain")
    values["model"]["gradient_checkpointing"] = True
    train(make_config(values), tmp_path / "again")
    same_run(tmp_path / "plain", tmp_path / "again")
