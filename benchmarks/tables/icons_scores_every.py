"""Every method on the embedded icons, scores by training features among those to choose from, one
seed: `python benchmarks/tables/icons_scores_every.py`, after `tune.py icons`."""

from compare import Table, make

NOTES = (
    "The settings are those of icons.md; the rows of icons_scores.md, over three seeds, are its "
    "leaders and plain training. Runs waited for the machine: their seconds say little."
)

if __name__ == "__main__":
    title = "The embedded icons, every method with scores by training features"
    make(Table("icons_scores_every", title, "icons", (0,), notes=NOTES))
