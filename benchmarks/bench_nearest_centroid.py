"""The nearest class centroid against FAISS, cdist and addmm: forward, backward, and both."""

import pytest
from cases import Case, cases
from harness import Settings, measure

CASES = [
    *cases([(256, 8142, 512), (256, 8142, 2048), (64, 100_000, 512)], ["forward"], quick=True),
    *cases([(256, 8142, 512)], ["backward", "full"]),
    *cases([(256, 8142, 512)], ["forward"], ["bfloat16", "high", "medium"]),
    *cases([(256, 8142, 2048), (64, 100_000, 512)], ["forward"], ["bfloat16"]),
]


@pytest.mark.parametrize("case", CASES)
def test_nearest_centroid(benchmark, settings: Settings, case: Case):
    measure(benchmark, settings, "nearest_centroid", case)
