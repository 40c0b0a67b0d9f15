#!/usr/bin/env bash
# Perfectly separated scores get an AUROC of 0.5 from torchmetrics; negated, or in float64, they get 1.0
#
# Versions: torchmetrics 1.9.0 (2026-03), torch 2.14.1.
# That scores outside [0, 1] are taken for logits and put through a sigmoid is documented; two consequences are not.
# In float32 the sigmoid is 1.0 for every score over 17, so that energies, distances or max logits of 20 and 30 are ties:
# AUROC 0.5 and average precision of a guess. Below zero it keeps them apart, so the same scores negated are right: the
# fault shows for one sign of the score only. And each batch is judged by itself: one whose scores happen to lie in
# [0, 1] is left as it is, and is compared with squashed ones of other batches.
# Seen:
#> scores 20 and 30, float32: AUROC 0.5, AP 0.5
#> the same negated, roles swapped: AUROC 1, AP 1
#> the same in float64: AUROC 1, AP 1
#> 0.2 0.6 0.5 1.5 in one batch: AUROC 1, in two batches: AUROC 0.75
# Here: ranks of the raw scores, any range, all at once (`oltr_ext.metrics.open_set_metrics`);
# python_tests/test_metrics_openset.py::test_monotone_maps_change_nothing.
pins="torch==2.14.1 torchmetrics==1.9.0 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
"$py" -W ignore - >"$tmp/out" <<'PYTHON'
import torch
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

target = torch.tensor([0, 1] * 50)
score = 20 + 10.0 * target + torch.linspace(0, 5, 100)


def both(score, target):
    return f"AUROC {BinaryAUROC()(score, target).item():g}, AP {BinaryAveragePrecision()(score, target).item():g}"


print("scores 20 and 30, float32:", both(score, target))
print("the same negated, roles swapped:", both(-score, 1 - target))
print("the same in float64:", both(score.double(), target))

score, target = torch.tensor([0.2, 0.6, 0.5, 1.5]), torch.tensor([0, 1, 0, 1])
once, twice = BinaryAUROC(), BinaryAUROC()
once.update(score, target)
for part in (slice(0, 2), slice(2, 4)):
    twice.update(score[part], target[part])
print(
    f"0.2 0.6 0.5 1.5 in one batch: AUROC {once.compute().item():g}, "
    f"in two batches: AUROC {twice.compute().item():g}"
)
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
