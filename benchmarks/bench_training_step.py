"""One step of training on features: the OLTR head, fused and eager, and classifiers that do less.

A step is the loss, its gradients, and SGD with momentum. The ratio to linear + cross-entropy says
what the head costs over a plain classifier.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import Case, cases, matmul_precision
from harness import Settings, ceilings, interleave, record, require_memory
from peers import PEERS
from torch import Tensor, nn

from oltr_ext.nn import CosineClassifier, OLTRHead

LINEAR, COSINE = "linear + cross-entropy", "cosine, eager"
CASES = [
    *cases([(128, 1000, 512), (128, 10_000, 512)], ["full"], quick=True),
    *cases([(128, 200, 512), (128, 100_000, 512)], ["full"]),
]


def eager_loss(head: OLTRHead, x: Tensor, target: Tensor) -> Tensor:
    """`OLTRHead.loss` from the eager formulas; the memory is detached in the embedding."""
    keys, gate = head.classifier.fc_hallucinator, head.classifier.fc_selector
    memory = head.memory.centroids
    v = PEERS["meta_embedding"]["eager addmm"].call(
        x, memory.detach(), keys.weight, keys.bias, gate.weight, gate.bias
    )
    weight = head.classifier.cosnorm_classifier.weight
    loss = PEERS["cosine_cross_entropy"]["eager columns"].call(v, weight, target)
    pull = PEERS["disc_centroids_loss"]["eager sums"].call(x, target, memory, margin=10.0)
    return loss + head.feature_loss_weight * pull


def step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A step of SGD on the module's parameters."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def oltr_head(case: Case) -> OLTRHead:
    """A head with random centroids."""
    torch.manual_seed(0)
    head = OLTRHead(case.D, case.C)
    with torch.no_grad():
        head.memory.centroids.normal_()
    return head


@pytest.mark.parametrize("case", CASES)
def test_training_step(benchmark, settings: Settings, case: Case):
    case = case.small() if settings.smoke else case
    require_memory(case, 8)
    fused, eager = oltr_head(case), oltr_head(case)
    linear, cosine = nn.Linear(case.D, case.C), CosineClassifier(case.D, case.C)
    x, target = torch.randn(case.B, case.D), torch.randint(case.C, (case.B,))
    logits = PEERS["cosine_logits"]["eager columns"].call
    peers = {
        "eager": step(eager, lambda: eager_loss(eager, x, target)),
        LINEAR: step(linear, lambda: F.cross_entropy(linear(x), target)),
        COSINE: step(cosine, lambda: F.cross_entropy(logits(x, cosine.weight), target)),
    }
    with matmul_precision(case.dtype):
        found = interleave(
            benchmark,
            step(fused, lambda: fused.loss(x, target)),
            peers,
            ceilings("training_step", case),
            settings.budget,
        )
    record(benchmark, "training_step", case, found, baselines=[LINEAR, COSINE])
