"""Every method on 2,920 icon names: `python benchmarks/tables/icons_large.py`, after
`oltr data make icons-large`."""

from compare import SLOW, Table, make

if __name__ == "__main__":
    title = "2,920 icon names with their natural tail, 140 to 1 images"
    make(Table("icons_large", title, "icons-large", (0,), overrides=SLOW))
