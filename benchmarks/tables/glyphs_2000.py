"""Every method on 2,000 characters: `python benchmarks/tables/glyphs_2000.py`, after
`oltr data make glyphs`."""

from compare import EVERY, SLOW, STARTED, Table, make

NOTES = "Range loss collapses the features to one point here, at the weight that suits the icons."

if __name__ == "__main__":
    title = "2,000 Chinese characters, 12 to 1 training faces, test faces of other families"
    rows = (*EVERY, STARTED)
    make(Table("glyphs_2000", title, "glyphs-2000", tuple(range(5)), rows, SLOW, NOTES))
