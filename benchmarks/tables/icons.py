"""Every method on the embedded icons: `python benchmarks/tables/icons.py`, after `tune.py`."""

from compare import Table, make

if __name__ == "__main__":
    make(Table("icons", "The embedded icons: 50 classes, 60 to 4 images", "icons", tuple(range(5))))
