"""Cosine logits against a normalised copy of the weights: forward, backward, and both."""

import pytest
from cases import Case, cases
from harness import Settings, measure

CASES = [
    *cases([(256, 8142, 512)], ["forward", "full"], quick=True),
    *cases([(256, 8142, 512)], ["backward"]),
    *cases([(256, 8142, 512)], ["forward", "full"], ["bfloat16", "high", "medium"]),
    *cases([(256, 1000, 512), (64, 100_000, 512)], ["forward", "full"], ["float32", "bfloat16"]),
]


@pytest.mark.parametrize("case", CASES)
def test_cosine_logits(benchmark, settings: Settings, case: Case):
    measure(benchmark, settings, "cosine_logits", case)
