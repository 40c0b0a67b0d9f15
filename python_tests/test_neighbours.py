"""What other libraries get wrong (`findings/`) and users of this one must not meet."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from oltr_ext import ops
from oltr_ext.nn import OLTRHead, OpenMaxHead


@pytest.fixture
def medium_precision():
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 256), (torch.float16, 2048)])
def test_class_sums_go_on_where_adding_one_changes_nothing(dtype, most):
    """bf16-class-sums: means of many rows, and gradients that many rows share."""
    n = 4 * most
    x, label = torch.ones(n, 3, dtype=dtype), torch.zeros(n, dtype=torch.long)
    means, count = ops.class_means(x, label, 2)[:2]
    assert means[0].tolist() == [1, 1, 1] and count.tolist() == [n, 0]
    memory = torch.tensor([[0.0, 0, 0], [9, 9, 9]], dtype=dtype, requires_grad=True)
    distance, _ = ops.nearest_centroid(x[:, :1].expand(n, 3), memory)
    (grad,) = torch.autograd.grad(distance, memory, torch.ones_like(distance))
    torch.testing.assert_close(
        grad[0].double(), torch.full((3,), -n / 3**0.5).double(), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("value", [300.0, 2000.0, 0.0])
def test_float16_norms_beyond_float16(value):
    """fp16-unit-vectors: norms of 19,200 and 128,000, and of 0."""
    v = torch.full((1, 4096), value, dtype=torch.float16)
    weight = torch.full((1, 4096), 2000.0, dtype=torch.float16)
    logits = ops.cosine_logits(v, weight)
    norm = v.double().norm()
    assert logits.item() == pytest.approx((16 * norm / (1 + norm)).item(), rel=1e-3)


def test_openmax_scores_a_row_alike_alone_and_in_a_batch():
    """pytorch-ood-openmax-batch: whoever else is there, and whichever classes they are."""
    near = F.one_hot(torch.arange(100) % 5, 5)
    head = OpenMaxHead(5, 5, alpha=3)
    head.start_at(torch.eye(5))
    head.fit(4 * near + torch.randn(100, 5), torch.arange(100) % 5)
    x = 2 * near[:40] + torch.randn(40, 5)
    together = head.outputs(x).unknown
    apart = torch.cat([head.outputs(row[None]).unknown for row in x])
    assert together.std() > 0.01
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-6)


def test_medium_precision_answers_a_row_alike_alone_and_in_a_batch(medium_precision):
    """medium-depends-on-size: with 100 classes torch rounds three rows and not two."""
    x, target = torch.randn(64, 512).relu(), torch.arange(64) % 50
    head = OLTRHead(512, 100)
    head.init_from(None, x, target, classifier="means")
    with torch.no_grad():
        together = head.outputs(x).logits
        for rows in (1, 2, 3, 16):
            torch.testing.assert_close(
                head.outputs(x[:rows]).logits, together[:rows], rtol=0, atol=1e-4
            )
