"""Every method, as packaged and for as many epochs as `auto` makes them, on what a newcomer has:
`python benchmarks/tables/small_pictures.py`, which makes the pictures (see
`small_pictures_data.py`)."""

from compare import EVERY, Table, make
from runs import SLOW
from small_pictures_data import JUDGED, configuration

NOTES = (
    "The configuration is a newcomer's: list files, no epochs, a tenth of the training list held "
    "out as validation, no unknown images to choose a score by. Nothing was chosen on this set. "
    "Runs waited for the machine: their seconds say little. fslwf wants a class of ten images, and "
    "there is none."
)

if __name__ == "__main__":
    title = "500 small colour pictures of 150 emoji, 8 to 1 a class, tested on another hand's"
    overrides = (*SLOW, "data.workers=0")
    config = str(configuration(JUDGED))
    rows = [row for row in EVERY if row.name != "fslwf"]
    make(Table("small_pictures", title, config, (0,), rows, overrides, NOTES, tuned=False))
