"""What twice the epochs change on the embedded icons, for three of the leaders:
`python benchmarks/tables/icons_epochs.py`, after `tune.py icons`."""

from compare import Row, Table, make
from runs import SLOW

TWICE = {
    "logit-adjustment": ("stage1.epochs=60",),
    "range": ("stage1.epochs=60",),
    "oltr-plus": ("stage1.epochs=15", "stage2.epochs=45"),
}
ONCE = {**dict.fromkeys(TWICE, ()), "oltr-plus": ("stage1.epochs=8", "stage2.epochs=22")}
NOTES = "Settings are those that 30 epochs asked for."

if __name__ == "__main__":
    title = "The embedded icons, 30 epochs and 60"
    rows = [
        Row(f"{method}, {epochs} epochs", method, overrides)
        for epochs, each in ((30, ONCE), (60, TWICE))
        for method, overrides in each.items()
    ]
    make(Table("icons_epochs", title, "icons", (101, 102, 103), rows, SLOW, NOTES))
