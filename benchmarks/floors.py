"""What each op must do at least: floating-point operations, and bytes in and out of memory.

Operations count a multiply-add as two and leave out what does not grow with B C D or B D^2.
A backward pass that keeps no B x C computes the logits again, which counts here: a kernel that
kept them could do with 2BCD less. Bytes count every input read once and every output written once
in each pass, nothing between.

==================== ============== ================ =======================================
op                   forward        backward         backward is made of
==================== ============== ================ =======================================
memory_attention     4BCD           10BCD            S again, dP, dM, dK, dx
nearest_centroid     2BCD           0                a gather: bytes alone
meta_embedding       6BCD + 2BD^2   10BCD + 4BD^2    that of the attention; dW_s, dx
cosine_logits        2BCD           4BCD             dw, dv
cosine_cross_entropy 2BCD           6BCD             logits again, dw, dv
disc_centroids_loss  0              0                bytes alone
class_means          0              0                bytes alone
training_step        8BCD + 2BD^2   14BCD + 4BD^2    meta_embedding without dM, cross-entropy
==================== ============== ================ =======================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Floor(NamedTuple):
    """The least a call can do."""

    flops: float
    bytes: float

    def seconds(self, gflops: float, gbytes: float) -> float:
        """At so many GFLOP/s and GB/s, arithmetic and memory traffic overlapping fully."""
        return max(self.flops / (1e9 * gflops), self.bytes / (1e9 * gbytes))

    def __add__(self, other: tuple[float, ...]) -> Floor:  # type: ignore[override]
        return Floor(self.flops + other[0], self.bytes + other[1])


def _floors(op: str, B: int, C: int, D: int, size: int) -> tuple[Floor, Floor]:
    bank, rows, square = C * D, B * D, D * D
    product, gate = B * bank, B * square
    if op == "memory_attention":
        read = 2 * bank + C
        forward = Floor(4 * product, size * (read + 2 * rows))
        return forward, Floor(10 * product, size * (2 * read + 4 * rows))
    if op == "nearest_centroid":  # the gradient of the bank is dense, nearly all zeros
        forward = Floor(2 * product, size * (bank + rows))
        return forward, Floor(0, size * (bank + 3 * rows))
    if op == "meta_embedding":
        read = 2 * bank + C + square
        forward = Floor(6 * product + 2 * gate, size * (read + 2 * rows))
        return forward, Floor(10 * product + 4 * gate, size * (2 * read + 5 * rows))
    if op == "cosine_logits":
        forward = Floor(2 * product, size * (bank + rows + B * C))
        return forward, Floor(4 * product, size * (2 * bank + 2 * rows + B * C))
    if op == "cosine_cross_entropy":
        forward = Floor(2 * product, size * (bank + rows))
        return forward, Floor(6 * product, size * (2 * bank + 2 * rows))
    if op == "disc_centroids_loss":
        return Floor(0, size * (bank + rows)), Floor(0, size * (2 * bank + 2 * rows))
    if op == "class_means":
        return Floor(0, size * (bank + rows)), Floor(0, size * (min(bank, rows) + rows))
    if op == "training_step":
        parts = ("meta_embedding", "cosine_cross_entropy", "disc_centroids_loss")
        forward, backward = Floor(0, 0), Floor(0, 0)
        for part in parts:
            once, back = _floors(part, B, C, D, size)
            forward, backward = forward + once, backward + back
        # The memory gets no gradient through the attention. SGD with momentum reads a parameter,
        # its gradient and its momentum and writes two of them back.
        parameters = 3 * bank + C + square
        return forward, Floor(backward.flops - 2 * product, backward.bytes + 5 * size * parameters)
    raise ValueError(f"no floor for {op!r}")


def floor(op: str, mode: str, B: int, C: int, D: int, size: int = 4) -> Floor:
    """The floor of one call.

    Args:
        op: a name of the table above.
        mode: ``"forward"``, ``"backward"`` or ``"full"`` (both).
        B, C, D: rows, classes, features.
        size: bytes of an element.
    """
    forward, backward = _floors(op, B, C, D, size)
    return {"forward": forward, "backward": backward, "full": forward + backward}[mode]


def rate(dtype: str, ceilings: Mapping[str, float]) -> float:
    """GFLOP/s that a case is held to: of the measured rates, the highest that its dtype allows.

    "high" splits a number into two of bfloat16 and multiplies three times.
    """
    fp32, bf16 = ceilings["fp32_gflops"], ceilings["bf16_gflops"]
    if dtype == "high":
        return max(fp32, bf16 / 3)
    return fp32 if dtype == "float32" else bf16 or fp32
