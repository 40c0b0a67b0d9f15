"""Every method on 2,000 characters: `python benchmarks/tables/glyphs_2000.py`, after
`oltr data make glyphs`."""

from compare import EVERY, MANY, Table, make
from runs import SLOW

NOTES = (
    "Methods with a second stage and range loss were tuned here, on validation images; all else is "
    "what the icons asked for. Range loss, which draws all features to one point with the icons' "
    "settings, was tuned and trained in float32 and on an older processor, the others in bfloat16."
)

if __name__ == "__main__":
    title = "2,000 Chinese characters, 12 to 1 training faces, test faces of other families"
    rows = (*EVERY, *MANY)
    make(Table("glyphs_2000", title, "glyphs-2000", tuple(range(5)), rows, SLOW, NOTES))
