#!/usr/bin/env bash
# MAPIE's calibration error and accuracy-rejection area of the same predictions change with the order of the rows
#
# Versions: MAPIE 1.6.0 (2026-10), scikit-learn 1.9.1, scipy 1.17.1, numpy 2.4.6.
# - expected_calibration_error and top_label_ece with split_strategy="array split" cut the rows as they come, unsorted, and
#   take the largest confidence of each piece for a bin's edge. In random order all edges lie close below the highest
#   confidence, nearly all rows share the first bin, and errors of opposite sign cancel: guessing with any confidence
#   looks calibrated. Sorted by confidence the same rows give the same figure as the other strategies.
# - auarc ranks equal confidences by row. Confidences that are all the same, or softmax outputs saturated at 1.0,
#   score far better or worse than the overall accuracy that its documentation names for no information.
# A test set listed class by class, or easy classes first, is such an order.
# Seen:
#> calibration error of guesses, array split: 0.007 as drawn, 0.254 sorted by confidence
#> the same, uniform: 0.255 as drawn, 0.255 sorted by confidence
#> the same, quantile: 0.254 as drawn, 0.254 sorted by confidence
#> accuracy-rejection area at accuracy 0.7, all confidences 1: 0.95 right ones first, 0.34 wrong ones first
# Here: AUROC, FPR95 and OSCR count ties as ties; a metric of ours does not depend on the order of its rows:
# python_tests/test_neighbours.py::test_metrics_do_not_depend_on_the_order_of_rows.
pins="mapie==1.6.0 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=$tmp/venv/bin/python
python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins
"$py" -W ignore - >"$tmp/out" <<'PYTHON'
import numpy as np
from mapie.metrics.calibration import expected_calibration_error
from mapie.metrics.uncertainty import auarc

rng = np.random.default_rng(0)
confidence = rng.random(4000)  # says nothing: each is right half of the time
right = (rng.random(4000) < 0.5).astype(int)
by_confidence = np.argsort(confidence)
for strategy in ("array split", "uniform", "quantile"):
    drawn, ordered = (
        expected_calibration_error(right[rows], confidence[rows], num_bins=15, split_strategy=strategy)
        for rows in (slice(None), by_confidence)
    )
    what = "calibration error of guesses" if strategy == "array split" else "the same"
    print(f"{what}, {strategy}: {drawn:.3f} as drawn, {ordered:.3f} sorted by confidence")

right = np.repeat([1, 0], [700, 300])
first, last = auarc(right, np.ones(1000)), auarc(right[::-1], np.ones(1000))
print(f"accuracy-rejection area at accuracy 0.7, all confidences 1: ", end="")
print(f"{first:.2f} right ones first, {last:.2f} wrong ones first")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
