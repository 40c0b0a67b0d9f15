"""The icons as embeddings of a network that ImageNet trained, EfficientNet-lite0: written once."""

from pathlib import Path

from oltr_ext.serve.embed import embed

ROOT = Path("runs/tables/icons_embedded")
OVERRIDES = (f"data.root={ROOT}", "data.shots=[30, 10]")  # of the configuration `embeddings`


def embed_icons() -> None:
    network = ["model.backbone=efficientnet_lite0", "model.weights=package"]
    embed("icons", ROOT, overrides=network)
