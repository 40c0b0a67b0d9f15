"""Class means against index_add and a one-hot product; B is the size of a training set."""

import pytest
from cases import Case, cases
from harness import Settings, measure

CASES = [
    *cases([(20_000, 1000, 512)], ["forward", "full"], quick=True),
    *cases([(100_000, 1000, 512), (20_000, 8142, 512)], ["forward", "full"]),
    *cases([(20_000, 1000, 512)], ["backward"]),
    *cases([(20_000, 1000, 512)], ["forward", "full"], ["bfloat16"]),
]


@pytest.mark.parametrize("case", CASES)
def test_class_means(benchmark, settings: Settings, case: Case):
    measure(benchmark, settings, "class_means", case)
