"""Cross-entropy of cosine logits against eager on materialised logits."""

import pytest
from cases import Case, cases
from harness import Settings, measure

CASES = [
    *cases([(256, 8142, 512), (256, 100_000, 512)], ["full"], quick=True),
    *cases([(256, 8142, 512), (256, 100_000, 512)], ["forward", "backward"]),
    *cases([(256, 8142, 512)], ["forward", "full"], ["bfloat16", "high", "medium"]),
    *cases([(256, 1000, 512), (64, 100_000, 512)], ["forward", "full"], ["float32", "bfloat16"]),
]


@pytest.mark.parametrize("case", CASES)
def test_cosine_cross_entropy(benchmark, settings: Settings, case: Case):
    measure(benchmark, settings, "cosine_cross_entropy", case)
