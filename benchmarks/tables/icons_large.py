"""Every method on 2,920 icon names: `python benchmarks/tables/icons_large.py`, after
`oltr data make icons-large`."""

from compare import EVERY, MANY, Row, Table, make
from runs import SLOW

BALANCED = Row("oltr-plus, all classes alike", "oltr-plus", ("stage2.test_prior=balanced",))
NOTES = (
    "Validation and test images have the training's tail, so that overall is mostly the many-shot "
    "classes. NCM, logit adjustment and the last row expect all classes alike."
)

if __name__ == "__main__":
    title = "2,920 icon names with their natural tail, 140 to 1 images"
    make(Table("icons_large", title, "icons-large", (0,), (*EVERY, *MANY, BALANCED), SLOW, NOTES))
