"""Every method on the embedded icons with the scores by training features, which icons.md, from
before there were any, lacks: `python benchmarks/tables/icons_scores.py`, after `tune.py icons`."""

from compare import Table, make

NOTES = (
    "Beside icons.md every method has more scores to choose from: `gen`, and by its features and "
    "those of training distances, `vim`, and sums with the largest logit. Which one is the rule "
    "of `open_set.score: auto`. The settings are those of icons.md. Some runs were interrupted and "
    "went on, and others waited for the machine: their seconds say little."
)

if __name__ == "__main__":
    title = "The embedded icons, scores by training features among those to choose from"
    make(Table("icons_scores", title, "icons", (0, 1, 2), notes=NOTES))
