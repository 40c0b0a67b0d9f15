"""The leaders on 2,000 characters over three seeds:
`python benchmarks/tables/glyphs_2000_seeds.py`, after `oltr data make glyphs`."""

from compare import Row, Table, make
from runs import SLOW

LEADERS = ("plain", "tau-norm", "ncm", "logit-adjustment", "oltr-plus")
NOTES = "The rows of glyphs_2000 that lead there in some column, and plain training."

if __name__ == "__main__":
    title = "2,000 Chinese characters, the leaders over three seeds"
    rows = [Row(method, method) for method in LEADERS]
    make(Table("glyphs_2000_seeds", title, "glyphs-2000", (0, 1, 2), rows, SLOW, NOTES))
