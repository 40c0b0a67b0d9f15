"""What others would run instead, op by op: eager formulas, libraries, the released code's way.

A peer takes the arguments of the op and gives its outputs, the differentiable one first. Every
one is held to oltr_ext.reference in float64 by python_tests/test_benchmarks.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_BYTES = 2e9
"""A peer that needs a larger tensor than this is not run, and its row says so."""


KEOPS_MOST = 2e8
"""On a CPU its compiled loops take 3 s for both passes of a meta-embedding of this size."""


@dataclass(frozen=True)
class Peer:
    """One alternative, and where it can run."""

    call: Callable[..., Any]
    needs: str = ""
    """Its largest tensor, ``"BC"`` or ``"BCD"``, of float32."""
    module: str = ""
    """A package that is not among our requirements."""
    grad: bool = True
    half: bool = True
    """Whether it takes bfloat16 inputs."""
    most: float = float("inf")
    """The largest B C D that it is given, because beyond it a call takes many seconds."""
    gpu: bool = False
    """Whether it runs on a GPU alone; gpu_bench.py runs it there."""

    def lacks(self, mode: str, dtype: torch.dtype) -> str:
        """What keeps it from running on any device; empty if nothing does."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed"
        if mode != "forward" and not self.grad:
            return "has no backward"
        if dtype == torch.bfloat16 and not self.half:
            return "takes no bfloat16"
        return ""

    def why_not(self, mode: str, B: int, C: int, D: int, dtype: torch.dtype) -> str:
        """The reason that it cannot run on a CPU; empty if it can."""
        if self.gpu:
            return "runs on a GPU alone"
        if lacks := self.lacks(mode, dtype):
            return lacks
        if self.most < B * C * D:
            return f"takes many seconds a call beyond B C D = {self.most:.0e}"
        size = 4 * {"": 0, "BC": B * C, "BCD": B * C * D}[self.needs]
        return f"needs {size / 1e9:.1f} GB for one tensor" if size > MOST_BYTES else ""


def attend(x: Tensor, keys: Tensor, key_bias: Tensor, memory: Tensor) -> Tensor:
    """Attention by two products and a softmax."""
    return torch.softmax(torch.addmm(key_bias, x, keys.t()), dim=1) @ memory


def attend_sdpa(x: Tensor, keys: Tensor, key_bias: Tensor, memory: Tensor) -> Tensor:
    """One head, the bias as an additive mask that all rows share."""
    mask = key_bias.expand(x.shape[0], -1)
    q, k, v = (t[None, None] for t in (x, keys, memory))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)[0, 0]


def attend_flex(x: Tensor, keys: Tensor, key_bias: Tensor, memory: Tensor) -> Tensor:
    """FlexAttention, compiled, the bias in its score."""
    from torch.nn.attention.flex_attention import flex_attention

    attention = torch.compile(flex_attention)
    found = attention(
        x[None, None], keys[None, None], memory[None, None],
        score_mod=lambda score, b, h, row, c: score + key_bias[c], scale=1.0,
    )  # fmt: skip
    return found[0, 0]


def attend_keops(x: Tensor, keys: Tensor, key_bias: Tensor, memory: Tensor) -> Tensor:
    """A symbolic B x C."""
    from pykeops.torch import LazyTensor

    logits = (LazyTensor(x[:, None]) | LazyTensor(keys[None])) + LazyTensor(key_bias[None, :, None])
    return logits.sumsoftmaxweight(LazyTensor(memory[None]), axis=1)


def nearest_released(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """All differences at once (B x C x D), their norms, sorted."""
    rows = x.unsqueeze(1).expand(-1, memory.shape[0], -1)
    distances, classes = torch.linalg.vector_norm(rows - memory, dim=2).sort(dim=1)
    return distances[:, 0], classes[:, 0]


def nearest_cdist(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """torch.cdist, which expands the square when that is faster; bfloat16 in float32."""
    if x.dtype == torch.bfloat16:
        x, memory = x.float(), memory.float()
    distance, index = torch.cdist(x, memory).min(dim=1)
    return distance, index


def nearest_addmm(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """|c|^2 - 2 x.c in one addmm; |x|^2 is added to the least alone."""
    squares = torch.addmm(memory.square().sum(dim=1), x, memory.t(), alpha=-2)
    least, index = squares.min(dim=1)
    return (least + x.square().sum(dim=1)).clamp_min(0).sqrt(), index


def nearest_faiss(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Exact search without an index to build (the flat one copies the bank)."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    squares, index = faiss.knn(x.numpy(), memory.numpy(), 1)
    return torch.from_numpy(squares[:, 0]).clamp_min(0).sqrt(), torch.from_numpy(index[:, 0])


def nearest_keops(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """A symbolic B x C selects; the distance is measured once."""
    from pykeops.torch import LazyTensor

    squares = ((LazyTensor(x[:, None]) - LazyTensor(memory[None])) ** 2).sum(-1)
    index = squares.argmin(dim=1).view(-1)
    return torch.linalg.vector_norm(x - memory[index], dim=1), index


def _meta(attention: Callable[..., Tensor], nearest: Callable[..., Any]) -> Callable[..., Tensor]:
    def meta(
        x: Tensor,
        memory: Tensor,
        keys: Tensor,
        key_bias: Tensor,
        selector_weight: Tensor,
        selector_bias: Tensor,
    ) -> Tensor:
        selector = torch.tanh(F.linear(x, selector_weight, selector_bias))
        reach = 10.0 / nearest(x, memory)[0].clamp_min(1e-6)
        return reach.unsqueeze(1) * (x + selector * attention(x, keys, key_bias, memory))

    return meta


def squashed(v: Tensor) -> Tensor:
    """16 v / (1 + |v|)"""
    return 16 * v / (1 + torch.linalg.vector_norm(v, dim=1, keepdim=True))


def logits_normalised(v: Tensor, weight: Tensor) -> Tensor:
    """As on paper: a normalised copy of the weights."""
    return squashed(v) @ F.normalize(weight).t()


def logits_columns(v: Tensor, weight: Tensor) -> Tensor:
    """The norms divide the logits instead: no copy of the weights."""
    return (squashed(v) @ weight.t()) / torch.linalg.vector_norm(weight, dim=1)


def _entropy(logits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda v, weight, target: F.cross_entropy(logits(v, weight), target)


def entropy_keops(v: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """A symbolic B x C; the target's logits once more."""
    from pykeops.torch import LazyTensor

    direction = F.normalize(weight)
    wide = squashed(v)
    logits = LazyTensor(wide[:, None].contiguous()) | LazyTensor(direction[None])
    picked = (wide * direction[target]).sum(dim=1)
    return (logits.logsumexp(dim=1).view(-1) - picked).mean()


def entropy_liger(v: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Its fused linear layer and cross-entropy, on a normalised copy of the weights."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    found = LigerFusedLinearCrossEntropyFunction.apply(squashed(v), F.normalize(weight), target)
    return found[0] if isinstance(found, tuple) else found


def entropy_cce(v: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Cut cross-entropy on a normalised copy of the weights; no gradient left out."""
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(squashed(v), F.normalize(weight), target, filter_eps=None)


def centroids_matrix(x: Tensor, target: Tensor, centroids: Tensor) -> Tensor:
    """The released code's way: all B x C squared distances, those to the own class set to zero."""
    rows, classes = x.shape[0], centroids.shape[0]
    attract = (x - centroids[target]).square().sum() / (2 * rows)
    squares = x.square().sum(dim=1, keepdim=True) + centroids.square().sum(dim=1)
    squares = torch.addmm(squares, x, centroids.t(), alpha=-2)
    own = F.one_hot(target, classes).bool()
    repel = squares.masked_fill(own, 0).sum() / (rows * classes)
    return attract + 0.01 * (1e5 - repel).clamp(0, 1e6)


def centroids_sums(x: Tensor, target: Tensor, centroids: Tensor, margin: float = 1e5) -> Tensor:
    """The double sum multiplied out, so that the bank is read once; it can cancel."""
    rows, classes = x.shape[0], centroids.shape[0]
    own = (x - centroids[target]).square().sum()
    every = classes * x.square().sum() + rows * centroids.square().sum()
    every = every - 2 * x.sum(dim=0) @ centroids.sum(dim=0)
    return own / (2 * rows) + 0.01 * (margin - (every - own) / (rows * classes)).clamp(0, 1e6)


def means_index_add(x: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums by index_add."""
    counts = torch.bincount(target, minlength=num_classes)
    sums = x.new_zeros(num_classes, x.shape[1]).index_add(0, target, x)
    return sums / counts.clamp_min(1).unsqueeze(1), counts


def means_one_hot(x: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums by a product with the one-hot labels."""
    own = F.one_hot(target, num_classes).to(x.dtype)
    counts = torch.bincount(target, minlength=num_classes)
    return own.t() @ x / counts.clamp_min(1).unsqueeze(1), counts


# Names that begin with "eager" are what --compile chooses from.
PEERS: dict[str, dict[str, Peer]] = {
    "memory_attention": {
        "eager": Peer(attend, "BC"),
        "sdpa": Peer(attend_sdpa),
        "keops": Peer(attend_keops, module="pykeops", half=False, most=KEOPS_MOST),
        "flex": Peer(attend_flex, gpu=True),
    },
    "nearest_centroid": {
        "released": Peer(nearest_released, "BCD"),
        "eager cdist": Peer(nearest_cdist, "BC"),
        "eager addmm": Peer(nearest_addmm, "BC"),
        "faiss": Peer(nearest_faiss, module="faiss", grad=False, half=False),
        "keops": Peer(nearest_keops, module="pykeops", half=False, most=KEOPS_MOST),
    },
    "meta_embedding": {
        "released": Peer(_meta(attend, nearest_released), "BCD"),
        "eager cdist": Peer(_meta(attend, nearest_cdist), "BC"),
        "eager addmm": Peer(_meta(attend, nearest_addmm), "BC"),
        "keops": Peer(
            _meta(attend_keops, nearest_keops), module="pykeops", half=False, most=KEOPS_MOST
        ),
    },
    "cosine_logits": {
        "eager": Peer(logits_normalised, "BC"),
        "eager columns": Peer(logits_columns, "BC"),
    },
    "cosine_cross_entropy": {
        "eager": Peer(_entropy(logits_normalised), "BC"),
        "eager columns": Peer(_entropy(logits_columns), "BC"),
        "keops": Peer(entropy_keops, module="pykeops", half=False, most=KEOPS_MOST),
        "liger": Peer(entropy_liger, module="liger_kernel", gpu=True),
        "cut cross-entropy": Peer(entropy_cce, module="cut_cross_entropy", gpu=True),
    },
    "disc_centroids_loss": {
        "released": Peer(centroids_matrix, "BC"),
        "eager sums": Peer(centroids_sums),
    },
    "class_means": {
        "eager index_add": Peer(means_index_add),
        "eager one-hot": Peer(means_one_hot, "BC"),
    },
}
