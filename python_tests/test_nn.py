"""Layers and memory, against the released code's arithmetic."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from oltr_ext import use_backend
from oltr_ext.nn import (
    CentroidMemory,
    CosineClassifier,
    DiscCentroidsLoss,
    MetaEmbedding,
    MetaEmbeddingClassifier,
    ModulatedAttention,
)
from oltr_ext.nn.classifiers import PARTS
from oltr_ext.nn.memory import means_over


def released_forward(c: MetaEmbeddingClassifier, x, centroids):
    """MetaEmbeddingClassifier as the released code computes it, with its B x C x D tensor."""
    B, C, D = x.shape[0], *centroids.shape
    distance = (x[:, None].expand(B, C, D) - centroids[None].expand(B, C, D)).norm(2, 2)
    reachability = (10.0 / torch.sort(distance, 1)[0][:, 0]).unsqueeze(1)
    attention = c.fc_hallucinator(x).softmax(dim=1)
    infused = c.fc_selector(x).tanh() * (attention @ centroids)
    meta = reachability * (x + infused)
    norm = meta.norm(2, 1, keepdim=True)
    weight = c.cosnorm_classifier.weight
    logits = 16 * (norm / (1 + norm) * meta / norm) @ (weight / weight.norm(2, 1, keepdim=True)).T
    return logits, infused


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_drop_in_for_the_released_classifier(backend):
    classifier = MetaEmbeddingClassifier(12, 30).double()
    x = torch.rand(7, 12, dtype=torch.float64, requires_grad=True)
    centroids = torch.rand(30, 12, dtype=torch.float64)
    with use_backend(backend):
        logits, (direct, infused) = classifier(x, centroids)
    want_logits, want_infused = released_forward(classifier, x, centroids)
    torch.testing.assert_close(logits, want_logits)
    torch.testing.assert_close(infused, want_infused)
    assert direct is x
    leaves = [x, *classifier.parameters()]
    g = torch.randn_like(logits)
    for a, b in zip(
        torch.autograd.grad(logits, leaves, g),
        torch.autograd.grad(want_logits, leaves, g),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("without", [["memory"], ["selector"], ["reachability"], list(PARTS)])
def test_parts_left_out(without):
    torch.manual_seed(0)
    embedding = MetaEmbedding(6, 9, without=without).double()
    x = torch.rand(5, 6, dtype=torch.float64, requires_grad=True)
    memory = torch.rand(9, 6, dtype=torch.float64, requires_grad=True)
    parts = embedding.embed(x, memory)
    e, one = torch.tanh(embedding.fc_selector(x)), torch.ones_like(x)
    m = embedding.fc_hallucinator(x).softmax(1) @ memory.detach()
    distance = torch.cdist(x, memory.detach()).min(1)
    r = 10 / distance.values[:, None]
    m = 0 * m if "memory" in without else m
    e = one if "selector" in without else e
    r = one if "reachability" in without else r
    torch.testing.assert_close(parts.embedding, r * (x + e * m))
    torch.testing.assert_close(parts.distance, distance.values)
    assert torch.equal(parts.nearest, distance.indices)
    g = torch.randn_like(x)
    torch.testing.assert_close(
        torch.autograd.grad(parts.embedding, x, g, retain_graph=True)[0],
        torch.autograd.grad(r * (x + e * m), x, g)[0],
    )
    parts.embedding.sum().backward()
    assert memory.grad is None
    # left out of it: what all parts on give
    whole = MetaEmbedding(6, 9).double()
    whole.load_state_dict(embedding.state_dict())
    assert not torch.allclose(whole(x, memory), parts.embedding)


def test_an_unknown_part_to_leave_out_is_named():
    with pytest.raises(ValueError, match="some of memory, selector, reachability, got gate"):
        MetaEmbedding(6, 9, without=["gate"])


def test_loads_released_parameter_names():
    source = MetaEmbeddingClassifier(5, 3)
    names = set(source.state_dict())
    assert names == {
        "fc_hallucinator.weight",
        "fc_hallucinator.bias",
        "fc_selector.weight",
        "fc_selector.bias",
        "cosnorm_classifier.weight",
    }
    target = MetaEmbeddingClassifier(5, 3)
    target.load_state_dict({f"module.{k}": v for k, v in source.state_dict().items()})
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(a, b)
    released = {"g", "theta", "phi", "conv_mask", "fc_spatial"}
    assert {n.split(".")[0] for n in ModulatedAttention(4, 2, 2).state_dict()} == released


def test_modulated_attention_is_the_paper_s():
    layer = ModulatedAttention(6, 3, 4).double()
    maps = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    assert torch.equal(layer(maps), maps)  # starts as the identity
    nn.init.normal_(layer.conv_mask.weight)
    theta, phi, g = (f(maps).flatten(2) for f in (layer.theta, layer.phi, layer.g))
    attended = (theta.transpose(1, 2) @ phi).softmax(-1) @ g.transpose(1, 2)
    SA = layer.conv_mask(attended.transpose(1, 2).reshape(2, 3, 3, 4))
    MA = layer.fc_spatial(maps.flatten(1)).softmax(1).view(2, 1, 3, 4)
    torch.testing.assert_close(layer(maps), maps + MA * SA)
    with pytest.raises(ValueError, match="expected maps of shape"):
        layer(maps[:, :, :2])
    with pytest.raises(ValueError, match="even number of channels, got 5"):
        ModulatedAttention(5)


class TestMemory:
    def test_initialise_counts_and_empty_classes(self):
        memory = CentroidMemory(4, 3)
        x, y = torch.randn(9, 3), torch.tensor([0, 0, 1, 3, 3, 3, 1, 0, 3])
        memory.initialise(x, y)
        assert memory.counts.tolist() == [3, 2, 0, 4]
        torch.testing.assert_close(memory.centroids[3], x[y == 3].mean(0))
        assert (memory.centroids[2] == 0).all()

    def test_batching_does_not_matter(self):
        x, y = torch.randn(50, 3), torch.randint(4, (50,))
        one, two = CentroidMemory(4, 3), CentroidMemory(4, 3)
        one.initialise(x, y)
        batches = zip(x.split(7), y.split(7), strict=True)
        two.initialise_from(batches, lambda b: b)
        assert torch.equal(one.counts, two.counts)
        torch.testing.assert_close(one.centroids, two.centroids, rtol=1e-7, atol=1e-8)

    def test_update(self):
        memory = CentroidMemory(3, 2, learnable=False)
        assert not list(memory.parameters())
        memory.initialise(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        memory.update(torch.tensor([[4.0, 2.0], [6.0, 6.0]]), torch.tensor([0, 1]), momentum=0.5)
        assert memory.centroids.tolist() == [[3, 1], [6, 6], [0, 0]]
        assert memory.counts.tolist() == [2, 1, 0]
        with pytest.raises(ValueError, match=r"momentum in \[0, 1\], got 2"):
            memory.update(torch.ones(1, 2), torch.tensor([0]), momentum=2)
        with pytest.raises(ValueError, match="finite features, got NaN"):
            memory.update(torch.tensor([[torch.nan, 1], [1, 1]]), torch.tensor([0, 1]))
        assert memory.centroids.tolist() == [[3, 1], [6, 6], [0, 0]]

    def test_a_class_without_features_is_never_nearest(self, tmp_path):
        memory = CentroidMemory(4, 2, learnable=False)
        origin, far = torch.zeros(1, 2), torch.tensor([[8.0, 0.0]])
        assert memory(origin).distance.item() == 0  # nothing was counted: all take part
        memory.initialise(torch.tensor([[4.0, 0.0], [0.0, 3.0]]), torch.tensor([1, 3]))

        def check(memory):
            assert memory(origin).distance.tolist() == [3] and memory(origin).index.tolist() == [3]
            assert memory(far).distance.tolist() == [4] and memory(far).index.tolist() == [1]
            distance, index = memory.closest(origin, 3)
            assert distance.tolist() == [[3, 4]] and index.tolist() == [[3, 1]]

        check(memory)
        check(copy.deepcopy(memory))
        memory.save(tmp_path / "m.safetensors")
        other, loaded = CentroidMemory(4, 2), CentroidMemory(4, 2)
        other.load(tmp_path / "m.safetensors")
        check(other)
        assert set(memory.state_dict()) == {"centroids", "counts"}
        loaded.load_state_dict(memory.state_dict())
        check(loaded)
        # its first features make its centroid
        memory.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        assert memory(origin).distance.tolist() == [1] and memory(origin).index.tolist() == [0]
        memory.update(torch.tensor([[0.5, 0.0]]), torch.tensor([2]))
        assert memory.present is None and memory(origin).index.tolist() == [2]
        assert memory.closest(origin, 9).index.tolist() == [[2, 0, 3, 1]]

    def test_save_and_load(self, tmp_path):
        memory = CentroidMemory(3, 2)
        memory.initialise(torch.randn(5, 2), torch.tensor([0, 1, 2, 1, 0]))
        memory.save(tmp_path / "m.safetensors")
        other = CentroidMemory(3, 2)
        other.load(tmp_path / "m.safetensors")
        assert torch.equal(memory.centroids, other.centroids)
        assert torch.equal(memory.counts, other.counts)
        with pytest.raises(ValueError, match="holds"):
            CentroidMemory(4, 2).load(tmp_path / "m.safetensors")
        one = {"centroids": memory.centroids.detach(), "counts": torch.ones(1, dtype=torch.int64)}
        save_file(one, tmp_path / "one")  # which would be everybody's count
        with pytest.raises(ValueError, match=r"expected counts of shape \(3,\), .* holds \(1,\)"):
            other.load(tmp_path / "one")
        with pytest.raises(FileNotFoundError):
            other.load(tmp_path / "none")
        data = (tmp_path / "m.safetensors").read_bytes()
        (tmp_path / "cut").write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match="does not hold a memory"):
            other.load(tmp_path / "cut")

    def test_bad_features(self):
        memory = CentroidMemory(2, 3)
        with pytest.raises(ValueError, match=r"shape \(N, 3\), got \(1, 4\)"):
            memory.initialise(torch.ones(1, 4), torch.tensor([0]))
        with pytest.raises(ValueError, match="finite features"):
            memory.initialise(torch.full((1, 3), float("nan")), torch.tensor([0]))
        with pytest.raises(ValueError, match="at least one feature, got none"):
            memory.initialise(torch.ones(0, 3), torch.zeros(0, dtype=torch.int64))
        with pytest.raises(RuntimeError, match="got 2 at row 0"):
            memory.initialise(torch.ones(1, 3), torch.tensor([2]))

    def test_what_does_not_fit(self):
        memory, x, y = CentroidMemory(3, 4), torch.randn(6, 4), torch.arange(6) % 3
        memory.initialise(x, y)
        before = memory.centroids.detach().clone()
        with pytest.raises(ValueError, match=r"closest: expected features .*, 4\), got \(2, 7\)"):
            memory.closest(torch.randn(2, 7), 2)
        with pytest.raises(ValueError, match="count of at least 0, got -1"):
            memory.closest(x, -1)
        for name in ("initialise", "update"):
            with pytest.raises(TypeError, match=r"torch\.int64, got torch\.float32"):
                getattr(memory, name)(x, y.float())
            with pytest.raises(RuntimeError, match="got 3 at row 2"):
                getattr(memory, name)(x, y + 1)
        with pytest.raises(ValueError, match=r"class means: expected .*, 4\), got \(6, 5\)"):
            means_over([(x, y), (torch.randn(6, 5), y)], 3)
        assert torch.equal(memory.centroids, before)

    def test_forward_is_the_nearest_centroid(self):
        memory = CentroidMemory(3, 2)
        memory.initialise(torch.eye(3)[:, :2], torch.arange(3))
        distance, index = memory(torch.tensor([[0.9, 0.0]]))
        assert index.item() == 0 and distance.item() == pytest.approx(0.1, rel=1e-5)


def test_fit_margin_is_relative_to_the_data():
    centroids = torch.randn(6, 4, dtype=torch.float64) * 5
    loss = DiscCentroidsLoss()
    pairs = torch.pdist(centroids).square()
    assert loss.fit_margin(centroids, 0.5) == pytest.approx(0.5 * pairs.mean().item())
    assert loss.margin == loss.fit_margin(centroids, 0.5)
    with pytest.raises(ValueError, match="at least two"):
        loss.fit_margin(centroids[:1])


def test_cosine_classifier_starts_at_directions():
    classifier = CosineClassifier(5, 4)
    before = classifier.weight.detach().clone()
    directions = torch.randn(4, 5) * 100
    directions[2] = 0
    classifier.start_at(directions)
    cosine = F.cosine_similarity(classifier.weight, directions)
    torch.testing.assert_close(cosine[[0, 1, 3]], torch.ones(3))
    assert torch.equal(classifier.weight[2], before[2])
