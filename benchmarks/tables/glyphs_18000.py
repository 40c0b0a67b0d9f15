"""OLTR and the best of the others on 18,000 characters:
`python benchmarks/tables/glyphs_18000.py`, after `oltr data make glyphs`."""

from compare import MANY, Row, Table, make

NOTES = (
    "The settings are those that 2,000 characters asked for, but for rate and decay of plain "
    "training, which are the configuration's. The first stage of oltr-plus, and the share of the "
    "epochs that its second gets, were mended on validation images of this set, with another seed."
)
BEST = ("ncm", "logit-adjustment", "tau-norm")  # of glyphs_2000, by OSCR

if __name__ == "__main__":
    title = "18,000 Chinese characters, 12 to 1 training faces; 2,000 unknown ones"
    methods = ("plain", *BEST, "oltr-official", "oltr", "oltr-plus")
    rows = (*(Row(m, m) for m in methods), *MANY)
    make(Table("glyphs_18000", title, "glyphs-18000", (0,), rows, notes=NOTES))
