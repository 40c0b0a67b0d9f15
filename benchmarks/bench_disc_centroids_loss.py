"""The loss over all rows and classes, which one reading of the bank can give."""

import pytest
from cases import Case, cases
from harness import Settings, measure

CASES = [
    *cases([(128, 100_000, 512)], ["forward", "full"], quick=True),
    *cases([(128, 100_000, 512)], ["backward"]),
    *cases([(128, 100_000, 512)], ["forward", "full"], ["bfloat16"]),
]


@pytest.mark.parametrize("case", CASES)
def test_disc_centroids_loss(benchmark, settings: Settings, case: Case):
    measure(benchmark, settings, "disc_centroids_loss", case)
