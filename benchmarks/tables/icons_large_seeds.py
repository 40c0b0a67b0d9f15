"""Five methods on 2,920 icon names over three seeds:
`python benchmarks/tables/icons_large_seeds.py`, after `oltr data make icons-large`."""

from compare import Row, Table, make
from runs import SLOW

ROWS = ("plain", "tau-norm", "ncm", "logit-adjustment", "oltr-plus")
NOTES = "Plain training, what costs nothing beside it, and oltr-plus."

if __name__ == "__main__":
    title = "2,920 icon names, five methods over three seeds"
    rows = [Row(method, method) for method in ROWS]
    make(Table("icons_large_seeds", title, "icons-large", (0, 1, 2), rows, SLOW, NOTES))
