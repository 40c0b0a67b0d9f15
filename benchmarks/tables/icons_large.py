"""Every method on 2,920 icon names: `python benchmarks/tables/icons_large.py`, after
`oltr data make icons-large`."""

from compare import EVERY, MANY, Row, Table, make
from runs import SLOW

SHARES = {  # of the prior that oltr-plus learned under, in place of the configuration's `val`
    "oltr-plus, half the prior": "0.5",
    "oltr-plus, a fifth of the prior": "0.2",
    "oltr-plus, all classes alike": "balanced",
}
DIAL = tuple(Row(n, "oltr-plus", (f"test_prior={v}",)) for n, v in SHARES.items())
NOTES = (
    "Validation and test images have the training's tail, so that overall is mostly the many-shot "
    "classes. balanced-softmax, logit-adjustment and oltr-plus expect that tail (test_prior: val), "
    "where a row says nothing else; the methods that retrain a classifier expect all classes "
    "alike. The settings are those that 2,000 characters asked for, but for rate and decay "
    "of plain training, which are the configuration's."
)

if __name__ == "__main__":
    title = "2,920 icon names with their natural tail, 140 to 1 images"
    make(Table("icons_large", title, "icons-large", (0,), (*EVERY, *MANY, *DIAL), SLOW, NOTES))
