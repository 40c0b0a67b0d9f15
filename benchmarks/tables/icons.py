"""Every method on the embedded icons: `python benchmarks/tables/icons.py`.

After `tune.py icons`.
"""

from compare import Table, make

NOTES = (
    "The design of oltr-plus was found on this set, earlier on with test rows in view, and that of "
    "no other method: another set has to confirm its lead."
)

if __name__ == "__main__":
    title = "The embedded icons: 50 classes, 60 to 4 images"
    make(Table("icons", title, "icons", tuple(range(5)), notes=NOTES))
