#!/usr/bin/env bash
# continuum's balanced sampler, told to balance more gently, does not balance at all
#
# Versions: continuum 1.2.7 (2023), the newest; torch 2.14.1.
# get_balanced_sampler draws classes alike; log=True is documented to leave some imbalance and oversample less violently.
# Its weights are 1 - log n / sum of all log n: with ten classes already 0.84 and 0.96 for these counts, with a
# hundred 0.98 and 1.00. And from the second task of a class-incremental scenario on, the classes of earlier tasks have
# no image, so the sum is infinite and every weight is exactly 1. The sampler is then the plain one with replacement.
# Seen (half of the classes have 500 images and half have 5, a natural share of 1.0 %; share of draws of the rare half):
#> 2 classes: 50.7 %, with log 3.9 %
#> 10 classes: 50.2 %, with log 1.1 %
#> 100 classes: 49.8 %, with log 1.1 %
#> 10 classes, second task of two: 50.2 %, with log 1.0 %
# What only its downloads and other formats need (h5py, datasets, scikit-image, six, requests, ImageHash) is left out.
# Here: `balanced` and `class_aware` streams draw classes alike whatever labels are missing;
# python_tests/test_samplers.py::test_balanced_is_balanced_over_classes_and_images, ::test_class_aware_cycles.
pins="torch==2.14.1 torchvision==0.29.1 matplotlib==3.11.2 scipy==1.17.1 scikit-learn==1.9.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -m pip install -q --no-deps --target "$tmp/alone" continuum==1.2.7
PYTHONPATH=$tmp/alone "$py" -W ignore - >"$tmp/out" 2>"$tmp/err" <<'PYTHON' || { cat "$tmp/err"; exit 1; }
import sys
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

import numpy as np
import torch


class Without:
    """An import of what is left out gives an empty stand-in."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("h5py", "datasets", "skimage", "pandas", "six", "requests", "imagehash"):
            return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return MagicMock(__path__=[], __all__=[])

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Without())
from continuum.datasets import InMemoryDataset
from continuum.scenarios import ClassIncremental
from continuum.tasks import get_balanced_sampler


def rare_share(images, task, log, **tasks):
    label = np.arange(len(images)).repeat(images)
    pixels = np.zeros((len(label), 4, 4, 3), np.uint8)
    part = ClassIncremental(InMemoryDataset(pixels, label), **tasks)[task]
    random = torch.Generator().manual_seed(0)
    drawn = list(get_balanced_sampler(part, log=log, num_samples=20000, generator=random))
    return (np.asarray(images)[part.get_raw_samples()[1][drawn]] == 5).mean()


for classes in (2, 10, 100):
    images = [500, 5] * (classes // 2)
    plain, log = (rare_share(images, 0, log, nb_tasks=1) for log in (False, True))
    print(f"{classes} classes: {100 * plain:.1f} %, with log {100 * log:.1f} %")
plain, log = (rare_share([500, 5] * 10, 1, log, increment=10) for log in (False, True))
print(f"10 classes, second task of two: {100 * plain:.1f} %, with log {100 * log:.1f} %")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
