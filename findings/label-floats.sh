#!/usr/bin/env bash
# pytorch-metric-learning: class numbers from 16,777,216 on melt into one another, and chance retrieval scores up to 100 %
#
# Versions: pytorch-metric-learning 2.9.0 (2025-08), faiss-cpu 1.15.1, torch 2.14.1.
# AccuracyCalculator turns int64 labels into float32 before it compares them. From 2^24 on a float32 no longer holds
# every integer, so classes whose numbers lie close count as one. Labels that are the keys of a taxonomy, a catalogue
# or a hash reach that at once; and since the neighbours then agree more often, precision can only get better.
# The losses and miners of the same package compare the integers, so training is right and only its evaluation is not.
# Seen (random features of 50 classes numbered from there on; classes told apart, precision at 1, R-precision):
#> from 0: 50, 0.017, 0.022
#> from 16777216: 25, 0.038, 0.050
#> from 67108864: 7, 0.138, 0.150
#> from 1073741824: 1, 1.000, 1.000
#> positive pairs of the losses, from 0 and from 1073741824: 19000, 19000
# Here: labels stay integers throughout;
# python_tests/test_neighbours.py::test_uint8_features_and_large_labels_are_those_numbers.
pins="torch==2.14.1 pytorch-metric-learning==2.9.0 faiss-cpu==1.15.1 scikit-learn==1.9.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
"$py" -W ignore - >"$tmp/out" <<'PYTHON'
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices

torch.manual_seed(0)
features, classes = torch.randn(1000, 16), torch.arange(1000) // 20
calculator = AccuracyCalculator(
    include=("precision_at_1", "r_precision"), k="max_bin_count", device=torch.device("cpu")
)
for first in (0, 2**24, 2**26, 2**30):
    label = first + classes
    got = calculator.get_accuracy(features, label)
    apart = len(label.float().unique())
    print(f"from {first}: {apart}, {got['precision_at_1']:.3f}, {got['r_precision']:.3f}")
pairs = [len(get_all_pairs_indices(first + classes)[0]) for first in (0, 2**30)]
print(f"positive pairs of the losses, from 0 and from {2**30}: {pairs[0]}, {pairs[1]}")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
