"""Every method on frozen embeddings of the icons: `python benchmarks/tables/icons_embedded.py`,
after `python benchmarks/tables/tune.py embeddings`."""

from compare import EVERY, Table, make
from embedded import OVERRIDES, embed_icons

if __name__ == "__main__":
    embed_icons()
    title = "The icons on frozen ImageNet embeddings of EfficientNet-lite0"
    notes = "Each method's learning rate is one of four, chosen on validation data of this set."
    make(Table("icons_embedded", title, "embeddings", tuple(range(5)), EVERY, OVERRIDES, notes))
