#!/usr/bin/env bash
# torchcp: prediction sets "for every class" leave out half the images of a class with one calibration image
#
# Versions: torchcp 1.2.1 (2025-10), torch 2.14.1.
# - RC3PPredictor promises coverage class by class. It keeps a class only up to the worst rank that it had among its own
#   calibration images, and takes the share of them beyond that rank as known exactly. But the worst of n ranks
#   is exceeded by one new image in n + 1: half of them are covered at one image, 84 % at five. A class with no image
#   at all is in every set. ClassConditionalPredictor keeps the promise for all of them.
# - ClusteredPredictor with its default "auto" is meant for classes with few images. With a long tail its formulas come to
#   less than two clusters, which switches clustering off, and all classes get an infinite threshold: every set holds
#   every class. No warning in either case.
# Seen (100 classes, sets for 90 %; share of images covered, by the class's calibration images; classes per set):
#> ClassConditionalPredictor: 0: 1.00, 1: 1.00, 2: 1.00, 5: 1.00, 20: 0.90, 200: 0.90; 66 classes
#> RC3PPredictor: 0: 1.00, 1: 0.51, 2: 0.70, 5: 0.84, 20: 0.90, 200: 0.90; 36 classes
#> ClusteredPredictor: 0: 1.00, 1: 1.00, 2: 1.00, 5: 1.00, 20: 1.00, 200: 1.00; 100 classes
# Its graph and ranking-loss parts, and what only they need (torch_geometric, torchsort, transformers), are left out.
# Here: a class of too few calibration images has no threshold of its own and is in every set, or joins others (`nn/sets.py`);
# python_tests/test_sets.py::test_few_rows_and_none, ::test_a_group_of_too_few_rows_joins_the_next.
pins="torch==2.14.1 torchvision==0.29.1 scikit-learn==1.9.1 pandas==3.1.1 tqdm==4.70.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -m pip install -q --no-deps --target "$tmp/torchcp" torchcp==1.2.1
PYTHONPATH=$tmp/torchcp "$py" -W ignore - >"$tmp/out" 2>"$tmp/err" <<'PYTHON' || { cat "$tmp/err"; exit 1; }
import sys
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

import torch


class Without:
    """An import of what is left out gives an empty stand-in."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch_geometric", "torchsort", "transformers"):
            return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return MagicMock(__path__=[], __all__=[])

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Without())
from torchcp.classification.predictor import ClassConditionalPredictor, ClusteredPredictor, RC3PPredictor
from torchcp.classification.score import LAC

torch.manual_seed(0)
classes, of_class = 100, torch.tensor([200] * 20 + [20] * 30 + [5] * 20 + [2] * 10 + [1] * 10 + [0] * 10)
calibration, test = torch.arange(classes).repeat_interleave(of_class), torch.arange(classes).repeat_interleave(50)
hit, size = {}, {}


def logits(label):
    return torch.randn(len(label), classes) + 1.8 * torch.nn.functional.one_hot(label, classes)


for _ in range(15):
    seen, new = logits(calibration), logits(test)
    for method in (ClassConditionalPredictor, RC3PPredictor, ClusteredPredictor):
        predictor = method(LAC(), alpha=0.1)
        predictor.num_classes = classes  # RC3P takes it from `calibrate`, which wants a model
        predictor.calculate_threshold(seen, calibration, 0.1)
        sets = predictor.predict_with_logits(new).double()
        hit[method] = hit.get(method, 0) + sets.gather(1, test[:, None]).view(classes, 50).mean(1) / 15
        size[method] = size.get(method, 0) + sets.sum(1).mean().item() / 15
for method, share in hit.items():
    by_count = ", ".join(f"{n}: {share[of_class == n].mean():.2f}" for n in of_class.unique().tolist())
    print(f"{method.__name__}: {by_count}; {size[method]:.0f} classes")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
