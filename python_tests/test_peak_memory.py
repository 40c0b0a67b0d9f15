"""Neither B x C x D nor a whole B x C is ever allocated, forward or backward."""

from __future__ import annotations

import pytest

B, C, D = 128, 200_000, 16

CODE = """
import resource, torch
from oltr_ext import ops
B, C, D = {B}, {C}, {D}
torch.manual_seed(0)
x = torch.randn(B, D, requires_grad=True)
bank = [torch.randn(C, D, requires_grad=True) for _ in range(2)]
bias = torch.randn(C, requires_grad=True)
square, gate_bias = torch.randn(D, D), torch.randn(D)
target = torch.randint(C, (B,))
small = torch.randn(4, D, requires_grad=True)
def call(x, a, b, bias, target):
    return {call}
# The same call at a small bank: loads code, threads and autograd once.
call(small, *(t[:512].detach().requires_grad_() for t in bank), bias[:512], target[:4] % 512)\\
    .sum().backward()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
call(x, *bank, bias, target).sum().backward()
print(peak() - before)
"""


@pytest.mark.parametrize(
    "call",
    [
        "ops.memory_attention(x, a, bias, b)",
        "ops.nearest_centroid(x, a).distance",
        "ops.meta_embedding(x, a, b, bias, square, gate_bias, memory_grad=True)",
        "ops.cosine_cross_entropy(x, a, target, class_prior=bias.exp(), label_smoothing=0.1)",
        "ops.disc_centroids_loss(x, target, a, margin=1e4)",
        "ops.class_means(x, target, {C})[0]",
    ],
)
def test_peak_memory_stays_far_below_one_logit_matrix(call, run_python):
    text = call.replace("{C}", "len(a)")
    grown = int(run_python(CODE.format(B=B, C=C, D=D, call=text)))
    logits = 4 * B * C  # 102 MB
    banks = 3 * 4 * C * D  # gradients of up to three banks: 38 MB that any backward must hold
    assert grown < banks + logits / 4, f"grew by {grown / 1e6:.0f} MB"
