#!/usr/bin/env bash
# cleanlab: one class that nobody labelled squeezes every label-quality and outlier score into a narrow band
#
# Versions: cleanlab 2.9.0 (2026-01), scikit-learn 1.9.1, numpy 2.4.6.
# Class imbalance is accounted for by subtracting a threshold from each class's probability: its mean over the rows with
# that label. A class without any gets 2, which no probability reaches: right for counting, but it is then
# subtracted as well. All probabilities are raised by as much and divided by a sum of about 2 for each other class, so
# that they are nearly alike: scores documented as 0 to 1 lie between 0.09 and 0.15, or 0.04 and 0.05. Their order stays
# nearly the same, and every threshold is wrong. For outliers by predictions it is the default, for
# label quality adjust_pred_probs=True. A long tail has such a class as soon as one is held out, or split off.
# Seen (10 classes; the same with an 11th of probability under 0.0001 in the model and in no label; medians, range):
#> label quality, 10 classes: right 0.39, wrong 0.05, 0.00 to 0.78
#> label quality, and one without labels: right 0.12, wrong 0.10, 0.09 to 0.15
#> label quality, unadjusted: right 0.47, wrong 0.03, 0.00 to 0.96
#> outliers, 10 classes: known 0.40, unknown 0.24, 0.03 to 0.63
#> outliers, and one without labels: known 0.05, unknown 0.04, 0.04 to 0.05
#> outliers, unadjusted: known 0.62, unknown 0.42, 0.11 to 0.98
# Here: no score has a threshold per class; a class without rows is left out of means (`oltr_ext/metrics/shots.py`).
pins="cleanlab==2.9.0 scikit-learn==1.9.1 scipy==1.17.1 pandas==3.1.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=$tmp/venv/bin/python
python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins
"$py" -W ignore - >"$tmp/out" <<'PYTHON'
import numpy as np
from cleanlab.outlier import OutOfDistribution
from cleanlab.rank import get_label_quality_scores

rng = np.random.default_rng(0)
true = np.arange(10).repeat(100)


def probabilities(height):
    raised = np.exp(rng.standard_normal((1000, 10)) + height * (true[:, None] == np.arange(10)))
    return raised / raised.sum(1, keepdims=True)


def with_another(p):
    return np.c_[p * (1 - 5e-5), np.full(len(p), 5e-5)]


def show(what, score, names, first):
    low, high = (np.median(score[rows]) for rows in (first, ~first))
    print(f"{what}: {names[0]} {low:.2f}, {names[1]} {high:.2f}, {score.min():.2f} to {score.max():.2f}")


p, wrong = probabilities(2.5), rng.random(1000) < 0.1
label = np.where(wrong, (true + 1) % 10, true)
for what, x, adjust in (
    ("10 classes", p, True),
    ("and one without labels", with_another(p), True),
    ("unadjusted", with_another(p), False),
):
    score = get_label_quality_scores(label, x, adjust_pred_probs=adjust)
    show(f"label quality, {what}", score, ("right", "wrong"), ~wrong)

training, known, unknown = probabilities(4), probabilities(4), np.exp(2 * rng.standard_normal((1000, 10)))
new = np.r_[known, unknown / unknown.sum(1, keepdims=True)]
for what, change, options in (
    ("10 classes", lambda x: x, {}),
    ("and one without labels", with_another, {}),
    ("unadjusted", with_another, {"adjust_pred_probs": False}),
):
    detector = OutOfDistribution(options)
    detector.fit(pred_probs=change(training), labels=true, verbose=False)
    show(f"outliers, {what}", detector.score(pred_probs=change(new)), ("known", "unknown"), np.arange(2000) < 1000)
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
