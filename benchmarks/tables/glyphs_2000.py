"""Every method on 2,000 characters: `python benchmarks/tables/glyphs_2000.py`, after
`oltr data make glyphs`."""

from compare import SLOW, Table, make

if __name__ == "__main__":
    title = "2,000 Chinese characters, 12 to 1 training faces, test faces of other families"
    make(Table("glyphs_2000", title, "glyphs-2000", tuple(range(5)), overrides=SLOW))
