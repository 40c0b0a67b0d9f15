"""The head: memory attention, selector and reachability in one op: forward, backward, and both."""

import pytest
from cases import Case, cases
from harness import Settings, measure

OTHERS = [(256, 1000, 512), (128, 8142, 2048), (64, 100_000, 512)]
CASES = [
    *cases([(256, 1000, 512), (256, 8142, 512)], ["forward", "full"], quick=True),
    *cases([(64, 100_000, 512)], ["forward"], quick=True),
    *cases([(256, 8142, 512)], ["forward", "full"], ["bfloat16", "medium"], quick=True),
    *cases([(256, 8142, 512)], ["forward", "full"], ["high"]),
    *cases(OTHERS, ["forward", "full"], ["bfloat16", "high", "medium"]),
    *cases([(1, 8142, 512), (16, 8142, 512)], ["forward"], ["float32", "bfloat16", "medium"]),
    *cases([(128, 8142, 2048)], ["forward", "full"]),
    *cases([(64, 100_000, 512)], ["full"]),
    *cases([(256, 8142, 512)], ["backward"]),
]


@pytest.mark.parametrize("case", CASES)
def test_meta_embedding(benchmark, settings: Settings, case: Case):
    measure(benchmark, settings, "meta_embedding", case)
