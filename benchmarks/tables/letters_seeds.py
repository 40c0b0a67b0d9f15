"""The leaders on letters over three seeds: `python benchmarks/tables/letters_seeds.py`."""

from compare import Row, make
from letters import table

LEADERS = ("plain", "lifted", "ncm", "balanced-softmax", "logit-adjustment", "oltr-plus")

if __name__ == "__main__":
    rows = [Row(method, method) for method in LEADERS]
    make(table("letters_seeds", "192 letters, the leaders over three seeds", (0, 1, 2), rows))
