"""What the published long-tailed sets hold, and where each part of them is to be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PUBLISHED", "Published"]

AUTHORS = (
    "the folder that github.com/zhmiao/OpenLongTailRecognition-OLTR links under Data Preparation"
)


@dataclass(frozen=True)
class Published:
    """Counts of a published set; None where none is published."""

    title: str
    classes: int
    images: Mapping[str, int]  # by part: train, val, test, open_test
    sources: tuple[str, ...]
    shots: tuple[int, int] | None = None  # images of the largest and of the smallest class
    rounded: Mapping[str, int] = field(default_factory=dict)  # published to the nearest this many


# by the name of the training list
PUBLISHED: Mapping[str, Published] = {
    # open images: ILSVRC2010 validation, of the classes that ILSVRC2012 does not have
    "ImageNet_LT_train.txt": Published(
        title="ImageNet-LT",
        classes=1000,
        images={"train": 115_846, "val": 20_000, "test": 50_000, "open_test": 18_000},
        shots=(1280, 5),
        sources=(
            "images: image-net.org, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, unpacked "
            "to train/<wnid>/ and val/<wnid>/ (the validation images sorted into their classes)",
            f"the lists and open images: {AUTHORS}, ImageNet_LT/",
        ),
    ),
    # open images: the test images of Places-Extra69
    "Places_LT_train.txt": Published(
        title="Places-LT",
        classes=365,
        images={"train": 62_500, "val": 7_300, "test": 36_500, "open_test": 6_600},
        shots=(4980, 5),
        sources=(
            "images: places2.csail.mit.edu, Places365-Standard, small images (256 x 256): "
            "train_256_places365standard.tar (data_256/) and val_256.tar",
            f"the lists and open images: {AUTHORS}, Places_LT/",
        ),
    ),
    "iNaturalist18_train.txt": Published(
        title="iNaturalist 2018",
        classes=8142,
        images={"train": 437_513, "val": 24_426, "test": 24_426},
        sources=(
            "images: github.com/visipedia/inat_comp, 2018, train_val2018.tar.gz (120 GB)",
            "the lists: github.com/facebookresearch/classifier-balancing, data/iNaturalist18/, or "
            "its gen_lists.py from train2018.json and val2018.json",
        ),
    ),
    "MS1M_LT_train.txt": Published(
        title="MS1M-LT",
        classes=74_500,
        images={"train": 887_500},
        rounded={"classes": 100, "train": 100},
        sources=(
            "images: github.com/deepinsight/insightface, recognition/_datasets_, MS1M-ArcFace "
            "(85K ids/5.8M images), unpacked from its .rec to files",
            f"the training list: {AUTHORS}; save it as MS1M_LT_train.txt. Lists of held-out images "
            "of the same people are not published: draw your own",
        ),
    ),
}
