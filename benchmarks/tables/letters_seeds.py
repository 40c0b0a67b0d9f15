"""Plain training, what refits its classifier, and oltr-plus on letters, over three seeds:
`python benchmarks/tables/letters_seeds.py`."""

from compare import Row, make
from letters import table

METHODS = ("plain", "tau-norm", "ncm", "logit-adjustment", "oltr-plus")

if __name__ == "__main__":
    rows = [Row(method, method) for method in METHODS]
    make(table("letters_seeds", "192 letters, five methods over three seeds", (0, 1, 2), rows))
