"""Every method on 2,000 characters: `python benchmarks/tables/glyphs_2000.py`, after
`oltr data make glyphs`."""

from compare import EVERY, MANY, Table, make
from runs import SLOW

NOTES = (
    "The rates of methods with a second stage were tuned here, on validation images; all else is "
    "what the icons asked for: range loss collapses the features to one point with its own weight, "
    "and with a hundredth of it."
)

if __name__ == "__main__":
    title = "2,000 Chinese characters, 12 to 1 training faces, test faces of other families"
    rows = (*EVERY, *MANY)
    make(Table("glyphs_2000", title, "glyphs-2000", tuple(range(5)), rows, SLOW, NOTES))
