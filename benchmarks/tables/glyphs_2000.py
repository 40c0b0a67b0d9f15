"""Every method on 2,000 characters: `python benchmarks/tables/glyphs_2000.py`, after
`oltr data make glyphs`."""

from compare import EVERY, MANY, Table, make
from runs import SLOW

NOTES = (
    "Every method was tuned here, on validation images, and trained in bfloat16 on two cores with "
    "AMX that did other work beside it, so that seconds tell little."
)

if __name__ == "__main__":
    title = "2,000 Chinese characters, 12 to 1 training faces, test faces of other families"
    rows = (*EVERY, *MANY)
    make(Table("glyphs_2000", title, "glyphs-2000", (0,), rows, SLOW, NOTES))
