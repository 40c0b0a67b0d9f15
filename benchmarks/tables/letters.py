"""Every method, as packaged, on letters of five alphabets, a set on which nothing was tuned:
`python benchmarks/tables/letters.py`, which renders them first (see `letters_data.py`)."""

from collections.abc import Sequence

from compare import EVERY, Row, Table, make
from letters_data import packed
from runs import SLOW

NOTES = (
    "Nothing was tuned here: the configuration is `icons` with this pack in place of its data. "
    "Validation is a tenth of the training list, held out with its tail (82 images of 81 letters), "
    "and unknown letters in the training's faces; the test is balanced, in faces of other "
    "families. Runs waited for the machine: their seconds say little."
)


def table(name: str, title: str, seeds: tuple[int, ...], rows: Sequence[Row]) -> Table:
    data = ("data.kind=pack", f"data.name={packed()}", "data.shots=[7, 3]", *SLOW)
    return Table(name, title, "icons", seeds, rows, data, NOTES, tuned=False)


if __name__ == "__main__":
    title = "192 letters, 12 to 1 training faces, test faces of other families; 50 unknown ones"
    make(table("letters", title, (0,), EVERY))
