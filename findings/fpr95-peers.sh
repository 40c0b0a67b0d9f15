#!/usr/bin/env bash
# FPR at 95 % TPR of the same scores: 0.05 or 0.1, 1 or 0.75, 0 or 0.5, by who computes it
#
# Versions: scikit-learn 1.9.1, ood-metrics 1.1.2 with numpy 1.26.4 (it wants numpy < 2 and Python < 3.12; exit 77 there).
# By definition: the fewest unknowns accepted by a threshold that accepts at least 95 % of the knowns.
# - First point of sklearn's `roc_curve` with TPR >= 0.95, as most evaluation scripts have it: equal steps along tied
#   scores count as collinear and are dropped, so that the next kept point stands in for the right one.
# - ood-metrics interpolates: with coarse scores it reports an FPR that no threshold attains; and where exactly 95 % of the
#   knowns lie above a run of unknowns (any multiple of 20 knowns can do that), numpy.interp takes the far end of the run.
# Seen:
#> ties: true 0.05, sklearn 0.1, sklearn with all points 0.05, ood-metrics 0.05
#> coarse: true 1, sklearn 1, sklearn with all points 1, ood-metrics 0.75
#> exactly 95 %: true 0, sklearn 0, sklearn with all points 0, ood-metrics 0.5
# Here: counted from the threshold, not from the curve (`open_set_metrics`);
# python_tests/test_metrics_openset.py::test_fpr95_accepts_exactly_the_best_nineteen_of_twenty and
# ::test_fpr95_is_the_least_that_keeps_the_knowns.
pins="scikit-learn==1.9.1 ood-metrics==1.1.2 numpy==1.26.4"
python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "skipped: no Python 3.11"; exit 77; }
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=$tmp/venv/bin/python
python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins
"$py" -W ignore - >"$tmp/out" <<'PYTHON'
import numpy as np
from ood_metrics import fpr_at_95_tpr
from sklearn.metrics import roc_curve


def show(name, known, unknown):
    score = np.concatenate([known, unknown]).astype(float)  # higher means known
    label = np.repeat([1, 0], [len(known), len(unknown)])
    keeping = [t for t in np.unique(score) if np.mean(known >= t) >= 0.95]
    got = {"true": np.mean(unknown >= max(keeping))}
    for way, drop in (("sklearn", True), ("sklearn with all points", False)):
        fpr, tpr, _ = roc_curve(label, score, drop_intermediate=drop)
        got[way] = fpr[np.argmax(tpr >= 0.95)]
    got["ood-metrics"] = fpr_at_95_tpr(score, label)
    print(f"{name}: " + ", ".join(f"{way} {value:.4g}" for way, value in got.items()))


levels = np.arange(10)
show("ties", np.concatenate([np.full(90, 99), levels]), np.concatenate([levels, np.full(90, -1)]))
show("coarse", np.repeat([1, 0], [90, 10]), np.repeat([1, 0], [50, 50]))
show("exactly 95 %", np.repeat([9, 0], [19, 1]), np.repeat([5, -1], [10, 10]))
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
