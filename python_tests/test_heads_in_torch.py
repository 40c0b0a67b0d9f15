"""Heads among what torch offers: the meta device, inference mode, quantisation, processes."""

from __future__ import annotations

import copy

import pytest
import torch
from head_cases import heads_of_every_kind

from oltr_ext.models import OLTRModel, build_backbone
from oltr_ext.nn import FSLwFHead, LinearHead, LWSHead, ModulatedAttention, OLTRHead, OpenMaxHead

PRIOR = [7.0, 3, 2, 0]
MAKERS = {
    "linear": lambda: LinearHead(6, 4, class_prior=PRIOR),
    "lws": lambda: LWSHead(6, 4),
    "oltr": lambda: OLTRHead(6, 4, class_prior=PRIOR),
    "fslwf": lambda: FSLwFHead(6, [25, 25, 5, 5]),
    "openmax": lambda: OpenMaxHead(6, 4),
}


def trained(kind):
    """A head of the kind, features (B, 6) and labels; an OLTR memory that lacks a class."""
    head, x, y = heads_of_every_kind()[["linear", "lws", "oltr", "fslwf", "openmax"].index(kind)]
    if kind == "oltr":
        head.init_from(None, x, y)
        assert head.memory.present.tolist() == [0, 1]
    head.set_threshold(0.25, "energy")
    return head, x, y


def materialised(meta, state, how):
    if how == "assign":
        meta.load_state_dict(copy.deepcopy(state), assign=True)
        return meta
    torch.use_deterministic_algorithms(True)  # empty memory holds NaN and the largest integers
    try:
        whole = meta.to_empty(device="cpu")
    finally:
        torch.use_deterministic_algorithms(False)
    whole.load_state_dict(state)
    return whole


@pytest.mark.parametrize("how", ["assign", "to_empty"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_head_made_on_the_meta_device(kind, how):
    head, x, y = trained(kind)
    with torch.device("meta"):
        meta = MAKERS[kind]()
    assert all(t.is_meta for t in (*meta.parameters(), *meta.buffers()))
    assert "meta" not in repr(meta) and meta.num_classes == 4
    got = materialised(meta, head.state_dict(), how)
    assert got.score == "energy" and got.threshold == 0.25
    want, out = head.outputs(x), got.outputs(x)
    for name, value in want._asdict().items():
        assert value is None or torch.equal(getattr(out, name), value), name
    torch.manual_seed(0)
    loss = head.loss(x, y)
    torch.manual_seed(0)
    assert torch.equal(got.loss(x, y), loss)
    got.loss(x, y).backward()


@pytest.mark.parametrize("how", ["assign", "to_empty"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_head_moved_to_the_meta_device(kind, how):
    head, x, _ = trained(kind)
    state = copy.deepcopy(head.state_dict())
    want = head.predict(x)
    meta = head.to("meta")
    with pytest.warns(UserWarning, match="no-op"):
        meta.load_state_dict(state)  # torch's own: nothing is there to copy into
    got = materialised(meta, state, how)
    assert all(torch.equal(a, b) for a, b in zip(got.predict(x), want, strict=True))


def test_a_prior_is_still_checked_where_it_can_be():
    with torch.device("meta"), pytest.raises(ValueError, match="class_prior: expected shape"):
        OLTRHead(6, 4, class_prior=[1.0, 2])


@pytest.mark.parametrize("how", ["assign", "to_empty"])
@pytest.mark.parametrize("name", ["small_cnn", "torchvision:resnet18", "torchvision:googlenet"])
def test_a_model_made_on_the_meta_device(name, how):
    """Grey images, whose mean and std are no part of the state dict."""

    def make():
        backbone = build_backbone(name, in_channels=1)
        width, size = backbone.feature_dim, backbone.eval()(torch.zeros(1, 1, 64, 64)).shape[2:]
        head = OLTRHead(width, 5, class_prior=[5, 4, 3, 2, 1])
        model = OLTRModel(backbone, head, ModulatedAttention(width, *size))
        return model.freeze(["backbone"]).eval()

    model, images = make(), torch.rand(2, 1, 64, 64)
    with torch.device("meta"):
        meta = make()
    got = materialised(meta, model.state_dict(), how)
    with torch.no_grad():
        torch.testing.assert_close(got(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("step", ["initialise", "update", "load", "load_state_dict"])
def test_a_memory_made_in_inference_mode_can_be_trained(step, tmp_path):
    """Backward saves no tensor made in that mode, as the list of classes present would be."""
    x, y = torch.randn(12, 6), torch.arange(12) % 3  # of class 3 there is none
    other = OLTRHead(6, 4)
    other.memory.initialise(x, y)
    other.memory.save(tmp_path / "memory.safetensors")
    head = OLTRHead(6, 4, memory_grad=True)
    with torch.inference_mode():
        if step == "load":
            head.memory.load(tmp_path / "memory.safetensors")
        elif step == "load_state_dict":
            head.load_state_dict(other.state_dict())
        else:
            getattr(head.memory, step)(x, y)
        head.predict(x)
    assert head.memory.present.tolist() == [0, 1, 2]
    head.loss(x, y).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_what_fslwf_keeps_of_inference_mode_is_not_trained_on():
    head, x, y = trained("fslwf")
    head.eval()
    with torch.inference_mode():
        head.outputs(x)
    assert head._kept is not None
    head.outputs(x).logits[:, head.base].sum().backward()
    head.train().loss(x, y).backward()
