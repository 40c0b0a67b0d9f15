"""softmax(x keys' + bias) memory against two products and SDPA: forward, backward, and both."""

import pytest
from cases import Case, cases
from harness import Settings, measure

OTHERS = [(256, 1000, 512), (128, 8142, 2048), (64, 100_000, 512)]
CASES = [
    *cases([(256, 8142, 512)], ["forward", "full"], quick=True),
    *cases([(256, 8142, 512)], ["backward"]),
    *cases([(256, 8142, 512)], ["forward", "full"], ["bfloat16", "high", "medium"]),
    *cases(OTHERS, ["forward", "full"], ["float32", "bfloat16"]),
]


@pytest.mark.parametrize("case", CASES)
def test_memory_attention(benchmark, settings: Settings, case: Case):
    measure(benchmark, settings, "memory_attention", case)
