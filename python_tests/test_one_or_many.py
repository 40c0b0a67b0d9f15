"""An image alone and in a batch, also where torch may round the products of float32.

Under "medium", torch's own products round their operands to bfloat16 on processors that multiply
it: from two rows up, or from one, as shapes decide. Elsewhere these tests see exact products.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from oltr_ext import ops, use_backend
from oltr_ext.nn import (
    CentroidMemory,
    DiscCentroidsLoss,
    FSLwFHead,
    LiftedStructureLoss,
    LinearHead,
    LWSHead,
    OLTRHead,
    OpenMaxHead,
    RangeLoss,
    class_directions,
)

ROUNDING = 2**-8
"""Of an operand, to bfloat16."""
backends = pytest.mark.parametrize("backend", ["native", "reference"])


@pytest.fixture(params=["highest", "medium"])
def precision(request):
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


def trained(kind, width):
    classes = 120
    y = torch.arange(8 * classes) % classes
    features = torch.randn(len(y), width) + torch.randn(classes, width)[y]
    weight = class_directions([(features, y)], classes)
    if kind == "oltr":
        head = OLTRHead(width, classes)
        head.init_from(None, features, y, classifier="means")
    elif kind == "fslwf":
        head = FSLwFHead(width, [25] * 100 + [8] * 20)
        head.init_from(weight, [(features, y)])
    else:
        head = {"linear": LinearHead, "lws": LWSHead, "openmax": OpenMaxHead}[kind](width, classes)
        head.start_at(weight)
        if kind == "openmax":
            head.fit(features, y)
    return head.eval().requires_grad_(False)


def alone_and_together(head, x):
    one = [head.outputs(row) for row in x.split(1)]
    whole = head.outputs(x)
    alone = {
        name: torch.cat([getattr(out, name) for out in one])
        for name, value in whole._asdict().items()
        if value is not None
    }
    return alone, {name: getattr(whole, name) for name in alone}


@pytest.mark.parametrize("width", [24, 64, 256])
def test_a_memory_head_gives_the_same_bits(precision, width):
    """Its ops round an image alone as they round it in a batch."""
    alone, together = alone_and_together(trained("oltr", width), torch.randn(33, width))
    assert len(together) == 7
    for name, value in together.items():
        assert torch.equal(alone[name], value), name


@pytest.mark.parametrize("kind", ["linear", "lws", "fslwf", "openmax", "oltr"])
@pytest.mark.parametrize("width", [64, 256])
def test_other_heads_differ_by_no_more_than_the_rounding(precision, width, kind):
    """Of torch's own products; a memory head's in the reference, too."""
    bound = 1e-5 if precision == "highest" else 4 * ROUNDING
    with use_backend("reference" if kind == "oltr" else "native"):
        alone, together = alone_and_together(trained(kind, width), torch.randn(33, width))
    largest = together["logits"].abs().max()
    assert (alone["logits"] - together["logits"]).abs().max() <= bound * largest
    if kind == "openmax":
        assert (alone["unknown"] - together["unknown"]).abs().max() <= bound
    if kind == "oltr":
        assert torch.equal(alone["distance"], together["distance"])
        assert torch.equal(alone["nearest"], together["nearest"])


@backends
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_distances_are_exact(precision, backend, rows):
    """Of rows near centroids far from the origin, where products cancel."""
    memory = CentroidMemory(50, 64)
    y = torch.arange(50)
    memory.initialise(100 + torch.randn(50, 64), y)
    x = memory.centroids[:rows].detach() + 1e-2 * torch.randn(rows, 64)
    exact = torch.cdist(x.double(), memory.centroids.double())
    with use_backend(backend):
        want = exact.min(dim=1)
        got = memory(x)
        assert torch.equal(got.index, want.indices)
        torch.testing.assert_close(got.distance.double(), want.values, rtol=1e-5, atol=0)
        want, got = exact.topk(3, largest=False), memory.closest(x, 3)
        assert torch.equal(got.index, want.indices)
        torch.testing.assert_close(got.distance.double(), want.values, rtol=1e-5, atol=0)


@backends
def test_losses_of_distances_are_exact(precision, backend):
    y = torch.arange(40) % 8
    x = 10 + torch.randn(8, 64)[y] + 1e-2 * torch.randn(40, 64)
    centroids = ops.class_means(x, y, 8).means
    with use_backend(backend):
        for loss in (
            LiftedStructureLoss(),
            RangeLoss(margin=1e3),
            lambda x, y: DiscCentroidsLoss(1e3, 1.0)(x, y, centroids.to(x.dtype)),
        ):
            got, want = loss(x, y).double(), loss(x.double(), y)
            torch.testing.assert_close(got, want, rtol=2e-5, atol=0)
    means = F.normalize(torch.stack([x[y == c].double().mean(0) for c in range(8)]))
    torch.testing.assert_close(class_directions([(x, y)], 8), means.float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("rows", "classes", "width"), [(1000, 512, 24), (64, 8500, 24)])
def test_a_memory_head_gives_the_same_bits_up_to(precision, rows, classes, width):
    """512 classes, or 64 rows: of more rows and classes a bank is cut into other parts."""
    head, x = OLTRHead(width, classes).eval(), torch.randn(rows, width)
    head.init_from(None, torch.randn(classes, width), torch.arange(classes), classifier="means")
    with torch.no_grad():
        alone, together = alone_and_together(head, x[:4])[0], head.outputs(x)
        target = torch.zeros(rows, dtype=torch.int64)
        args = {"weight": head.memory.centroids, "reduction": "none"}
        losses = ops.cosine_cross_entropy(x, target=target, **args)
        one = [ops.cosine_cross_entropy(x[i : i + 1], target=target[:1], **args) for i in range(4)]
    for name, value in alone.items():
        assert torch.equal(value, getattr(together, name)[:4]), name
    assert torch.equal(losses[:4], torch.cat(one))
