"""How time grows with classes, at B = 64, and with rows, at C = 10,000."""

import pytest
from cases import Case, cases
from harness import Settings, measure

D = 512
CLASSES = [(64, C, D) for C in (1000, 10_000, 100_000)]
MILLION = [(64, 1_000_000, D)]
ROWS = [(B, 10_000, D) for B in (1, 4, 16, 256, 1024, 4096)]  # 64: above


@pytest.mark.parametrize(
    "case",
    [
        *cases(CLASSES, ["forward", "full"], quick=True),
        *cases(MILLION, ["forward", "full"]),
        *cases(ROWS, ["forward", "full"]),
    ],
)
def test_meta_embedding(benchmark, settings: Settings, case: Case):
    measure(benchmark, settings, "meta_embedding", case)


@pytest.mark.parametrize(
    "case",
    [
        *cases(CLASSES, ["full"], quick=True),
        *cases(MILLION, ["full"]),
        *cases(ROWS, ["full"]),
    ],
)
def test_cosine_cross_entropy(benchmark, settings: Settings, case: Case):
    measure(benchmark, settings, "cosine_cross_entropy", case)
